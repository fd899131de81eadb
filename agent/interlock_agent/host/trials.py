"""The trial: a candidate serves, and the confirmed release stands by where it has room.

Rules of the file:
- Pure, as `core.py`, which says which event leads here.
- Record, link, swap at its beginning; at its end without a confirmation record, link, swap back. Moving the link
  `confirmed` *is* the confirmation.
"""

from __future__ import annotations

from dataclasses import replace

from interlock_agent.host import own
from interlock_agent.host import states as s
from interlock_agent.host.own import Step
from interlock_agent.host.states import Effect, Outcome, Phase, Unit


def end(unit: Unit, outcome: str, reason: str, now: float, at: float, push: bool) -> Step:
    """The trial is over without a confirmation: the confirmed release serves, or nothing where there is none."""
    trial = unit.trial
    assert trial is not None
    ended = Outcome(trial.generation, outcome, reason, at)
    unit = replace(
        unit,
        trial=None,
        outcome=ended,
        live=unit.standby,
        standby="",
        live_since=now,
        workers=own.without(unit, trial.worker),
        phase=Phase.SERVING if unit.standby else Phase.STARTING if unit.confirmed else Phase.EMPTY,
    )
    # After a failed commit nobody knows where `confirmed` points: it is put right before the trial is forgotten.
    effects: list[Effect] = [s.LinkConfirmed(unit.confirmed_slot)] if unit.doubtful else []
    effects += [s.Record(must=False), s.LinkLive(unit.confirmed_slot)]
    effects += [s.Serve(unit.live, "") if unit.live or not unit.confirmed else own.serve_nobody(unit)]
    effects += [s.EndWorker(trial.worker)]
    if push:
        effects.append(s.Push({"event": "outcome", "unit": unit.name, **ended.document()}))
    effects.append(own.serving(unit))
    if unit.phase is Phase.STARTING and not unit.retry_at:
        unit, start = own.start(unit)
        effects += start
    return unit, tuple(effects)


def promote(unit: Unit, event: s.Promote, now: float, at: float) -> Step:
    """Begin a trial: record, link, swap. From any phase without a trial."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.Refuse("unknown_worker", f"no worker {event.worker}: it may have died"),)
    if unit.live == worker.id and worker.generation == event.generation:
        return unit, (s.Answer({}),)  # confirmed meanwhile, and asked again
    if worker.role != "candidate" or not worker.ready or worker.generation != event.generation:
        return unit, (s.Refuse("not_promotable", f"{worker.role} of generation {worker.generation}"),)
    if event.slot not in s.SLOTS or event.slot == unit.confirmed_slot:
        return unit, (s.Refuse("bad_request", f"slot {event.slot!r} cannot hold a trial"),)
    loaded = (worker.release.manifest, worker.release.variant)
    if event.found is None or (event.found.manifest, event.found.variant) != loaded:
        return unit, (s.Refuse("bad_request", f"slot {event.slot} does not hold what {worker.id} has loaded"),)
    trial = s.Trial(event.generation, event.slot, worker.id, worker.release, event.lease_s, now + event.lease_s)
    standby = unit.live
    spare = [w.id for w in unit.workers.values() if w.role == "own" and w.id != standby] if standby else []
    unit = replace(
        unit,
        phase=Phase.TRIAL,
        trial=trial,
        gap=None,
        generation=event.generation,
        live=worker.id,
        standby=standby,
        live_since=now,
        workers=own.without(unit, *spare),
    )
    effects: list[Effect] = [s.Record(must=True), s.LinkLive(event.slot, must=True)]
    effects += [s.Serve(worker.id, standby, event.drain_max_s), own.serving(unit)]
    return unit, (*effects, *(s.EndWorker(one) for one in spare), s.Answer({}))


def promote_in_trial(unit: Unit, event: s.Promote, now: float, at: float) -> Step:
    """The same order again is answered again; another one has to end the trial first."""
    assert unit.trial is not None
    if (event.worker, event.generation) == (unit.trial.worker, unit.trial.generation):
        return unit, (s.Answer({}),)
    return unit, (s.Refuse("bad_request", f"the trial of generation {unit.trial.generation} has not ended"),)


def no_lease(unit: Unit, event: s.Renew, now: float, at: float) -> Step:
    """No trial to renew; say whether there was one."""
    past = unit.outcome
    lapsed = past and past.generation == event.generation and past.reason == "lease_lapsed"
    return unit, (s.Refuse("lease_lapsed" if lapsed else "no_trial", f"generation {event.generation}"),)


def renew(unit: Unit, event: s.Renew, now: float, at: float) -> Step:
    """The agent is alive: the lease runs anew."""
    trial = unit.trial
    assert trial is not None
    if trial.generation != event.generation:
        return no_lease(unit, event, now, at)
    return replace(unit, trial=replace(trial, deadline=now + trial.lease_s)), (s.Answer({}),)


def confirm(unit: Unit, event: s.Confirm, now: float, at: float) -> Step:
    """The commit point: the lease never lapsed, or `step` would have ended the trial."""
    trial = unit.trial
    assert trial is not None
    if trial.generation != event.generation:
        return confirm_again(unit, event, now, at)
    standby = [w.id for w in unit.workers.values() if w.role == "own" or w.id == unit.standby]
    unit = replace(
        unit,
        phase=Phase.SERVING,
        trial=None,
        outcome=Outcome(trial.generation, "confirmed", "", at),
        confirmed_slot=trial.slot,
        confirmed=trial.release,
        standby="",
        crashes=0,
        retry_at=0.0,
        doubtful=False,
        load_s=unit.workers[trial.worker].load_s,
        workers=own.without(unit, *standby),
    )
    effects: list[Effect] = [s.LinkConfirmed(trial.slot, must=True), s.Record(must=False), s.Serve(unit.live, "")]
    effects += [s.EndWorker(worker) for worker in standby]
    return unit, (*effects, s.Answer({"confirmed": True}))


def confirm_again(unit: Unit, event: s.Confirm, now: float, at: float) -> Step:
    """No such trial (any more): tell how it ended."""
    past = unit.outcome
    if past is None or past.generation != event.generation:
        return unit, (s.Refuse("no_trial", f"generation {event.generation}"),)
    if past.outcome == "confirmed":
        return unit, (s.Answer({"confirmed": True}),)
    return unit, (s.Answer({"confirmed": False, "outcome": past.outcome, "reason": past.reason}),)


def revert(unit: Unit, event: s.Revert, now: float, at: float) -> Step:
    """The agent takes the trial back."""
    assert unit.trial is not None
    if unit.trial.generation != event.generation:
        return revert_again(unit, event, now, at)
    unit, effects = end(unit, "reverted", event.reason, now, at, push=False)
    return unit, (*effects, s.Answer({}))


def revert_again(unit: Unit, event: s.Revert, now: float, at: float) -> Step:
    """Asked again, or taken back already by the host."""
    past = unit.outcome
    if past and past.generation == event.generation and past.outcome != "confirmed":
        return unit, (s.Answer({}),)
    return unit, (s.Refuse("no_trial", f"generation {event.generation}"),)


def broke(unit: Unit, event: s.Broke, now: float, at: float) -> Step:
    """The disk failed in the middle of a switch, or Triton has forgotten the release: take it back."""
    return end(unit, "interrupted", event.reason, now, at, push=True)


def lapsed(unit: Unit, event: s.Lapsed, now: float, at: float) -> Step:
    """The agent has not renewed: an innocent release goes back, to be tried again."""
    return end(unit, "interrupted", "lease_lapsed", now, at, push=True)
