"""The host's rules: event x phase of a unit -> next state and effects. Nothing else decides who serves.

Rules of the file:
- Pure: no I/O, no clock, no chance. `now` is CLOCK_BOOTTIME in seconds, `at` is UTC in seconds since 1970.
- `ROWS` is total over `Phase` x `EVENTS`: a cell is the rule for it.
- Effects are carried out in order. What is durable is written before what it speaks of is done, with one exception
  that is the point of the machine: moving the link `confirmed` *is* the commit, the record of it follows.
- Orders are fenced: an older generation than the highest seen is refused before any rule looks at it.
- A lease that has lapsed, or a gap whose time is up, is noticed by *every* event, not only by the timer; only the death
  of the trial's own worker is looked at first, since it says more about the release.
- The rules of a trial are in `trials.py`, of a gap in `gaps.py`, of the confirmed release's own workers in `own.py`.
- Whatever happens, a cold start serves the confirmed slot: `resume` needs the record and the links, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from interlock_agent.host import gaps, own, trials
from interlock_agent.host import states as s
from interlock_agent.host.own import Step
from interlock_agent.host.states import Effect, Outcome, Phase, Release, Unit

Rule = Callable[[Unit, Any, float, float], Step]


def first(unit: Unit, event: s.Event, now: float) -> s.Event | None:
    """What has to be stepped before `event`: a lease that has lapsed, a gap whose time is up. None: nothing."""
    bounded = unit.trial or unit.gap
    if bounded is None or now < bounded.deadline or isinstance(event, s.Lapsed):
        return None
    if isinstance(event, s.Died) and event.worker == bounded.worker:
        return None
    return s.Lapsed()


def step(unit: Unit, event: s.Event, now: float, at: float) -> Step:
    """The next state of the unit, and what is to be done, in order. `first` has been asked before."""
    assert first(unit, event, now) is None
    if isinstance(event, s.Order) and event.generation < unit.generation and not _harmless(unit, event):
        message = f"generation {event.generation} is older than {unit.generation}"
        return unit, (s.Refuse("stale_generation", message),)
    after, effects = ROWS[unit.phase, type(event)](unit, event, now, at)
    if not any(isinstance(effect, s.Refuse) for effect in effects):
        after, more = own.with_spare(after)
        effects = (*effects, *more)
    if unit.unrecorded and not any(isinstance(effect, s.Record) for effect in effects):
        effects = (s.Record(must=False), *effects)
    if unit.adrift and not any(isinstance(effect, s.LinkLive) for effect in effects):
        effects = (*effects, s.LinkLive(after.trial.slot if after.trial else after.confirmed_slot))
    if unit.doubtful and not unit.trial:
        effects = (s.LinkConfirmed(unit.confirmed_slot), *effects)
    return after, effects


def resume(
    name: str,
    document: dict[str, Any] | None,
    confirmed: tuple[str, Release | None],
    live_slot: str,
    floor: int,
    at: float,
) -> Step:
    """The state after a cold start. `document`: the record, None when there is none; `confirmed`: slot and release of
    the link; `floor`: the highest generation that a seal on disk names. A trial that was on is over: confirmed when
    the commit had been made, else interrupted."""
    document = document or {}
    slot, release = confirmed
    if release is None:
        slot = ""
    found = document.get("outcome")
    outcome = Outcome(**{k: found[k] for k in ("generation", "outcome", "reason", "at")}) if found else None
    trial = document.get("trial")
    effects: list[Effect] = []
    if trial:
        committed = bool(slot) and trial["slot"] == slot
        verdict = ("confirmed", "") if committed else ("interrupted", "host_restarted")
        outcome = Outcome(int(trial["generation"]), *verdict, at)
    generation = max(int(document.get("generation", 0)), floor)
    unit = Unit(name, generation=generation, confirmed_slot=slot, confirmed=release, outcome=outcome)
    if trial or generation != document.get("generation"):
        effects.append(s.Record(must=False))
    if live_slot != slot:
        effects.append(s.LinkLive(slot))
    if release is None:
        return unit, tuple(effects)
    unit, start = own.start(replace(unit, phase=Phase.STARTING))
    return unit, (*effects, *start)


# --- pieces -----------------------------------------------------------------------------------------------------


def _harmless(unit: Unit, event: s.Order) -> bool:
    """An old order that changes nothing: an answer given once is given again, a worker that is gone is gone."""
    if isinstance(event, s.Confirm):
        return unit.outcome is not None and unit.outcome.generation == event.generation and unit.trial is None
    return isinstance(event, s.Retire) and event.worker not in unit.workers


def _died_event(unit: Unit, worker: s.Worker, reason: str) -> s.Push:
    fields = {"unit": unit.name, "worker": worker.id, "role": worker.role, "release": worker.release.name}
    return s.Push({"event": "worker_died", **fields, "reason": reason})


# --- rules ------------------------------------------------------------------------------------------------------


def load(unit: Unit, event: s.Load, now: float, at: float) -> Step:
    """A worker is started for the agent. A newer generation ends what older ones still measure."""
    if event.worker in unit.workers or event.role not in ("candidate", "twin"):
        return unit, (s.Refuse("bad_request", f"no such role: {event.role}"),)
    serving = (unit.live, unit.standby)
    old = [
        w.id
        for w in unit.workers.values()
        if w.role != "own" and w.id not in serving and w.generation < event.generation
    ]
    effects: list[Effect] = [s.Record(must=True)] if event.generation > unit.generation else []
    if unit.gap and not (event.alone and event.generation == unit.gap.generation):
        unit, back = gaps.end(unit, "another worker was wanted", now)
        effects += back
    effects += [s.EndWorker(worker) for worker in old if worker in unit.workers]
    worker = s.Worker(event.worker, event.role, event.generation, event.release)
    workers = {**own.without(unit, *old), worker.id: worker}
    unit = replace(unit, generation=event.generation, workers=workers)
    return unit, (*effects, s.StartWorker(worker.id, ""))


def retire(unit: Unit, event: s.Retire, now: float, at: float) -> Step:
    """End a worker that serves nobody."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.Answer({}),)
    if worker.role == "own" or worker.id in (unit.live, unit.standby):
        return unit, (s.Refuse("bad_request", f"{worker.id} serves, or stands by"),)
    if unit.gap and unit.gap.worker == worker.id:
        unit, back = gaps.end(unit, "its candidate was retired", now)
        return unit, (*back, s.Answer({}))
    return replace(unit, workers=own.without(unit, worker.id)), (s.EndWorker(worker.id), s.Answer({}))


