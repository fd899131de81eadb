"""The gap: the confirmed release makes room for a candidate that does not fit beside it, and comes back.

Rules of the file:
- Pure, as `core.py`, which says which event leads here.
- A gap begins when the candidate is verified and only has to be opened. It leads to a trial without a standby, or back.
- It ends by itself: at its deadline, with the candidate, with the first order that is about something else. Each end
  but a trial is the same: the confirmed release is loaded again. Nothing of a gap is durable: a host that restarts does
  just that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interlock_agent.host import own
from interlock_agent.host import states as s
from interlock_agent.host.own import Step
from interlock_agent.host.states import Effect, Phase, Unit


def _told(unit: Unit, gap: s.Gap, now: float, **more: Any) -> s.Push:
    fields = {"unit": unit.name, "generation": gap.generation, "expected_s": gap.expected_s}
    return s.Push({"event": "gap", **fields, "at_most_s": gap.deadline - now, **more})


def make_room(unit: Unit, event: s.MakeRoom, now: float, at: float) -> Step:
    """End what serves, and everything else that is loaded; the candidate is opened when it has gone."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.Refuse("unknown_worker", f"no worker {event.worker}: it may have died"),)
    if worker.role != "candidate" or worker.ready or worker.generation != event.generation:
        return unit, (s.Refuse("bad_request", f"no room for a {worker.role} of generation {worker.generation}"),)
    former, live = unit.gap, unit.live
    gap = s.Gap(event.generation, worker.id, now, now + event.gap_s, event.expected_s)
    if former:  # another form of the same release, say
        gap = replace(gap, began=former.began, deadline=former.deadline)
    gone = [w.id for w in unit.workers.values() if w.id not in (worker.id, live)]
    workers = {worker.id: worker}
    after = replace(unit, phase=Phase.GAP, gap=gap, live="", standby="", retry_at=0.0, workers=workers)
    effects: list[Effect] = []
    if not former:
        back = own.serve_nobody(unit)
        wait_s = event.gap_s + back.wait_s
        effects.append(s.Serve("", "", event.drain_max_s, wait_s=wait_s, expected_s=event.expected_s))
    if live:
        effects += [s.EndWorker(live, drained=True), own.serving(after)]
    effects += [s.EndWorker(other) for other in gone]
    return after, (*effects, _told(unit, gap, now), s.Answer({}))


def no_room_needed(unit: Unit, event: s.MakeRoom, now: float, at: float) -> Step:
    """Nothing is confirmed here, so nothing is in the way."""
    return unit, (s.Answer({}),)


def not_in_a_trial(unit: Unit, event: s.MakeRoom, now: float, at: float) -> Step:
    """What serves is being watched."""
    assert unit.trial is not None
    return unit, (s.Refuse("bad_request", f"the trial of generation {unit.trial.generation} has not ended"),)


def end(unit: Unit, why: str, now: float) -> Step:
    """The confirmed release is loaded again, when everything else has gone."""
    gap = unit.gap
    assert gap is not None
    gone = [w.id for w in unit.workers.values()]
    unit = replace(unit, phase=Phase.STARTING, gap=None, workers={})
    effects: list[Effect] = [s.EndWorker(worker, why=f"gap_over: {why}") for worker in gone]
    unit, start = own.start(unit)
    return unit, (own.serve_nobody(unit), *effects, *start)


def lapsed(unit: Unit, event: s.Lapsed, now: float, at: float) -> Step:
    """Its time is up, whoever was to end it."""
    return end(unit, "its time was up", now)
