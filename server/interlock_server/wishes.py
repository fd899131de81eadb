"""Desired documents: what is wanted of each device, signed, numbered, stored, then sent.

A new document is made only when the content changes or the old one nears its expiry; else the very same envelope is
sent again, so that a device sees a repetition for what it is. The counter is stored before the document leaves.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from interlock_server.core import desired, rollout, sideload
from interlock_server.core.moments import parse, stamp
from interlock_server.ports import Clock, Row, Rows, Sealer, Store
from interlock_server.rollouts import wish_of
from interlock_shared import trust
from interlock_shared.documents import Assignment, Desired
from interlock_shared.errors import Conflict

LIFETIME = timedelta(days=90)  # a device cut off for longer keeps serving; it only takes up nothing new
RENEW_AFTER = timedelta(days=45)


class Wishes:
    """Keeps every device's document equal to what its rollouts say. A device that is ahead (core/desired.py) gets none
    before it was reconciled."""

    def __init__(self, store: Store, sealer: Sealer, clock: Clock, spread_s: float = 0.0, policy: str = "") -> None:
        self._store, self._sealer, self._clock, self._spread_s = store, sealer, clock, spread_s
        self._policy: Any = policy or None  # of files, for all devices

    async def devices(self) -> list[str]:
        """All ids."""
        async with self._store.reading() as rows:
            return [row["id"] for row in await rows.list("devices", order="id")]

    async def due(self, device: str) -> bytes | None:
        """The document to send to the device: the stored one, or a new one (stored by now); None: nothing was ever
        wanted of it.
        """
        now = self._clock()
        async with self._store.writing() as rows:
            row = await rows.find("devices", id=device)
            if row is None:
                return None
            units = await self._units(rows, row)
            epoch = self._sealer.epoch
            ahead = desired.ahead((row["epoch"], row["counter"]), row["reported"])
            if ahead is not None and ahead[0] >= epoch:  # under a later epoch nobody is ahead
                return None  # until a person has looked: it is not pushed back to what a backup says
            if not self._stale(row, units, now, epoch):
                return row["desired"] if row["desired"] is None else bytes(row["desired"])
            known = row["counter"] if row["epoch"] == epoch else 0  # each epoch counts from the beginning
            try:
                counter = desired.goes_on_from((epoch, known), row["reported"]) + 1
            except Conflict:
                counter = known + 1  # what it says of itself is not plausible
            envelope = self._seal(device, (epoch, counter), units, now)
            await rows.change(
                "devices",
                {"id": device},
                counter=counter,
                epoch=epoch,
                desired=envelope,
                desired_units=units,
                desired_issued_at=stamp(now),
                desired_sideload=self._policy,
            )
            return envelope

    def _stale(self, row: Row, units: dict[str, Any], now: datetime, epoch: int) -> bool:
        if row["desired"] is None:
            return bool(units or self._policy)
        if row["epoch"] != epoch:
            return True  # the director has another key: devices no longer believe the old one
        if row["desired_sideload"] != self._policy:
            return True
        return bool(row["desired_units"] != units or now - parse(row["desired_issued_at"]) > RENEW_AFTER)

    @staticmethod
    async def _units(rows: Rows, row: Row) -> dict[str, Any]:
        """What is wanted of each unit; nothing where a file's release stands in the wish's place."""
        wishes = rollout.wanted([wish_of(one) for one in await rows.list("assignments", device=row["id"])])
        files, units = sideload.held(row["reported"], row["sideloads"] or {}), {}
        for unit, wish in sorted(wishes.items()):
            file = files.get(unit)
            if file is None or not file.blocks(wish.order, wish.manifest_sha256):
                made = Assignment(
                    version=wish.version,
                    manifest_sha256=wish.manifest_sha256,
                    assignment=wish.id,
                    rollout=wish.rollout,
                    over=file.assignment if file else None,
                    unpinned=bool(file and file.unpinned),
                )
                units[unit] = made.model_dump(mode="json")
        return units

    def _seal(self, device: str, place: tuple[int, int], units: dict[str, Any], now: datetime) -> bytes:
        document = Desired(
            device=device,
            epoch=place[0],
            counter=place[1],
            issued_at=stamp(now),
            expires_at=stamp(now + LIFETIME),
            units={unit: Assignment(**wish) for unit, wish in units.items()},
            start_spread_s=self._spread_s,
            sideload=self._policy,
        )
        return self._sealer.seal(document, trust.DESIRED_TYPE)
