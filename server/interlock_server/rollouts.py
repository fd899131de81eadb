"""Rollouts: a release to one device, to all with some labels, or to all; and their abort.

A rollout is its assignments, one a device. Their states are derived (core/rollout.py) and kept for listings.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from interlock_server.auditing import record
from interlock_server.core import releases, rollout, sideload
from interlock_server.core.access import Actor
from interlock_server.core.moments import stamp
from interlock_server.ports import Changed, Clock, Row, Rows, Store
from interlock_shared.errors import Conflict, NotFound

NAMED = 5  # devices in an error's text


def wish_of(row: Row) -> rollout.Wish:
    """An assignment's row as the core knows it."""
    return rollout.Wish(
        id=row["id"],
        order=row["number"],
        rollout=row["rollout"],
        device=row["device"],
        unit=row["unit"],
        version=row["version"],
        manifest_sha256=row["manifest_sha256"],
        cancelled=row["cancelled"],
    )


def _reached(row: Row) -> rollout.Wish:
    """A wish that was taken back after the device had switched (its release was withdrawn) has been newer all the same:
    what the device runs says nothing of the wishes before it."""
    wish = wish_of(row)
    return replace(wish, cancelled=wish.cancelled and row["state"] in rollout.NOT_SWITCHED)


async def _told(rows: Rows, assignment: str, ranks: Mapping[str, int]) -> list[rollout.Told]:
    found = []
    for row in await rows.list("events", assignment=assignment):
        document = row["document"]
        found.append(
            rollout.Told(
                order=(ranks.get(row["epoch"], 0), row["number"]),
                kind=row["kind"],
                unit=document.get("unit"),
                manifest_sha256=document.get("manifest_sha256"),
                epoch=row["epoch"],
                reason=document.get("reason", ""),
            )
        )
    return found


async def derive(rows: Rows, devices: Iterable[str], at: str) -> None:
    """Bring the kept states of these devices' assignments up to date, in the caller's transaction."""
    for device in devices:
        known = await rows.find("devices", id=device)
        report = known["reported"] if known else None
        ranks = {one["epoch"]: one["rank"] for one in await rows.list("epochs", device=device)}
        found = await rows.list("assignments", order="number", device=device)
        newest = rollout.wanted(_reached(row) for row in found)
        revoked = known is not None and known["revoked_at"] is not None
        files = sideload.held(report, (known or {}).get("sideloads") or {})
        for row in found:
            wish = wish_of(row)
            last = newest.get(wish.unit)
            newer = last is not None and last.order > wish.order
            told = await _told(rows, wish.id, ranks)
            file = files.get(wish.unit)
            back = file.version if file and file.blocks(wish.order, wish.manifest_sha256) else None
            now = rollout.standing(wish, told, newer=newer, report=report, file=back, revoked=revoked)
            if (now.state, now.reason) != (row["state"], row["reason"]):
                await rows.change("assignments", {"id": wish.id}, state=now.state, reason=now.reason, updated_at=at)


async def begin(rows: Rows, identity: str, release: Row, to: Mapping[str, Any], by: str, at: str) -> Row:
    """A new rollout, newer than all others; its row."""
    last = await rows.list("rollouts", order="number", newest=True, limit=1)
    row = {
        "id": identity,
        "number": last[0]["number"] + 1 if last else 1,
        "model": release["model"],
        "version": release["version"],
        "manifest_sha256": release["manifest_sha256"],
        "to": dict(to),
        "created_at": at,
        "created_by": by,
        "aborted_at": None,
        "ended": "",
    }
    await rows.insert("rollouts", **row)
    return row


async def assign(rows: Rows, begun: Row, device: str, at: str) -> None:
    """The rollout concerns this device."""
    await rows.insert(
        "assignments",
        id=f"a-{secrets.token_hex(8)}",
        number=begun["number"],
        rollout=begun["id"],
        device=device,
        unit=begun["model"],
        version=begun["version"],
        manifest_sha256=begun["manifest_sha256"],
        cancelled=False,
        state="offered",
        reason="",
        updated_at=at,
    )


