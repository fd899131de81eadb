"""Devices: how they join, what is known of them, what they said."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from interlock_server.auditing import record
from interlock_server.core.access import DEVICE_TOKEN, Actor, digest
from interlock_server.core.moments import stamp
from interlock_server.ports import Clock, Joined, Row, Rows, Store
from interlock_shared import trust
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound

SECRET_BYTES = 32
FACTS = ("offered", "confirmed", "running", "phase", "reason", "alarm")


def _matches(row: Row, labels: Mapping[str, str]) -> bool:
    return labels.items() <= dict(row["labels"]).items()


class Devices:
    """Enrolment and views."""

    def __init__(self, store: Store, clock: Clock, joined: Joined | None = None) -> None:
        self._store, self._clock, self._joined = store, clock, joined

    # --- joining ---------------------------------------------------------------------------------------------------

    async def invite(
        self, actor: Actor, labels: Mapping[str, str], device: str | None, hours: float
    ) -> tuple[str, str]:
        """A one-time enrolment token and when it expires. `device`: the id that the device will have."""
        token, now = DEVICE_TOKEN + secrets.token_urlsafe(SECRET_BYTES), self._clock()
        expires = stamp(now + timedelta(hours=hours))
        async with self._store.writing() as rows:
            await rows.insert(
                "device_tokens",
                sha256=digest(token),
                labels=dict(labels),
                device=device,
                created_at=stamp(now),
                created_by=actor.name,
                expires_at=expires,
                used_at=None,
                used_by=None,
            )
            await record(rows, stamp(now), actor, "device.invite", device or "any", labels=dict(labels))
        return token, expires

    async def enrol(self, token: str, key: Mapping[str, Any], name: str | None, agent: str, address: str) -> Row:
        """Use up a token: `{"device", "password", "labels"}`.

        Raises Forbidden (`unauthenticated`), Invalid (the key), Conflict (`device_exists`).
        """
        self._check_key(key)
        at, sha256 = stamp(self._clock()), digest(token)
        async with self._store.writing() as rows:
            invitation = await rows.find("device_tokens", sha256=sha256, used_at=None)
            if invitation is None or invitation["expires_at"] <= at:
                raise Forbidden("the token is unknown, used or expired: ask for a new one", code="unauthenticated")
            device = invitation["device"] or name or f"device-{secrets.token_hex(4)}"
            await rows.change("device_tokens", {"sha256": sha256, "used_at": None}, used_at=at, used_by=device)
            password = secrets.token_urlsafe(SECRET_BYTES)
            identity = {
                "labels": invitation["labels"],
                "key": {"keyid": key["keyid"], "key": key["key"]},
                "password_sha256": digest(password),
                "enrolled_at": at,
                "agent": agent,
            }
            await self._join(rows, device, identity, again=invitation["device"] is not None)
            actor = Actor(f"token of {invitation['created_by']}", "device", address)
            await record(rows, at, actor, "device.enrol", device, keyid=key["keyid"])
            if self._joined is not None:  # a broker that was not told is an enrolment that did not happen
                await self._joined(device, password)
        return {"device": device, "password": password, "labels": invitation["labels"]}

    @staticmethod
    def _check_key(key: Mapping[str, Any]) -> None:
        loaded = trust.load_keys({key["keyid"]: key["key"]})[0]
        if loaded.keytype != "ed25519":
            raise Invalid(f"key: {loaded.keytype} keys are not taken, ed25519 is expected", field="key")

    @staticmethod
    async def _join(rows: Rows, device: str, identity: Row, *, again: bool) -> None:
        fresh = {"online": False, "last_seen": None, "reported": None, "counter": 0, "refused": 0}
        unsent = {"desired": None, "desired_units": None, "desired_issued_at": None}
        if await rows.insert_new("devices", id=device, **identity, **fresh, **unsent):
            return
        if not again:
            raise Conflict(
                f"{device} is enrolled; a token made for exactly this device id replaces its identity",
                code="device_exists",
            )
        # The counter stays: a device with new keys may still remember how far the old one came.
        await rows.change("devices", {"id": device}, **identity)

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
            "units": units,
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
        gaps = [{"epoch": one["epoch"], "first": f, "last": t} for one in epochs for f, t in one["lost"]]
        return {
            **self._view(row),
            "enrolled_at": row["enrolled_at"],
            "keyid": row["key"]["keyid"],
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


SHOWN = ("id", "rollout", "unit", "version", "manifest_sha256", "state", "reason", "updated_at")
