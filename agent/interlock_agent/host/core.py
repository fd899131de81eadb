"""The host's rules: event x phase of a unit -> next state and effects. Nothing else decides who serves.

Rules of the file:
- Pure: no I/O, no clock, no chance. `now` is CLOCK_BOOTTIME in seconds, `at` is UTC in seconds since 1970.
- `ROWS` is total over `Phase` x `EVENTS`: a cell is the rule for it.
- Effects are carried out in order. What is durable is written before what it speaks of is done, with one exception
  that is the point of the machine: moving the link `confirmed` *is* the commit, the record of it follows.
- Orders are fenced: an older generation than the highest seen is refused before any rule looks at it.
- A lease that has lapsed is noticed by *every* event, not only by the timer; only the death of the trial's own
  worker is looked at first, since it says more about the release.
- Whatever happens, a cold start serves the confirmed slot: `resume` needs the record and the links, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from interlock_agent.host import states as s
from interlock_agent.host.states import Effect, Outcome, Phase, Release, Unit

BACKOFF_S = (0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # before the n-th start after a crash; the last one for ever
HEALTHY_S = 60.0  # a worker that served that long has not crashed "again"

Step = tuple[Unit, tuple[Effect, ...]]
Rule = Callable[[Unit, Any, float, float], Step]


def first(unit: Unit, event: s.Event, now: float) -> s.Event | None:
    """What has to be stepped before `event`: a lease that has lapsed meanwhile. None: nothing."""
    if unit.trial is None or now < unit.trial.deadline or isinstance(event, s.Lapsed):
        return None
    if isinstance(event, s.Died) and event.worker == unit.trial.worker:
        return None
    return s.Lapsed()


def step(unit: Unit, event: s.Event, now: float, at: float) -> Step:
    """The next state of the unit, and what is to be done, in order. `first` has been asked before."""
    assert first(unit, event, now) is None
    if isinstance(event, s.Order) and event.generation < unit.generation and not _harmless(unit, event):
        message = f"generation {event.generation} is older than {unit.generation}"
        return unit, (s.Refuse("stale_generation", message),)
    after, effects = ROWS[unit.phase, type(event)](unit, event, now, at)
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
    unit, start = _start_own(replace(unit, phase=Phase.STARTING))
    return unit, (*effects, *start)


# --- pieces -----------------------------------------------------------------------------------------------------


def _harmless(unit: Unit, event: s.Order) -> bool:
    """An old order that changes nothing: an answer given once is given again, a worker that is gone is gone."""
    if isinstance(event, s.Confirm):
        return unit.outcome is not None and unit.outcome.generation == event.generation and unit.trial is None
    return isinstance(event, s.Retire) and event.worker not in unit.workers


def _without(unit: Unit, *workers: str) -> dict[str, s.Worker]:
    return {name: worker for name, worker in unit.workers.items() if name not in workers}


def _start_own(unit: Unit) -> Step:
    """Load the confirmed release, unless the host is doing so."""
    if unit.own() or unit.confirmed is None:
        return replace(unit, retry_at=0.0), ()
    number = unit.started + 1
    worker = s.Worker(f"{unit.name}-own-{number}", "own", unit.confirmed.generation, unit.confirmed)
    workers = {**unit.workers, worker.id: worker}
    unit = replace(unit, started=number, workers=workers, retry_at=0.0)
    return unit, (s.StartWorker(worker.id, unit.confirmed_slot),)


def _crashed(unit: Unit, now: float, healthy: bool) -> Step:
    """The confirmed release's worker ended: start it again, at once or after a while."""
    crashes = 1 if healthy else unit.crashes + 1
    wait = BACKOFF_S[min(crashes, len(BACKOFF_S)) - 1]
    unit = replace(unit, crashes=crashes)
    return _start_own(unit) if wait == 0 else (replace(unit, retry_at=now + wait), ())


def _serving(unit: Unit) -> s.Push:
    worker = unit.workers.get(unit.live)
    release, generation = (worker.release.name, worker.generation) if worker else ("", 0)
    return s.Push({"event": "serving", "unit": unit.name, "release": release, "generation": generation})


def _end_trial(unit: Unit, outcome: str, reason: str, now: float, at: float, push: bool) -> Step:
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
        workers=_without(unit, trial.worker),
        phase=Phase.SERVING if unit.standby else Phase.STARTING if unit.confirmed else Phase.EMPTY,
    )
    # After a failed commit nobody knows where `confirmed` points: it is put right before the trial is forgotten.
    effects: list[Effect] = [s.LinkConfirmed(unit.confirmed_slot)] if unit.doubtful else []
    effects += [s.Record(must=False), s.LinkLive(unit.confirmed_slot)]
    effects += [s.Serve(unit.live, ""), s.EndWorker(trial.worker)]
    if push:
        effects.append(s.Push({"event": "outcome", "unit": unit.name, **ended.document()}))
    effects.append(_serving(unit))
    if unit.phase is Phase.STARTING and not unit.retry_at:
        unit, start = _start_own(unit)
        effects += start
    return unit, tuple(effects)


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
    effects += [s.EndWorker(worker) for worker in old]
    worker = s.Worker(event.worker, event.role, event.generation, event.release)
    workers = {**_without(unit, *old), worker.id: worker}
    unit = replace(unit, generation=event.generation, workers=workers)
    return unit, (*effects, s.StartWorker(worker.id, ""))


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
    unit = replace(
        unit,
        phase=Phase.TRIAL,
        trial=trial,
        generation=event.generation,
        live=worker.id,
        standby=standby,
        live_since=now,
    )
    durable = (s.Record(must=True), s.LinkLive(event.slot, must=True))
    return unit, (*durable, s.Serve(worker.id, standby, event.drain_max_s), _serving(unit), s.Answer({}))


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
        workers=_without(unit, *standby),
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
    unit, effects = _end_trial(unit, "reverted", event.reason, now, at, push=False)
    return unit, (*effects, s.Answer({}))