class Rollouts:
    """Starting, aborting, looking."""

    def __init__(self, store: Store, clock: Clock, changed: Changed) -> None:
        self._store, self._clock, self._changed = store, clock, changed

    async def start(self, actor: Actor, model: str, version: str, to: Mapping[str, Any]) -> Row:
        """A rollout of a published release, to devices that are not revoked. Raises NotFound (`no_release`,
        `no_device`), Conflict (`release_pending`, `release_withdrawn`, `release_revoked`, `device_revoked`)."""
        at, identity = stamp(self._clock()), f"r-{secrets.token_hex(5)}"
        async with self._store.writing() as rows:
            release = await self._usable(rows, model, version)
            devices = await self._meant(rows, to)
            begun = await begin(rows, identity, release, to, actor.name, at)
            for device in devices:
                await assign(rows, begun, device, at)
            await derive(rows, devices, at)
            await record(rows, at, actor, "rollout.start", identity, release=f"{model} {version}", devices=len(devices))
        self._changed(devices)
        return await self.get(identity)

    @staticmethod
    async def _meant(rows: Rows, to: Mapping[str, Any]) -> list[str]:
        known = await rows.list("devices")
        meant = rollout.select(known, to)
        revoked = {one["id"] for one in known if one["revoked_at"] is not None}
        devices = [one for one in meant if one not in revoked]
        if devices:
            return devices
        if meant:
            names = ", ".join(meant[:NAMED]) + (", …" if len(meant) > NAMED else "")
            raise Conflict(
                f"every device that is meant by this is revoked: {names}; `interlock device token --device ID` lets "
                "one come back",
                code="device_revoked",
                to=dict(to),
            )
        waiting = to.get("device") and await rows.list("enrolments", device=to["device"], state="waiting", limit=1)
        why = f"{to['device']} waits for approval" if waiting else "no device is meant by this"
        raise NotFound(why, code="no_device", to=dict(to))

    @staticmethod
    async def _usable(rows: Rows, model: str, version: str) -> Row:
        found = await rows.find("releases", model=model, version=version)
        if found is not None and found["state"] != releases.PUBLISHING:
            releases.check_usable(f"{model} {version}", found["state"], found["ended_reason"] or "")
            return found
        if found is not None or await rows.find("proposals", model=model, version=version, action="publish"):
            raise Conflict(
                f"{model} {version} awaits signatures: `interlock release show {model} {version}`",
                code="release_pending",
            )
        raise NotFound(f"there is no release {model} {version}", code="no_release")

    async def abort(self, actor: Actor, identity: str) -> Row:
        """Take back what has not switched yet: these devices get their wish before, or none.

        Raises NotFound (`no_rollout`), Conflict (`rollout_aborted`).
        """
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            found = await self._known(rows, identity)
            if found["aborted_at"] is not None:
                raise Conflict(f"{identity} was {found['ended']} at {found['aborted_at']}", code="rollout_aborted")
            await rows.change("rollouts", {"id": identity}, aborted_at=at, ended="aborted")
            devices = []
            for row in await rows.list("assignments", rollout=identity):
                if row["state"] in rollout.NOT_SWITCHED:
                    await rows.change("assignments", {"id": row["id"]}, cancelled=True)
                    devices.append(row["device"])
            await derive(rows, devices, at)
            await record(rows, at, actor, "rollout.abort", identity, devices=len(devices))
        self._changed(devices)
        return await self.get(identity)

    @staticmethod
    async def _known(rows: Rows, identity: str) -> Row:
        found = await rows.find("rollouts", id=identity)
        if found is None:
            raise NotFound(f"there is no rollout {identity}", code="no_rollout")
        return found

    @staticmethod
    async def _view(rows: Rows, row: Row) -> Row:
        found = await rows.list("assignments", order="device", rollout=row["id"])
        states = [one["state"] for one in found]
        return {
            "id": row["id"],
            "model": row["model"],
            "version": row["version"],
            "manifest_sha256": row["manifest_sha256"],
            "to": row["to"],
            "state": rollout.rollout_state(row["ended"], states),
            "created_at": row["created_at"],
            "created_by": row["created_by"],
            "aborted_at": row["aborted_at"],
            "counts": rollout.counts(states),
            "assignments": [
                {
                    "assignment": one["id"],
                    "device": one["device"],
                    "state": one["state"],
                    "reason": one["reason"],
                    "updated_at": one["updated_at"],
                }
                for one in found
            ],
        }

    async def get(self, identity: str) -> Row:
        """One rollout. Raises NotFound (`no_rollout`)."""
        async with self._store.reading() as rows:
            return await self._view(rows, await self._known(rows, identity))

    async def listing(self, limit: int) -> list[Row]:
        """Rollouts, newest first."""
        async with self._store.reading() as rows:
            found = await rows.list("rollouts", order="number", newest=True, limit=limit)
            return [await self._view(rows, row) for row in found]

    async def counts(self) -> dict[str, int]:
        """Assignments by state."""
        async with self._store.reading() as rows:
            return await rows.count("assignments", "state")
