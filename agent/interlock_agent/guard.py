"""After the confirmation: the required checks go on for as long as a release serves, and one that turns bad goes back.

- It watches beside the units' runners, in every phase in which the confirmed release answers: also while another one
  is fetched or judged, or after that was rejected. It changes no phase; it gives the engine an order, as a person does.
- Back means the previous confirmed release, where it is intact and not itself in quarantine here. What was left is put
  there, so that two that are bad are not swapped for ever: the second stays, and alarms.
- An alarm is durable, told to the server, and over when the checks are well again or something else is confirmed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from interlock_agent.config import Config, Unit
from interlock_agent.core import quarantine
from interlock_agent.core.probes import PASSING, Probe, after_confirmation, of_check
from interlock_agent.core.records import Installed, UnitRecord
from interlock_agent.core.reports import of_installed, told_as
from interlock_agent.core.revoked import REVOKED
from interlock_agent.core.states import BEFORE_SWITCH, RESTING, Event, Phase
from interlock_agent.core.times import rfc3339
from interlock_agent.engine import Engine
from interlock_agent.ports import Ports
from interlock_agent.steps.probing import Watched, Watcher
from interlock_shared import manifest as manifests
from interlock_shared.errors import Busy, InterlockError, Later, NotFound
from interlock_shared.health import Health
from interlock_shared.manifest import Manifest

log = logging.getLogger("interlock.guard")

TICK_S = 1.0  # between two looks at what is due
AGAIN_S = 60.0  # after a way back that led nowhere, the next one; twice as long each time
AGAIN_MAX_S = 3600.0
WATCHES = frozenset(phase.value for phase in (*RESTING, *BEFORE_SWITCH, Phase.INTERRUPTED))


@dataclass
class Tried:
    """A way back from a release that did not end in the one before. `next`: seconds of the clock that only goes on."""

    confirmed: Installed
    next: float
    wait_s: float = AGAIN_S


@dataclass
class Watch:
    """One confirmed release that serves."""

    confirmed: Installed
    watcher: Watcher


class Guard:
    """Watches every unit's confirmed release; `run` it once the engine was loaded."""

    def __init__(self, engine: Engine, ports: Ports, config: Config) -> None:
        self._engine, self._ports, self._config = engine, ports, config
        self._watches: dict[str, Watch] = {}
        self._tried: dict[str, Tried] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                for unit in sorted(self._engine.stored.units):
                    try:
                        await self._look(unit)
                    except Exception as fault:  # noqa: BLE001  # one unit's trouble leaves the others watched
                        await self._unwatched(unit, fault)
                await self._ports.clock.sleep(TICK_S)
        finally:
            for unit in list(self._watches):
                await self._end(unit)

    async def _unwatched(self, unit: str, fault: Exception) -> None:
        """What cannot be watched is nobody's to trust: its manifest cannot be read, say."""
        if not isinstance(fault, InterlockError):
            self._engine.on_fault(unit, fault)
        log.warning("not watched: %s", fault, extra={"unit": unit})
        record = self._engine.record(unit)
        if record.confirmed is not None and not isinstance(fault, Later):
            seen = {"check": "watch", "message": str(fault)[:500]}
            await self._alarm(record, record.confirmed, seen, "not_watched")

    async def _look(self, unit: str) -> None:
        record = self._engine.record(unit)
        if await self._attempt_revoked(record):
            return
        known = self._watches.get(unit)
        if record.confirmed is None or record.phase not in WATCHES:
            await self._end(unit)
            return
        if known is None or known.confirmed != record.confirmed:
            await self._end(unit)
            known = self._watches[unit] = Watch(record.confirmed, await self._begin(record, record.confirmed))
        await known.watcher.look()
        self._engine.shared.checks[unit] = known.watcher.rows()
        revocation = self._engine.shared.revocation(unit, record.confirmed.manifest_sha256)
        if revocation is not None:
            await self._revoked(record, record.confirmed, revocation)
            return
        failing = known.watcher.board.failing()
        if failing:
            await self._bad(record, known, failing)
        else:
            await self._well(record, known)

    async def _end(self, unit: str) -> None:
        watch = self._watches.pop(unit, None)
        if watch is not None:
            self._engine.shared.checks.pop(unit, None)
            await watch.watcher.close()

    async def _begin(self, record: UnitRecord, confirmed: Installed) -> Watcher:
        slots, settings = self._ports.slots, self._config.unit(record.unit)
        manifest = manifests.parse(await slots.manifest_of(record.unit, confirmed.slot))
        variant = str((await slots.seal_of(record.unit, confirmed.slot) or {}).get("variant", ""))
        watched = Watched(record.unit, confirmed.version, manifest, variant, felt=confirmed.felt)
        return Watcher(self._engine.shared, settings, watched, probes_of(manifest, settings))

    # --- what follows -----------------------------------------------------------------------------------------------

    async def _bad(self, record: UnitRecord, watch: Watch, check: str) -> None:
        seen = {"check": check, "message": watch.watcher.board.message(check), **watch.watcher.seen()}
        why = self._stays(record)
        if not why:
            try:
                await self._engine.order(record.unit, Event.TURNED_BAD, check, seen)
                self._goes_back(record.unit, watch.confirmed)
                return
            except Busy:
                return  # it is just being switched: what comes is watched in its trial
            except NotFound:
                why = "no_fallback"
        await self._alarm(record, watch.confirmed, seen, why)

    async def _attempt_revoked(self, record: UnitRecord) -> bool:
        """What is in flight and was revoked is not switched to, and not confirmed."""
        attempt, phase = record.attempt, Phase(record.phase)
        if attempt is None or phase not in (*BEFORE_SWITCH, Phase.INTERRUPTED, Phase.TRIAL):
            return False
        if self._engine.shared.revocation(record.unit, attempt.wish.manifest_sha256) is None:
            return False
        try:
            out = Event.ROLLBACK if phase is Phase.TRIAL else Event.CANCEL
            await self._engine.order(record.unit, out, REVOKED)
        except (Busy, NotFound):
            return False  # it has just gone on: the next look
        return True

    async def _revoked(self, record: UnitRecord, confirmed: Installed, known: dict[str, str]) -> None:
        """The owner's word about a release that serves, and was taken back by its signers."""
        seen = {"check": REVOKED, "message": known["reason"], "revoked_at": known["at"]}
        policy = self._config.unit(record.unit).revoked
        why = self._no_way_back(record) if policy == "back" else policy
        if not why:
            try:
                await self._engine.order(record.unit, Event.TURNED_BAD, REVOKED, seen)
                self._goes_back(record.unit, confirmed)
                return
            except Busy:
                return
            except NotFound:
                why = "no_fallback"
        told = (self._engine.stored.meta.get("alarms") or {}).get(record.unit) or {}
        if policy == "stop" and (told.get("check"), told.get("why")) != (REVOKED, "stop"):
            await self._engine.configure(record.unit)  # later ones are made whenever the host is there again
        await self._alarm(record, confirmed, seen, why)

    def _goes_back(self, unit: str, confirmed: Installed) -> None:
        now, tried = self._ports.clock.monotonic(), self._tried.get(unit)
        again = tried is not None and tried.confirmed == confirmed
        wait_s = min(2 * tried.wait_s, AGAIN_MAX_S) if tried is not None and again else AGAIN_S
        self._tried[unit] = Tried(confirmed, now + wait_s, wait_s)

    def _stays(self, record: UnitRecord) -> str:
        """Why the device does not go back by itself; "" when it does."""
        if self._config.unit(record.unit).health.late_revert == "alarm":
            return "policy"
        return self._no_way_back(record)

    def _no_way_back(self, record: UnitRecord) -> str:
        """Why the previous release cannot take the place of what serves; "" when it can."""
        if record.phase == Phase.PASSED.value:
            return "being_replaced"
        if record.previous is None:
            return "no_fallback"
        shared = self._engine.shared
        if shared.revocation(record.unit, record.previous.manifest_sha256) is not None:
            return "fallback_revoked"
        around = shared.surroundings(record, None)
        found = quarantine.find(self._engine.stored.quarantine, record.previous.payload_sha256, around)
        if found is not None:
            return "fallback_quarantined"
        tried = self._tried.get(record.unit)
        waits = tried is not None and tried.confirmed == record.confirmed
        return "tried_in_vain" if tried and waits and self._ports.clock.monotonic() < tried.next else ""

    async def _alarm(self, record: UnitRecord, confirmed: Installed, seen: dict[str, Any], why: str) -> None:
        alarms = dict(self._engine.stored.meta.get("alarms") or {})
        told = alarms.get(record.unit) or {}
        about = (seen["check"], why, confirmed.manifest_sha256)
        if (told.get("check"), told.get("why"), told.get("manifest_sha256")) == about:
            return
        at = rfc3339(self._ports.clock.now())
        alarm = {"check": seen["check"], "why": why, "message": seen["message"], "at": at}
        alarms[record.unit] = {**alarm, "version": confirmed.version, "manifest_sha256": confirmed.manifest_sha256}
        data = {**seen, "action": "stop" if why == "stop" else "alarm", "why": why}
        entry = of_installed(told_as(str(seen["check"])), record, confirmed, at, str(seen["check"]), data)
        log.error("alarm: %s: %s (%s)", seen["check"], seen["message"], why, extra={"unit": record.unit})
        await self._remember(record.unit, alarms, entry)

    async def _well(self, record: UnitRecord, watch: Watch) -> None:
        """An alarm is over when what raised it passes again, or is about a release that is no longer confirmed."""
        alarms = dict(self._engine.stored.meta.get("alarms") or {})
        alarm = alarms.get(record.unit)
        if alarm is None:
            return
        replaced = alarm.get("manifest_sha256") != watch.confirmed.manifest_sha256
        standing = watch.watcher.board.standings.get(str(alarm.get("check")))
        if not replaced and standing is not None and standing.outcome != PASSING:
            return
        del alarms[record.unit]
        at = rfc3339(self._ports.clock.now())
        data = {"alarm": alarm, "why": "replaced" if replaced else "passes"}
        await self._remember(
            record.unit, alarms, of_installed("recovered", record, watch.confirmed, at, str(alarm["check"]), data)
        )

    async def _remember(self, unit: str, alarms: dict[str, Any], entry: dict[str, Any]) -> None:
        try:
            await self._ports.journal.put_meta({"alarms": alarms}, (entry,))
        except Later as error:  # the next look writes it
            log.error("alarm: %s", error.message, extra={"unit": unit})
            return
        self._engine.stored.meta["alarms"] = alarms
        self._engine.on_change(unit)


def probes_of(manifest: Manifest, settings: Unit) -> tuple[Probe, ...]:
    """What is asked of a confirmed release: the manifest's checks and the owner's, cheaper."""
    health: Health = manifest.health
    owner = settings.health
    probes = (*map(of_check, health.effective()), *owner.owners())
    return after_confirmation(probes, owner.late_period_s, owner.late_failures)
