"""Devices: what is known of them, what they said. How they join is in identities.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from interlock_server.auditing import record
from interlock_server.core import desired
from interlock_server.core.access import Actor
from interlock_server.core.moments import stamp
from interlock_server.ports import Clock, Row, Rows, Store
from interlock_shared.errors import Conflict, NotFound

FACTS = ("offered", "confirmed", "running", "phase", "reason", "alarm", "sideload")


def _matches(row: Row, labels: Mapping[str, str]) -> bool:
    return labels.items() <= dict(row["labels"]).items()


class Devices:
    """Views, and what a restore leaves to be put right."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def reconcile(self, actor: Actor, device: str, epoch: int) -> int:
        """Number the next desired document after what the device has accepted, and make one; that counter. `epoch`: the
        director's.

        Raises NotFound (`no_device`), Conflict (`not_ahead`, `director_epoch`, `counter_jump`)."""
        async with self._store.writing() as rows:
            row = await self._known(rows, device)
            if desired.ahead((row["epoch"], row["counter"]), row["reported"]) is None:
                raise Conflict(f"{device} has accepted nothing newer than what was sent here", code="not_ahead")
            known = row["counter"] if row["epoch"] == epoch else 0
            counter = desired.goes_on_from((epoch, known), row["reported"])
            at, sent = stamp(self._clock()), [row["epoch"], row["counter"]]
            await rows.change("devices", {"id": device}, epoch=epoch, counter=counter, desired_units=None)
            await record(rows, at, actor, "device.reconcile", device, sent=sent, counter=[epoch, counter])
        return counter

    # --- views -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _view(row: Row) -> Row:
        reported = row["reported"] or {}
        units: dict[str, Row] = {}
        for model, wish in (row["desired_units"] or {}).items():
            units[model] = {"installed": {}, **dict.fromkeys(FACTS), "offered": wish["version"], "phase": "offered"}
        for model, unit in reported.get("units", {}).items():
            known = {fact: unit.get(fact) for fact in (*FACTS, "installed")}
            known["offered"] = units[model]["offered"] if model in units else known["offered"]
            units[model] = known
        return {
            "id": row["id"],
            "labels": row["labels"],
            "online": row["online"],
            "last_seen": row["last_seen"],
            "agent": reported.get("agent", row["agent"]),
            "revoked_at": row["revoked_at"],
            "clone": row["clone"],
            "units": units,
            "ahead": desired.ahead((row["epoch"], row["counter"]), row["reported"]) is not None,
            "refused": reported.get("refused", {}),
        }

    async def listing(self, labels: Mapping[str, str]) -> list[Row]:
        """Devices that have all these labels."""
        async with self._store.reading() as rows:
            found = await rows.list("devices", order="id")
        return [self._view(row) for row in found if _matches(row, labels)]

    async def _known(self, rows: Rows, device: str) -> Row:
        found = await rows.find("devices", id=device)
        if found is None:
            raise NotFound(f"there is no device {device}", code="no_device")
        return found

    async def detail(self, device: str) -> Row:
        """All that is known of a device. Raises NotFound (`no_device`)."""
        async with self._store.reading() as rows:
            row = await self._known(rows, device)
            assignments = await rows.list("assignments", order="number", newest=True, device=device)
            epochs = await rows.list("epochs", order="rank", device=device)
            certificates = await rows.list("certificates", order="issued_at", newest=True, device=device)
        gaps = [{"epoch": one["epoch"], "first": f, "last": t} for one in epochs for f, t in one["lost"]]
        return {
            **self._view(row),
            "enrolled_at": row["enrolled_at"],
            "keyid": row["key"]["keyid"],
            "certificates": [{name: one[name] for name in CERTIFICATE} for one in certificates],
            "refused_messages": row["refused"],
            "reported": row["reported"],
            "desired": self._desired(row),
            "assignments": [
                {"assignment" if name == "id" else name: one[name] for name in SHOWN} for one in assignments
            ],
            "events_gap": gaps or None,
            "events": [{"epoch": one["epoch"], "upto": one["upto"]} for one in epochs],
        }

    @staticmethod
    def _desired(row: Row) -> Row | None:
        if row["desired"] is None:
            return None
        return {"counter": row["counter"], "issued_at": row["desired_issued_at"], "units": row["desired_units"]}

    async def desired(self, device: str) -> Row | None:
        """The newest desired document's envelope; None when nothing was ever wanted of the device."""
        async with self._store.reading() as rows:
            row = await self._known(rows, device)
        return None if row["desired"] is None else dict(json.loads(row["desired"]))

    async def history(self, device: str, limit: int, before: int | None) -> list[Row]:
        """The device's events, newest first. Raises NotFound (`no_device`)."""
        async with self._store.reading() as rows:
            await self._known(rows, device)
        return await self.events(limit, before, device=device)

    async def events(self, limit: int, before: int | None, **where: Any) -> list[Row]:
        """Events of all devices, newest first; `before`: the `id` that the page before ended with."""
        if before is not None:
            where["id"] = ("<", before)
        async with self._store.reading() as rows:
            found = await rows.list("events", order="id", newest=True, limit=limit, **where)
        return [{"id": one["id"], "received_at": one["received_at"], **one["document"]} for one in found]

    async def verdicts(self, device: str, limit: int) -> list[Row]:
        """The device's verdicts, newest first. Raises NotFound (`no_device`)."""
        async with self._store.reading() as rows:
            await self._known(rows, device)
            found = await rows.list("verdicts", order="id", newest=True, limit=limit, device=device)
        return [
            {
                "id": one["id"],
                "received_at": one["received_at"],
                "verdict": one["document"],
                "verified": one["verified"],
                "error": one["error"],
            }
            for one in found
        ]

    async def verdict(self, device: str, number: int) -> Row:
        """One verdict document that the device has signed. Raises NotFound (`no_device`, `no_verdict`)."""
        async with self._store.reading() as rows:
            await self._known(rows, device)
            found = await rows.find("verdicts", id=number, device=device)
        if found is None or found["document"] is None:
            raise NotFound(f"{device} has no readable verdict {number}", code="no_verdict")
        return dict(found["document"])


CERTIFICATE = ("serial", "keyid", "issued_at", "expires_at", "first_used_at", "revoked_at", "reason")
SHOWN = ("id", "rollout", "unit", "version", "manifest_sha256", "state", "reason", "updated_at")
