"""What people and applications on the device may ask of the running agent. A table of verbs; the CLI speaks it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from interlock_agent.adapters.slots import SlotFolders
from interlock_agent.contract_desk import ContractDesk
from interlock_agent.core.readings import Word
from interlock_agent.engine import Engine
from interlock_agent.installer import Installer, Tell
from interlock_agent.ports import Ports
from interlock_shared.base import Name
from interlock_shared.errors import Invalid, NotFound, Refused
from interlock_shared.limits import EVENT_NOTE_MAX

HISTORY_MAX = 1000

__all__ = ["LocalApi", "Name"]


class LocalApi:
    """`handle` is the control socket's handler."""

    def __init__(
        self,
        engine: Engine,
        ports: Ports,
        slots: SlotFolders,
        installer: Installer,
        about: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._installer = installer
        self._engine, self._ports, self._slots, self._about = engine, ports, slots, about
        self._contracts = ContractDesk(slots, self._forgive_payload)
        self._verbs: dict[str, Callable[[dict[str, Any], int, Tell], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "history": self._history,
            "verdict": self._verdict,
            "install": self._install,
            "rollback": self._rollback,
            "unpin": self._unpin,
            "forgive": self._forgive,
            "contract": self._contract,
            "wait": self._wait,
            "health": self._health,
        }

    async def handle(self, op: str, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        """One request. Raises InterlockError."""
        verb = self._verbs.get(op)
        if verb is None or (descriptor >= 0 and op != "install"):
            if descriptor >= 0:
                os.close(descriptor)
            raise Invalid(f"no such request: {op}", code="bad_request", field="op", known=sorted(self._verbs))
        return await verb(fields, descriptor, tell)

    def _unit(self, fields: dict[str, Any]) -> str:
        unit = fields.get("unit")
        if not isinstance(unit, str) or unit not in self._engine.stored.units:
            known = ", ".join(sorted(self._engine.stored.units)) or "none"
            raise NotFound(f"no such model here: {unit}; there are: {known}", code="unknown_unit")
        return unit

    async def _status(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        del fields, descriptor, tell
        return await self._about()

    async def _history(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        del descriptor, tell
        unit = self._unit(fields) if fields.get("unit") else None
        limit = fields.get("limit", 50)
        if not isinstance(limit, int) or not 0 < limit <= HISTORY_MAX:
            raise Invalid(f"limit is between 1 and {HISTORY_MAX}", field="limit")
        return {"history": await self._ports.journal.history(unit, limit)}

    async def _verdict(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        del descriptor, tell
        unit = self._unit(fields)
        generation = fields.get("generation")
        document = await self._slots.verdict(unit, generation if isinstance(generation, int) else None)
        if document is None:
            kept = ", ".join(str(one) for one in await self._slots.verdicts(unit))
            there = f"those kept are of generation {kept}" if kept else "none is kept"
            raise NotFound(f"{unit}: there is no such verdict; {there}", code="no_verdict")
        return {"verdict": document}

    async def _install(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        del fields
        if descriptor < 0:
            raise Invalid("an install needs an open file", code="bad_request", field="descriptor")
        return await self._installer.install(descriptor, tell)

    async def _rollback(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        del descriptor
        unit = self._unit(fields)
        record = await self._engine.rollback(unit)
        assignment = record.attempt.wish.assignment if record.attempt else ""
        return await self._installer.follow(unit, assignment, tell)

    async def _unpin(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        del descriptor, tell
        record = await self._engine.unpin(self._unit(fields))
        return {"unit": record.unit, "version": record.confirmed.version if record.confirmed else None}

    async def _forgive(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        del descriptor, tell
        payload = str(fields.get("payload_sha256", ""))
        count = await self._forgive_payload(payload)
        woken = await self._engine.again(payload)
        if not count and not woken:
            message = "nothing with that payload is in quarantine, or waits for a person"
            raise NotFound(message, code="not_quarantined")
        return {"forgiven": count, "woken": woken}

    async def _forgive_payload(self, payload: str, reason: str = "") -> int:
        """How many entries; with a reason, none where there is one for another reason."""
        stored = self._engine.stored
        reasons = {entry.reason for entry in stored.quarantine if entry.payload_sha256 == payload}
        if reason and reasons != {reason}:
            return 0
        count = await self._ports.journal.forgive(payload)
        stored.quarantine[:] = [entry for entry in stored.quarantine if entry.payload_sha256 != payload]
        stored.spent = {key: value for key, value in stored.spent.items() if f":{payload}:" not in key}
        return count

    async def _contract(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        """Shown; with `accept`, the digest of what was shown, it becomes the contract."""
        del descriptor, tell
        record, candidate = self._engine.record(self._unit(fields)), fields.get("candidate") is True
        if "accept" in fields:
            return await self._contracts.accept(record, candidate, str(fields["accept"]))
        return await self._contracts.look(record, candidate)

    async def _health(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        """The application's word about what serves; it holds until the next word, the next switch, the agent's end."""
        del descriptor, tell
        unit, healthy, message = self._unit(fields), fields.get("healthy"), fields.get("message", "")
        if not isinstance(healthy, bool) or not isinstance(message, str):
            raise Invalid("health needs healthy (true or false), and message is a text", field="healthy")
        self._engine.shared.words[unit] = Word(healthy, message[:EVENT_NOTE_MAX])
        return {"unit": unit, "healthy": healthy, "phase": self._engine.record(unit).phase}

    async def _wait(self, fields: dict[str, Any], descriptor: int, tell: Tell) -> dict[str, Any]:
        """Until the unit is in one of `phases`, for at most `timeout_s`."""
        del descriptor, tell
        unit, phases = fields.get("unit"), fields.get("phases")
        if not isinstance(unit, str) or not isinstance(phases, list):
            raise Invalid("wait needs a unit and phases", code="bad_request", field="phases")
        timeout_s = float(fields.get("timeout_s", 60.0))
        try:
            record = await asyncio.wait_for(self._engine.wait(unit, lambda r: r.phase in phases), timeout_s)
        except asyncio.TimeoutError:
            phase = self._engine.record(unit).phase
            raise Refused(f"{unit}: still {phase} after {timeout_s:g} s", code="timeout") from None
        return {"unit": unit, "phase": record.phase, "reason": record.reason, "generation": record.generation}
