"""Releases that files brought to devices: heard of once, decided once (core/sideload.py), unpinned by people."""

from __future__ import annotations

from typing import Any

from interlock_server.auditing import record
from interlock_server.core import sideload
from interlock_server.core.access import Actor
from interlock_server.core.moments import stamp
from interlock_server.ports import Changed, Clock, Row, Rows, Store
from interlock_server.rollouts import derive
from interlock_shared.documents import Reported
from interlock_shared.errors import NotFound


async def heard(rows: Rows, row: Row, reported: Reported) -> dict[str, Any]:
    """By unit, what is kept of the file's releases in a report; those that it no longer has are forgotten."""
    before, kept = row["sideloads"] or {}, {}
    for unit, told in reported.units.items():
        file = told.sideload
        if file is None:
            continue
        known = before.get(unit)
        if known is not None and known["assignment"] == file.assignment:
            kept[unit] = known
            continue
        wishes = await rows.list("assignments", device=row["id"], unit=unit)
        started = {one["id"]: one for one in await rows.list("rollouts", model=unit)}
        facts = [(one["id"], one["number"], started[one["rollout"]]["created_at"]) for one in wishes]
        older = sideload.older(file.at, file.knew, facts)
        kept[unit] = {"assignment": file.assignment, "older": older, "unpinned": False}
    return kept


class Sideloads:
    """What people may say of them."""

    def __init__(self, store: Store, clock: Clock, changed: Changed) -> None:
        self._store, self._clock, self._changed = store, clock, changed

    async def unpin(self, actor: Actor, device: str, unit: str) -> Row:
        """Let what is wanted replace what a file brought. Raises NotFound (`no_device`, `not_sideloaded`)."""
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            row = await rows.find("devices", id=device)
            if row is None:
                raise NotFound(f"there is no device {device}", code="no_device")
            file = sideload.held(row["reported"], row["sideloads"] or {}).get(unit)
            if file is None:
                raise NotFound(f"{device}: no file's release stands for {unit}", code="not_sideloaded")
            kept = dict(row["sideloads"])
            kept[unit] = {**kept[unit], "unpinned": True}
            await rows.change("devices", {"id": device}, sideloads=kept)
            await derive(rows, [device], at)
            await record(rows, at, actor, "device.unpin", device, unit=unit, version=file.version)
        self._changed([device])
        return {"device": device, "unit": unit, "version": file.version}
