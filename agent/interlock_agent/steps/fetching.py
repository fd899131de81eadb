"""Payload in: trust, manifest, quarantine, space, segments; then complete beside the slots."""

from __future__ import annotations

from interlock_agent.core import quarantine
from interlock_agent.core.records import GOES_BACK
from interlock_agent.core.retry import backoff
from interlock_agent.core.states import Event
from interlock_agent.ports import Source
from interlock_agent.steps.base import Happened, Step
from interlock_shared import manifest as manifests
from interlock_shared.errors import Incompatible, Later, Never, Rejected


async def fetch(step: Step) -> Happened:
    """Bring the release in, or find it there. Network trouble waits with backoff; what is verified stays."""
    attempt = step.attempt
    wish = attempt.wish
    if wish.origin in GOES_BACK:
        raise Never(f"{step.name}: the release to go back to is gone", code="rollback_lost")
    step.refuse_revoked()
    there = await step.ports.slots.staged(step.name, wish.manifest_sha256)
    if there is not None:
        manifest = manifests.parse(there.manifest)
        step.shared.manifests[step.name] = manifest
        refuse_quarantined(step, manifest, there.payload_sha256)
        return Happened(Event.FETCHED, changes={"payload_sha256": there.payload_sha256, "fetch_failures": 0})
    try:
        return await _bring_in(step, await _source(step))
    except Later as error:
        failures = attempt.fetch_failures + 1
        until = step.ports.clock.now() + backoff(failures, step.ports.clock.dice())
        changes = {"fetch_failures": failures, "until": until}
        return Happened(Event.LATER, changes=changes, reason=error.code, data=error.document())


async def _source(step: Step) -> Source:
    wish = step.attempt.wish
    if wish.origin == "sideload":
        source = step.shared.sources.pop(wish.assignment, None)
        if source is None:
            raise Never(f"{step.name}: the file is no longer being read; install it again", code="source_lost")
        return source
    return await step.ports.fetcher.online(step.name, wish.version, wish.manifest_sha256)


async def _bring_in(step: Step, source: Source) -> Happened:
    try:
        head = await source.manifest()
        await step.shared.trust_moved(head.get("trust"))
        step.tell(doing="fetch", done=0, of=head["size"])
        manifest = manifests.from_document(head["manifest"])
        refuse_quarantined(step, manifest, head["payload_sha256"])
        step.shared.manifests[step.name] = manifest
        result = await source.proceed(lambda done, of: step.tell(doing="fetch", done=done, of=of))
    finally:
        await source.abandon()
    changes = {"payload_sha256": head["payload_sha256"], "fetch_failures": 0}
    return Happened(Event.FETCHED, changes=changes, data=dict(result))


def refuse_quarantined(step: Step, manifest: manifests.Manifest, payload: str) -> None:
    """Raises Rejected (`quarantined`) when this payload failed here before, Incompatible for another unit's."""
    if manifest.model != step.name:
        raise Incompatible(f"{step.name}: the manifest is of {manifest.model}", code="other_model")
    around = step.shared.surroundings(step.record, manifest)
    entry = quarantine.find(step.shared.stored.quarantine, payload, around)
    if entry is not None:
        raise Rejected(
            f"{manifest.release}: the same content failed here as {entry.version} on {entry.at}: {entry.reason}",
            code="quarantined",
            failed_as=entry.version,
            failed_with=entry.reason,
            failed_at=entry.at,
        )


async def drop(step: Step) -> None:
    """Remove what is beside the slots for this attempt."""
    if step.record.attempt is not None:
        source = step.shared.sources.pop(step.attempt.wish.assignment, None)
        if source is not None:
            await source.abandon()
    await step.ports.slots.drop(step.name)
