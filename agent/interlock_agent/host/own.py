"""The confirmed release's own workers: started, started again after a crash, kept warm as a spare.

Rules of the file:
- Pure, as `core.py`, which says which event leads here.
- One at a time is being started; a crash is followed at once twice, then after longer and longer waits.
- A spare is a standby without a trial: a second worker of the release that serves, where the owner wants one.
"""

from __future__ import annotations

from dataclasses import replace

from interlock_agent.host import states as s
from interlock_agent.host.states import Effect, Phase, Unit

BACKOFF_S = (0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # before the n-th start after a crash; the last one for ever
HEALTHY_S = 60.0  # a worker that served, or stood by, that long has not crashed "again"
PATIENCE = 3.0  # of the time that the confirmed release took to load: so long do requests wait for it at the least

Step = tuple[Unit, tuple[Effect, ...]]


def without(unit: Unit, *workers: str) -> dict[str, s.Worker]:
    """Its workers but those."""
    return {name: worker for name, worker in unit.workers.items() if name not in workers}


def start(unit: Unit) -> Step:
    """Load the confirmed release, unless the host is doing so."""
    if unit.own() or unit.confirmed is None:
        return replace(unit, retry_at=0.0), ()
    number = unit.started + 1
    worker = s.Worker(f"{unit.name}-own-{number}", "own", unit.confirmed.generation, unit.confirmed)
    workers = {**unit.workers, worker.id: worker}
    unit = replace(unit, started=number, workers=workers, retry_at=0.0)
    return unit, (s.StartWorker(worker.id, unit.confirmed_slot),)


def crashed(unit: Unit, now: float, healthy: bool) -> Step:
    """The confirmed release's worker ended: start it again, at once or after a while."""
    crashes = 1 if healthy else unit.crashes + 1
    wait = BACKOFF_S[min(crashes, len(BACKOFF_S)) - 1]
    unit = replace(unit, crashes=crashes)
    return start(unit) if wait == 0 else (replace(unit, retry_at=now + wait), ())


def serve_nobody(unit: Unit) -> s.Serve:
    """The confirmed release is being loaded: requests wait for it as long as that may take."""
    return s.Serve("", "", wait_s=PATIENCE * unit.load_s, expected_s=unit.load_s)


def serving(unit: Unit) -> s.Push:
    """Tell agents who answers."""
    worker = unit.workers.get(unit.live)
    release, generation = (worker.release.name, worker.generation) if worker else ("", 0)
    return s.Push({"event": "serving", "unit": unit.name, "release": release, "generation": generation})


def took_its_place(unit: Unit, worker: s.Worker, now: float) -> Step:
    """The host's own worker is ready: it is live where nothing is, a standby where there is none, else not needed."""
    if unit.phase is Phase.STARTING:
        unit = replace(unit, phase=Phase.SERVING, live=worker.id, live_since=now)
        return unit, (s.Serve(worker.id, ""), serving(unit))
    if not unit.standby and (unit.phase is Phase.TRIAL or wants_spare(unit)):
        unit = replace(unit, standby=worker.id)
        return unit, (s.Serve(unit.live, worker.id),)
    return replace(unit, workers=without(unit, worker.id)), (s.EndWorker(worker.id),)


def wants_spare(unit: Unit) -> bool:
    """Whether a second worker of what serves is to be there."""
    return unit.spare and unit.phase is Phase.SERVING


def with_spare(unit: Unit) -> Step:
    """Start the spare where it is missing and nothing is waited for."""
    if not wants_spare(unit) or unit.standby or unit.retry_at:
        return unit, ()
    return start(unit)


def configured(unit: Unit, event: s.Configured, now: float, at: float) -> Step:
    """Keep a spare from now on (`with_spare` starts it), or no longer."""
    unit = replace(unit, spare=event.spare)
    if unit.spare or unit.phase is not Phase.SERVING:
        return unit, ()
    gone = [w.id for w in unit.workers.values() if w.id == unit.standby or (w.role == "own" and w.id != unit.live)]
    effects: list[Effect] = [s.Serve(unit.live, "")] if unit.standby else []
    effects += [s.EndWorker(worker) for worker in gone]
    return replace(unit, standby="", retry_at=0.0, workers=without(unit, *gone)), tuple(effects)
