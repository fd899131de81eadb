"""The trial: the lease is renewed, the counters and the probes are judged, until it is decided.

The minimum of time and that of requests both hold; where there is no traffic, golden runs of our own stand for it.
What was seen is journaled with the judgement, before anything is done about it.
"""

from __future__ import annotations

from typing import Any

from interlock_agent.core import trial
from interlock_agent.core.probes import FAILING, UNAVAILABLE, of_check
from interlock_agent.core.states import Event
from interlock_agent.host import messages
from interlock_agent.steps.base import Happened, Step
from interlock_agent.steps.probing import Watched, Watcher
from interlock_agent.steps.switching import from_outcome, persistently, read_status, unit_status
from interlock_shared import manifest as manifests
from interlock_shared.errors import Refused
from interlock_shared.health import Health
from interlock_shared.manifest import Manifest

LOOK_S = 0.25  # how often the trial is judged without an event
GOLDEN_RUNS = 5  # own inferences a look, where there is no traffic
LATE_TRIAL_S = 5.0  # of a release that was confirmed here before, under the same fingerprint
LAST_WORDS_S = 1.0  # for the host to say how a worker ended


async def _manifest(step: Step) -> Manifest:
    return manifests.parse(await step.ports.slots.manifest_of(step.name, step.attempt.slot))


def health_of(step: Step, manifest: Manifest) -> Health:
    """The manifest's health section; the longer minimum of it and the owner's holds. A rollback is not tried; what
    comes back by itself was confirmed here before, and its trial is short where the device is the same."""
    origin = step.attempt.wish.origin
    if origin == "rollback":
        return Health(min_seconds=0.0, min_requests=0)
    health, owner = manifest.health, step.unit.trial
    if origin == "late":
        previous = step.record.previous
        if previous is not None and previous.fingerprint == step.shared.fingerprint_sha256:
            short = {"min_seconds": min(health.min_seconds, LATE_TRIAL_S), "min_requests": 0}
            return health.model_copy(update=short)
    return health.model_copy(
        update={
            "min_seconds": max(health.min_seconds, owner.min_seconds),
            "min_requests": max(health.min_requests, owner.min_requests),
        }
    )


async def _watcher(step: Step, manifest: Manifest) -> Watcher:
    variant = str((await step.ports.slots.seal_of(step.name, step.attempt.slot) or {}).get("variant", ""))
    watched = Watched(
        unit=step.name,
        version=step.attempt.wish.version,
        manifest=manifest,
        variant=variant,
        generation=step.record.generation,
        felt=step.attempt.felt,
    )
    if step.attempt.wish.origin == "rollback":  # it is the owner's: only what is told at once takes it back
        return Watcher(step.shared, step.unit, watched, ())
    # What comes back by itself replaces what is bad: it waits for nobody's word.
    speaks = step.unit.health.application == "required" and step.attempt.wish.origin != "late"
    probes = (*map(of_check, manifest.health.effective()), *step.unit.health.owners(must_speak=speaks))
    return Watcher(step.shared, step.unit, watched, probes)


async def watch(step: Step) -> Happened:
    """Renew the lease and judge, at each event and at least every LOOK_S, until the trial is decided."""
    manifest = await _manifest(step)
    watcher = await _watcher(step, manifest)
    try:
        return await _watch(step, health_of(step, manifest), watcher)
    finally:
        step.shared.checks.pop(step.name, None)
        await watcher.close()


