"""What every step gets, and what it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.config import Config, Unit
from interlock_agent.core import quarantine, revoked, sideloads, time_floor
from interlock_agent.core.gate.gap import Plan
from interlock_agent.core.gate.limits import effective_limits, limits_digest
from interlock_agent.core.readings import Word
from interlock_agent.core.records import Attempt, Installed, Quarantined, UnitRecord
from interlock_agent.core.revoked import REVOKED
from interlock_agent.core.states import Event, Phase
from interlock_agent.ports import Ports, Source, Stored
from interlock_shared import floors
from interlock_shared.documents import Assignment
from interlock_shared.errors import Never
from interlock_shared.manifest import Manifest


@dataclass(frozen=True)
class Happened:
    """How an effect ended: the event, what it changes in the attempt, and what is told about it."""

    event: Event
    changes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Shared:
    """What all units have in common while the agent runs. Durable truth is in the journal, not here."""

    ports: Ports
    config: Config
    device: str
    stored: Stored
    desired: dict[str, Assignment] = field(default_factory=dict)
    spread_s: float = 0.0
    sources: dict[str, Source] = field(default_factory=dict)  # by assignment: files that are being read
    fingerprint: dict[str, Any] = field(default_factory=dict)
    fingerprint_sha256: str = ""
    gate_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    gate_owner: str = ""
    trust_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)  # by unit: of the attempt in flight
    gaps: dict[str, Plan] = field(default_factory=dict)  # by unit: what was told of the attempt in flight
    cramped: set[str] = field(default_factory=set)  # payloads that were refused memory beside what serves
    judged_again: set[str] = field(default_factory=set)  # units, since the device changed
    on_progress: Callable[[str], None] = lambda unit: None
    words: dict[str, Word] = field(default_factory=dict)  # by unit: what the application says of what serves
    checks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by unit: of what serves, in words

    def sideload_policy(self) -> str:
        """What a file may do on this device now."""
        return sideloads.effective(self.config.sideload.policy, str(self.stored.meta.get("sideload") or ""))

    def settled(self, unit: str) -> None:
        """The unit rests: nothing is remembered of what was in flight."""
        self.progress.pop(unit, None)
        self.manifests.pop(unit, None)
        self.gaps.pop(unit, None)
        self.release_gate(unit)

    def release_gate(self, unit: str) -> None:
        """The gate is free for the next unit."""
        if self.gate_owner == unit:
            self.gate_owner = ""
            self.gate_lock.release()

    async def trust_moved(self, trust: dict[str, Any] | None) -> None:
        """What a fetcher now trusts: floors, director, until when. Several fetchers may end in any order: one is taken
        after the other, and to its end whoever waits for it: journal and memory stay equal, and nothing falls."""
        if trust:
            await asyncio.shield(asyncio.ensure_future(self._trust_journaled(trust)))

    async def _trust_journaled(self, trust: dict[str, Any]) -> None:
        async with self.trust_lock:
            meta = self.stored.meta
            new = {**trust, "floors": floors.merged(meta.get("floors") or {}, trust.get("floors") or {})}
            if (meta.get("director") or {}).get("epoch", 0) > (trust.get("director") or {}).get("epoch", 0):
                new.pop("director", None)
            new[REVOKED] = revoked.merged(meta.get(REVOKED) or {}, trust.get(REVOKED) or {})
            changed = {key: value for key, value in new.items() if meta.get(key, {}) != value}
            if changed:
                before = time_floor.era(meta)
                await self.ports.journal.put_meta(changed)
                meta.update(changed)
                if time_floor.era(meta) > before:  # who had the server's keys may have said any time
                    self.ports.clock.forget_floor()

    def options(self, unit: str) -> dict[str, Any]:
        """What the host needs to know of the unit: with the releases that must not answer, by the owner's policy."""
        settings = self.config.unit(unit)
        names = revoked.refused(self.stored.meta, unit) if settings.revoked == "stop" else []
        return {**settings.options(), **({"revoked": names} if names else {})}

    def revocation(self, unit: str, manifest_sha256: str) -> dict[str, str] | None:
        """What is known of a revoked release; None: it is not revoked."""
        return revoked.of(self.stored.meta, unit, manifest_sha256)

    def revoked(self, unit: str, what: Installed) -> bool:
        """Whether a release in a slot was taken back by its signers."""
        return self.revocation(unit, what.manifest_sha256) is not None

    def surroundings(self, record: UnitRecord, manifest: Manifest | None) -> quarantine.Surroundings:
        """What a judgement of this attempt depends on."""
        limits = ""
        if manifest is not None:
            unit = self.config.unit(record.unit)
            limits = limits_digest({**effective_limits(manifest, unit.gate.limits()), "unit": unit.measured_with()})
        incumbent = record.confirmed.payload_sha256 if record.confirmed else ""
        return quarantine.surroundings(self.fingerprint, self.fingerprint_sha256, limits, incumbent)

    def to_remember(
        self, before: UnitRecord, after: UnitRecord, happened: Happened, at: str
    ) -> tuple[Quarantined, ...]:
        """The quarantine entries of a transition whose row remembers."""
        if happened.reason == REVOKED:
            return ()  # that is remembered by itself, and says nothing of the bytes
        around = self.surroundings(before, self.manifests.get(before.unit))
        if after.phase == Phase.RESTORING.value:
            left = before.confirmed
            if left is None:
                return ()
            late = happened.event is Event.TURNED_BAD
            why = happened.reason if late else "rolled_back"
            key = quarantine.key(why, left.payload_sha256, around, in_trial=late)
            known = any(one.key == key for one in self.stored.quarantine)  # it was to be left before, and could not
            return () if known else (Quarantined(key, left.payload_sha256, why, left.version, at),)
        attempt = after.attempt
        if attempt is None or not attempt.payload_sha256:
            return ()
        reason = attempt.failed_check or happened.reason
        in_trial = after.phase == Phase.REVERTED.value
        key = quarantine.key(reason, attempt.payload_sha256, around, in_trial=in_trial)
        return (Quarantined(key, attempt.payload_sha256, reason, attempt.wish.version, at),)


@dataclass(frozen=True)
class Step:
    """One effect of one unit."""

    shared: Shared
    record: UnitRecord
    unit: Unit

    @property
    def ports(self) -> Ports:
        """The world."""
        return self.shared.ports

    @property
    def name(self) -> str:
        """The unit's name."""
        return self.record.unit

    @property
    def attempt(self) -> Attempt:
        """The attempt in flight; an effect that needs one is never started without."""
        if self.record.attempt is None:
            raise AssertionError(f"{self.name}: {self.record.phase} without an attempt")
        return self.record.attempt

    def refuse_revoked(self) -> None:
        """Raises Never (`revoked`) where the attempt's release was taken back by its signers."""
        wish = self.attempt.wish
        known = self.shared.revocation(self.name, wish.manifest_sha256)
        if known is not None:
            raise Never(f"{self.name} {wish.version} was revoked: {known['reason']}", code=REVOKED, at=known["at"])

    def tell(self, **figures: Any) -> None:
        """Progress for people: `interlock-agent status`."""
        self.shared.progress[self.name] = figures
        self.shared.on_progress(self.name)
