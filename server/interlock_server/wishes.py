"""Desired documents: what is wanted of each device, signed, numbered, stored, then sent.

A new document is made only when the content changes or the old one nears its expiry; else the very same envelope is
sent again, so that a device sees a repetition for what it is. The counter is stored before the document leaves.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from interlock_server.core import rollout
from interlock_server.core.moments import parse, stamp
from interlock_server.core.releases import DIRECTOR_EPOCH
from interlock_server.ports import Clock, Row, Rows, Sealer, Store
from interlock_server.rollouts import wish_of
from interlock_shared import trust
from interlock_shared.documents import Assignment, Desired

LIFETIME = timedelta(days=90)  # a device cut off for longer keeps serving; it only takes up nothing new
RENEW_AFTER = timedelta(days=45)


class Wishes:
    """Keeps every device's document equal to what its rollouts say."""

    def __init__(self, store: Store, sealer: Sealer, clock: Clock, spread_s: float = 0.0) -> None:
        self._store, self._sealer, self._clock, self._spread_s = store, sealer, clock, spread_s

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
            units = await self._units(rows, device)
            if not self._stale(row, units, now):
                return row["desired"] if row["desired"] is None else bytes(row["desired"])
            counter = max(row["counter"], self._seen(row)) + 1
            envelope = self._seal(device, counter, units, now)
            await rows.change(
                "devices",
                {"id": device},
                counter=counter,
                desired=envelope,
                desired_units=units,
                desired_issued_at=stamp(now),
            )
            return envelope

    @staticmethod
    def _stale(row: Row, units: dict[str, Any], now: datetime) -> bool:
        if row["desired"] is None:
            return bool(units)
        return bool(row["desired_units"] != units or now - parse(row["desired_issued_at"]) > RENEW_AFTER)

    @staticmethod
    def _seen(row: Row) -> int:
        """The counter that the device has accepted: after a restore from a backup it is ahead of the database."""
        epoch, counter = (row["reported"] or {}).get("desired") or (0, 0)
        plausible = epoch == DIRECTOR_EPOCH and 0 <= counter - row["counter"] < trust.COUNTER_JUMP_MAX
        return int(counter) if plausible else 0

    @staticmethod
    async def _units(rows: Rows, device: str) -> dict[str, Any]:
        wishes = rollout.wanted([wish_of(row) for row in await rows.list("assignments", device=device)])
        return {
            unit: Assignment(
                version=wish.version,
                manifest_sha256=wish.manifest_sha256,
                assignment=wish.id,
                rollout=wish.rollout,
            ).model_dump(mode="json")
            for unit, wish in sorted(wishes.items())
        }

    def _seal(self, device: str, counter: int, units: dict[str, Any], now: datetime) -> bytes:
        desired = Desired(
            device=device,
            epoch=DIRECTOR_EPOCH,
            counter=counter,
            issued_at=stamp(now),
            expires_at=stamp(now + LIFETIME),
            units={unit: Assignment(**wish) for unit, wish in units.items()},
            start_spread_s=self._spread_s,
        )
        return self._sealer.seal(desired, trust.DESIRED_TYPE)
