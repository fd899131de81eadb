"""What the agent says of itself: the reported document for the server, the status for people. The four facts (offered,
installed, confirmed, running now) are taken from where each of them is true, and never from one another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from interlock_agent.config import Config
from interlock_agent.core import revoked, sideloads, time_floor
from interlock_agent.core.records import UnitRecord
from interlock_agent.core.states import RESTING, Phase
from interlock_agent.core.times import rfc3339, seconds
from interlock_agent.engine import Engine
from interlock_agent.host import messages
from interlock_agent.ports import Ports
from interlock_shared import __version__
from interlock_shared.documents import REPORTED_SCHEMA
from interlock_shared.errors import Later, Refused

SKEW_S = 60.0  # by which clocks differ without a word


class HostView(Protocol):
    """What is to be known of the host beside its port."""

    version: str
    refusal: str


class BrokerView(Protocol):
    """What is to be known of the broker."""

    trouble: str

    @property
    def connected(self) -> bool:
        """Whether a session is open."""


class KeyView(Protocol):
    """What is to be known of the device's key: where it is, and what was wrong when it was last used."""

    key: str
    key_trouble: str

    def note(self) -> str: ...


class CertificateView(Protocol):
    """What is to be known of the device's certificate."""

    def describe(self) -> dict[str, str] | None:
        """Its end, its renewal, what is in the way."""

    def note(self) -> str:
        """What a person should know."""


def release_version(release: str) -> str | None:
    """The version of a release as the host names it (`model/version`)."""
    return release.rpartition("/")[2] or None


class InboxView(Protocol):
    """What is to be known of the watched folder."""

    trouble: str