async def _watch(step: Step, health: Health, watcher: Watcher) -> Happened:
    clock, generation = step.ports.clock, step.record.generation
    started = renewed = clock.monotonic()
    golden = 0
    status = await unit_status(step)
    happened = read_status(step, status)
    if happened.event is not Event.PROMOTED:  # the agent was stopped meanwhile: what is counted is another release's
        return Happened(Event.GONE, reason="host_forgot") if happened.event is Event.CANDIDATE_HERE else happened
    counters = dict((status or {}).get("counters") or {})
    while True:
        await watcher.look()
        seen = trial.Seen(
            elapsed_s=clock.monotonic() - started,
            requests=int(counters.get("requests", 0)),
            errors=int(counters.get("errors", 0)),
            non_finite=int(counters.get("non_finite", 0)),
            golden_runs=golden,
        )
        judgement = trial.judge(health, seen, watcher.board)
        figures = judgement.figures or {}
        step.shared.checks[step.name] = watcher.rows()
        step.tell(doing="trial", **figures, min_seconds=health.min_seconds, min_requests=health.min_requests)
        if judgement.outcome != trial.WATCHING:
            return await _decided(step, judgement, watcher, counters)
        event = await step.ports.host.event(step.name, LOOK_S)
        kind = (event or {}).get("event")
        if event and kind == "outcome" and event.get("generation") == generation:
            return await _ended(step, event, {"figures": figures, **watcher.seen()})
        if event and kind == "counters" and event.get("generation") == generation:
            counters = dict(event["counters"])
        if kind in ("lost", "back") or clock.monotonic() - renewed >= step.unit.trial.lease_s / 6:
            ended = await _renew(step)
            if ended is not None:
                return ended
            renewed = clock.monotonic()
        idle = seen.elapsed_s >= health.min_seconds and seen.requests + golden < health.min_requests
        if idle and event is None:
            runs = await _golden_runs(step)
            golden += runs or 0
            if runs is None:
                health = health.model_copy(update={"min_requests": 0})


async def _decided(step: Step, judgement: trial.Judgement, watcher: Watcher, counters: dict[str, Any]) -> Happened:
    """Journaled with all that was seen: what follows is done after, and may be the end of us."""
    figures = judgement.figures or {}
    if judgement.outcome == trial.HEALTHY:
        told = [row for row in watcher.rows() if row["outcome"] in (FAILING, UNAVAILABLE)]
        changes = {"seen": {"checks": told}} if told and step.attempt.wish.origin != "late" else {}
        return Happened(Event.HEALTHY, changes=changes, data={"figures": figures, "checks": told})
    if not watcher.status:
        await watcher.refresh()
    data = {"check": judgement.check, "message": judgement.message, "figures": figures, **watcher.seen()}
    data["last_errors"] = list(counters.get("last_errors", []))[-5:] or data["last_errors"]
    failed = {"failed_check": judgement.check, "failed_at": step.ports.clock.monotonic(), "seen": data}
    return Happened(Event.UNHEALTHY, changes=failed, reason=judgement.check, data=data)


async def _ended(step: Step, outcome: dict[str, Any], seen: dict[str, Any]) -> Happened:
    """The host has ended the trial. Of a worker that died it says a moment later how."""
    reason = str(outcome.get("reason", ""))
    until = step.ports.clock.monotonic() + LAST_WORDS_S
    while reason == "worker_died" and (left := until - step.ports.clock.monotonic()) > 0:
        event = await step.ports.host.event(step.name, left) or {}
        if event.get("event") == "worker_died" and event.get("worker") == step.attempt.worker:
            seen = {**seen, "last_words": [str(event.get("reason", ""))]}
            break
    return from_outcome(str(outcome["outcome"]), reason, {**outcome, **seen})


async def _renew(step: Step) -> Happened | None:
    try:
        await persistently(step, messages.Renew(step.name, step.record.generation))
    except Refused:
        happened = read_status(step, await unit_status(step))
        return None if happened.event is Event.PROMOTED else happened
    return None


async def _golden_runs(step: Step) -> int | None:
    """No traffic: the live worker answers golden items instead, so that the trial has something to look at. None: the
    release has no golden data, and time alone must do."""
    probe = messages.Probe(step.attempt.worker, step.record.generation, first=0, runs=GOLDEN_RUNS)
    try:
        await persistently(step, probe)
    except Refused as error:
        return None if error.code == "no_golden" else 0
    return GOLDEN_RUNS
