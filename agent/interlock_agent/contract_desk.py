"""The contract of a unit, for people: what it is, what would take its place, and the one way to change it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from interlock_agent.adapters.slots import SlotFolders
from interlock_agent.core import contract as contracts
from interlock_agent.core.records import UnitRecord
from interlock_shared import canonical
from interlock_shared import manifest as manifests
from interlock_shared.errors import Conflict, NotFound


class ContractDesk:
    """`forgive(payload, reason)` takes a payload out of the quarantine that is there for that reason."""

    def __init__(self, slots: SlotFolders, forgive: Callable[[str, str], Awaitable[int]]) -> None:
        self._slots, self._forgive = slots, forgive

    async def look(self, record: UnitRecord, candidate: bool) -> dict[str, Any]:
        """The contract and what is proposed. Raises NotFound when there is no such release."""
        return (await self._shown(record, candidate))[0]

    async def accept(self, record: UnitRecord, candidate: bool, digest: str) -> dict[str, Any]:
        """Make it the contract, if it is still what was shown. Raises NotFound, Conflict."""
        shown, payload = await self._shown(record, candidate)
        if shown["proposed_sha256"] != digest:
            raise Conflict(f"{record.unit}: it has changed since it was shown", code="contract_changed")
        await self._slots.set_contract(record.unit, shown["proposed"])
        forgiven = await self._forgive(payload, "contract_broken") if candidate else 0
        return {**shown, "contract": shown["proposed"], "difference": [], "accepted": True, "forgiven": forgiven}

    async def _shown(self, record: UnitRecord, candidate: bool) -> tuple[dict[str, Any], str]:
        """(what people see, the payload that it is about)."""
        release, proposed, payload = await self._proposed(record, candidate)
        kept = await self._slots.contract(record.unit)
        shown = {
            "unit": record.unit,
            "contract": kept,
            "release": release,
            "proposed": proposed,
            "proposed_sha256": canonical.sha256(canonical.encode(proposed)),
            "difference": contracts.difference(kept, proposed),
        }
        return shown, payload

    async def _proposed(self, record: UnitRecord, candidate: bool) -> tuple[str, dict[str, Any], str]:
        """(release, contract, payload)."""
        if candidate:
            return await self._refused(record.unit)
        confirmed = record.confirmed
        if confirmed is None:
            raise NotFound(f"{record.unit}: nothing is confirmed yet", code="nothing_confirmed")
        manifest = manifests.parse(await self._slots.manifest_of(record.unit, confirmed.slot))
        return manifest.release, contracts.contract_of(manifest.signature), confirmed.payload_sha256

    async def _refused(self, unit: str) -> tuple[str, dict[str, Any], str]:
        """From the newest verdict: the candidate itself may be gone."""
        verdict = await self._slots.verdict(unit) or {}
        for stage in verdict.get("stages", ()):
            for check in stage["checks"]:
                if check["check"] == "contract" and "offered" in check["detail"]:
                    release = f"{verdict['model']} {verdict['version']}"
                    return release, dict(check["detail"]["offered"]), str(verdict["payload_sha256"])
        raise NotFound(f"{unit}: the newest verdict refuses no contract", code="no_candidate")