class Describer:
    """Keeps the host's last word about each unit."""

    def __init__(self, engine: Engine, ports: Ports, host: HostView, config: Config) -> None:
        self._engine, self._ports, self._host, self._config = engine, ports, host, config
        self.broker: BrokerView | None = None
        self.inbox: InboxView | None = None
        self.refused: Mapping[str, int] = {}  # of the link: `document:reason` -> how many since the start
        self.certificate: CertificateView | None = None
        self.key: KeyView | None = None
        self.instance = ""  # of this start on this boot: two at once are two devices with one identity
        self.on_serving: Callable[[str], None] = lambda unit: None
        self._units: dict[str, dict[str, Any]] = {}
        self._looking: set[asyncio.Task[None]] = set()

    def host_event(self, event: dict[str, Any]) -> None:
        """Who answers has changed: look again, and report."""
        if event.get("event") in ("serving", "outcome", "worker_died"):
            task = asyncio.ensure_future(self.look(str(event.get("unit", ""))))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def look(self, unit: str = "") -> None:
        """Ask the host what it serves."""
        try:
            answer = await self._ports.host.request(messages.Status())
        except (Later, Refused):
            self._units = {}
            return
        self._units = {str(status["unit"]): status for status in answer["units"]}
        for name, status in self._units.items():
            self._engine.saw_generation(name, int(status.get("generation", 0)))
        if unit:
            self.on_serving(unit)

    async def _unit(self, record: UnitRecord) -> dict[str, Any]:
        host = self._units.get(record.unit, {})
        installed: dict[str, str | None] = {}
        for slot in ("a", "b"):
            seal = await self._ports.slots.seal_of(record.unit, slot)
            installed[slot] = str(seal["version"]) if seal else None
        attempt = record.attempt
        spare = "b" if host.get("confirmed_slot") == "a" else "a"
        return {
            "phase": record.phase,
            "generation": record.generation,
            "offered": self._offered(record),
            "installed": installed,
            "confirmed": release_version(str(host.get("confirmed", ""))) if host else _confirmed(record),
            "running": release_version(str(host.get("live", ""))),
            "address": host.get("address"),
            "reason": record.reason,
            "assignment": attempt.wish.assignment if attempt else None,
            "manifest_sha256": attempt.wish.manifest_sha256 if attempt else None,
            "sideload": sideloads.report(record.confirmed, self._engine.shared.sideload_policy()),
            "fallback": installed[spare] if host.get("confirmed_slot") else None,
            "alarm": self._alarm(record.unit).get("check"),
        }

    def _alarm(self, unit: str) -> dict[str, Any]:
        """What is wrong with the confirmed release, which stays; empty when nothing is."""
        return dict((self._engine.stored.meta.get("alarms") or {}).get(unit) or {})

    def _offered(self, record: UnitRecord) -> str | None:
        """What the server wants; while a file is being taken up, what that offers."""
        attempt, wanted = record.attempt, self._engine.shared.desired.get(record.unit)
        by_hand = attempt is not None and attempt.wish.origin == "sideload" and Phase(record.phase) not in RESTING
        if attempt is not None and (wanted is None or by_hand):
            return attempt.wish.version
        if record.confirmed and sideloads.stands(record.confirmed, wanted, self._engine.shared.sideload_policy()):
            return record.confirmed.version
        return wanted.version if wanted else None

    async def _units_now(self) -> dict[str, dict[str, Any]]:
        names = sorted(set(self._engine.stored.units) | set(self._units))
        return {name: await self._unit(self._engine.record(name)) for name in names}

    async def reported(self, number: int) -> dict[str, Any]:
        """The reported document."""
        await self.look()
        epoch, floor, _ = await self._ports.journal.outbox()
        shared, meta = self._engine.shared, self._engine.stored.meta
        return {
            "schema": REPORTED_SCHEMA,
            "device": self._engine.device,
            "number": number,
            "instance": self.instance,
            "outbox_epoch": epoch,
            "outbox_floor": floor,
            "agent": __version__,
            "host": self._host.version or None,
            "desired": meta.get("desired_at"),
            "fingerprint": shared.fingerprint,
            "fingerprint_sha256": shared.fingerprint_sha256,
            "units": await self._units_now(),
            "clock_floor": time_floor.told(meta),
            "refused": dict(self.refused),
            "notes": self._notes(),
        }

    def _notes(self) -> list[str]:
        notes = list(self._engine.stored.notes)
        if self._host.refusal:
            notes.append(f"host: {self._host.refusal}")
        if self.inbox is not None and self.inbox.trouble:
            notes.append(f"the inbox is not watched: {self.inbox.trouble}")
        clock, until = self._ports.clock, self._engine.stored.meta.get("signed_until")
        if clock.behind() > SKEW_S:
            notes.append(f"clock: it lies {clock.behind():.0f} s behind signed times, and is not believed")
        if until and clock.now() > seconds(str(until)):
            notes.append(f"trust: the metadata expired at {until} by this clock: nothing new before a refresh")
        notes += [one.note() for one in (self.key, self.certificate) if one is not None and one.note()]
        return notes

    async def status(self) -> dict[str, Any]:
        """For people: the report, with what is under way and what is in quarantine."""
        document = await self.reported(0)
        epoch, floor, following = await self._ports.journal.outbox()
        units: dict[str, Any] = document["units"]
        for name, unit in units.items():
            unit["until"] = _waits_until(self._engine.record(name))
            unit["progress"] = self._engine.shared.progress.get(name)
            unit["checks"] = self._engine.shared.checks.get(name, [])
            unit["gap"] = self._engine.shared.gaps[name].document() if name in self._engine.shared.gaps else {}
            unit["alarmed"] = self._alarm(name) or None
            unit["revoked"] = revoked.known(self._engine.stored.meta, name)
            unit["host"] = self._units.get(name)
        link = None if self.broker is None else {"connected": self.broker.connected, "trouble": self.broker.trouble}
        document["link"] = link
        document["key"] = {"place": self.key.key, "trouble": self.key.key_trouble} if self.key else None
        document["certificate"] = self.certificate.describe() if self.certificate else None
        document["outbox"] = {"epoch": epoch, "waiting": following - floor}
        document["quarantine"] = [
            {"payload_sha256": q.payload_sha256, "version": q.version, "reason": q.reason, "at": q.at}
            for q in self._engine.stored.quarantine
        ]
        return document


def _waits_until(record: UnitRecord) -> str | None:
    """When a wait ends; None where nothing waits, or for a person."""
    waits = record.phase == Phase.WAITING.value and record.attempt is not None and record.attempt.until > 0
    return rfc3339(record.attempt.until) if waits and record.attempt else None


def _confirmed(record: UnitRecord) -> str | None:
    return record.confirmed.version if record.confirmed else None