def revert_again(unit: Unit, event: s.Revert, now: float, at: float) -> Step:
    """Asked again, or taken back already by the host."""
    past = unit.outcome
    if past and past.generation == event.generation and past.outcome != "confirmed":
        return unit, (s.Answer({}),)
    return unit, (s.Refuse("no_trial", f"generation {event.generation}"),)


def retire(unit: Unit, event: s.Retire, now: float, at: float) -> Step:
    """End a worker that serves nobody."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.Answer({}),)
    if worker.role == "own" or worker.id in (unit.live, unit.standby):
        return unit, (s.Refuse("bad_request", f"{worker.id} serves, or stands by"),)
    return replace(unit, workers=_without(unit, worker.id)), (s.EndWorker(worker.id), s.Answer({}))


def ready(unit: Unit, event: s.Ready, now: float, at: float) -> Step:
    """A worker has loaded: the host's own takes its place, one of the agent's waits for orders."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.EndWorker(event.worker),)  # superseded while it loaded
    if worker.ready:
        return unit, ()
    worker = replace(worker, ready=True)
    unit = replace(unit, workers={**unit.workers, worker.id: worker})
    if worker.role != "own":
        return unit, ()
    if unit.phase is Phase.STARTING:
        unit = replace(unit, phase=Phase.SERVING, live=worker.id, live_since=now)
        return unit, (s.Serve(worker.id, ""), _serving(unit))
    if unit.phase is Phase.TRIAL and not unit.standby:
        unit = replace(unit, standby=worker.id)
        return unit, (s.Serve(unit.live, worker.id),)
    return replace(unit, workers=_without(unit, worker.id)), (s.EndWorker(worker.id),)


def died(unit: Unit, event: s.Died, now: float, at: float) -> Step:
    """A worker has ended. Who it was says what follows."""
    worker = unit.workers.get(event.worker)
    if worker is None:
        return unit, (s.EndWorker(event.worker),)
    push = _died_event(unit, worker, event.reason)
    if unit.trial and worker.id == unit.trial.worker:
        unit, effects = _end_trial(unit, "reverted", "worker_died", now, at, push=True)
        return unit, (*effects, push)
    unit = replace(unit, workers=_without(unit, worker.id))
    end = s.EndWorker(worker.id)
    if worker.id == unit.live:
        healthy = now - unit.live_since >= HEALTHY_S
        unit = replace(unit, live="", phase=Phase.STARTING)
        serving = _serving(unit)
        unit, start = _crashed(unit, now, healthy)
        return unit, (end, s.Serve("", ""), *start, serving, push)
    if worker.id == unit.standby:
        unit, start = _crashed(replace(unit, standby=""), now, healthy=False)
        return unit, (end, s.Serve(unit.live, ""), *start, push)
    if worker.role == "own":
        unit, start = _crashed(unit, now, healthy=False)
        return unit, (end, *start, push)
    return unit, (end, push)


def broke(unit: Unit, event: s.Broke, now: float, at: float) -> Step:
    """The disk failed in the middle of a switch, or Triton has forgotten the release: take it back."""
    return _end_trial(unit, "interrupted", event.reason, now, at, push=True)


def lapsed(unit: Unit, event: s.Lapsed, now: float, at: float) -> Step:
    """The agent has not renewed: an innocent release goes back, to be tried again."""
    return _end_trial(unit, "interrupted", "lease_lapsed", now, at, push=True)


def tick(unit: Unit, event: s.Tick, now: float, at: float) -> Step:
    """Start the confirmed release again when its time has come (lapsed leases are `first`'s)."""
    if unit.retry_at and now >= unit.retry_at and unit.phase in (Phase.STARTING, Phase.TRIAL):
        return _start_own(unit)
    return unit, ()


# --- the table --------------------------------------------------------------------------------------------------

_EVERYWHERE: dict[type[s.Event], Rule] = {
    s.Load: load,
    s.Retire: retire,
    s.Ready: ready,
    s.Died: died,
    s.Tick: tick,
}
_WITHOUT_TRIAL: dict[type[s.Event], Rule] = {
    s.Promote: promote,
    s.Renew: no_lease,
    s.Confirm: confirm_again,
    s.Revert: revert_again,
    s.Broke: lambda unit, *_: (unit, ()),  # no trial is left to break, or to lapse
    s.Lapsed: lambda unit, *_: (unit, ()),
}
_IN_TRIAL: dict[type[s.Event], Rule] = {
    s.Promote: promote_in_trial,
    s.Renew: renew,
    s.Confirm: confirm,
    s.Revert: revert,
    s.Broke: broke,
    s.Lapsed: lapsed,
}
ROWS: dict[tuple[Phase, type[s.Event]], Rule] = {
    (phase, event): rule
    for phase in Phase
    for event, rule in {**_EVERYWHERE, **(_IN_TRIAL if phase is Phase.TRIAL else _WITHOUT_TRIAL)}.items()
}


def wake_at(unit: Unit) -> float | None:
    """When the unit wants a `Tick` at the latest (CLOCK_BOOTTIME), None for never."""
    times = [unit.trial.deadline] if unit.trial else []
    if unit.retry_at:
        times.append(unit.retry_at)
    return min(times) if times else None