def ready(unit: Unit, event: s.Ready, now: float, at: float) -> Step:
    """A worker has loaded: the host's own takes its place, one of the agent's waits for orders."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.EndWorker(event.worker),)  # superseded while it loaded
    if worker.ready:
        return unit, ()
    worker = replace(worker, ready=True, since=now, load_s=event.load_s)
    unit = replace(unit, workers={**unit.workers, worker.id: worker})
    if worker.role != "own":
        return unit, ()
    return own.took_its_place(replace(unit, load_s=event.load_s or unit.load_s), worker, now)


def died(unit: Unit, event: s.Died, now: float, at: float) -> Step:
    """A worker has ended. Who it was says what follows."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.EndWorker(event.worker),)
    push = _died_event(unit, worker, event.reason)
    if unit.trial and worker.id == unit.trial.worker:
        unit, effects = trials.end(unit, "reverted", "worker_died", now, at, push=True)
        return unit, (*effects, push)
    unit = replace(unit, workers=own.without(unit, worker.id))
    end = s.EndWorker(worker.id)
    if unit.gap and worker.id == unit.gap.worker:
        unit, effects = gaps.end(unit, "its candidate ended", now)
        return unit, (end, *effects, push)
    if worker.id == unit.live:
        healthy = now - unit.live_since >= own.HEALTHY_S
        phase = Phase.SERVING if unit.standby else Phase.STARTING
        unit = replace(unit, live=unit.standby, standby="", live_since=now, phase=phase)
        serve = s.Serve(unit.live, "") if unit.live else own.serve_nobody(unit)
        told = own.serving(unit)
        unit, start = own.crashed(unit, now, healthy)
        return unit, (end, serve, *start, told, push)
    if worker.id == unit.standby:
        healthy = not unit.trial and now - worker.since >= own.HEALTHY_S
        unit, start = own.crashed(replace(unit, standby=""), now, healthy)
        return unit, (end, s.Serve(unit.live, ""), *start, push)
    if worker.role == "own":
        unit, start = own.crashed(unit, now, healthy=False)
        return unit, (end, *start, push)
    return unit, (end, push)


def tick(unit: Unit, event: s.Tick, now: float, at: float) -> Step:
    """Start the confirmed release again when its time has come (lapsed leases are `first`'s)."""
    if not unit.retry_at or now < unit.retry_at:
        return unit, ()
    unit = replace(unit, retry_at=0.0)  # also where nothing is wanted any more: the timer would never rest
    wanted = unit.phase is Phase.TRIAL or own.wants_spare(unit)
    if unit.phase is Phase.STARTING or (wanted and not unit.standby):
        return own.start(unit)
    return unit, ()


# --- the table --------------------------------------------------------------------------------------------------

_EVERYWHERE: dict[type[s.Event], Rule] = {
    s.Load: load,
    s.Retire: retire,
    s.Ready: ready,
    s.Died: died,
    s.Configured: own.configured,
    s.Tick: tick,
}
_WITHOUT_TRIAL: dict[type[s.Event], Rule] = {
    s.MakeRoom: gaps.make_room,
    s.Promote: trials.promote,
    s.Renew: trials.no_lease,
    s.Confirm: trials.confirm_again,
    s.Revert: trials.revert_again,
    s.Broke: lambda unit, *_: (unit, ()),  # no trial is left to break, or to lapse
    s.Lapsed: lambda unit, *_: (unit, ()),
}
_IN: dict[Phase, dict[type[s.Event], Rule]] = {
    Phase.EMPTY: {s.MakeRoom: gaps.no_room_needed},
    Phase.GAP: {s.Lapsed: gaps.lapsed},
    Phase.TRIAL: {
        s.MakeRoom: gaps.not_in_a_trial,
        s.Promote: trials.promote_in_trial,
        s.Renew: trials.renew,
        s.Confirm: trials.confirm,
        s.Revert: trials.revert,
        s.Broke: trials.broke,
        s.Lapsed: trials.lapsed,
    },
}
ROWS: dict[tuple[Phase, type[s.Event]], Rule] = {
    (phase, event): rule
    for phase in Phase
    for event, rule in {**_EVERYWHERE, **_WITHOUT_TRIAL, **_IN.get(phase, {})}.items()
}


def wake_at(unit: Unit) -> float | None:
    """When the unit wants a `Tick` at the latest (CLOCK_BOOTTIME), None for never."""
    bounded = unit.trial or unit.gap
    times = [bounded.deadline] if bounded else []
    if unit.retry_at:
        times.append(unit.retry_at)
    return min(times) if times else None
