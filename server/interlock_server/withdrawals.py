"""A release that is wanted no more: withdrawn by an operator, online and at once; or revoked by its signers.

Withdrawn, no desired document names it, its rollouts end, and a device that confirmed it is moved: it is asked to run
the newest release that it confirmed before and that is still good, by a rollout of the server's own. A device that is
just in its trial is moved when that ends. Revoked, a device acts by its owner's word, and nobody moves it from here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from interlock_server.auditing import record
from interlock_server.core.access import Actor
from interlock_server.core.moments import stamp
from interlock_server.core.releases import PUBLISHED, REVOKED, REVOKING, WITHDRAWN, refuse_revoked
from interlock_server.ports import Changed, Clock, Row, Rows, Store
from interlock_server.rollouts import assign, begin, derive
from interlock_shared.errors import Conflict, NotFound


async def end(
    rows: Rows, model: str, version: str, by: str, reason: str, at: str, *, state: str, **values: Any
) -> list[str]:
    """In the caller's transaction: the release is in that state, its rollouts are over, nobody is asked to run it. The
    devices that this concerns."""
    where = {"model": model, "version": version}
    last = await rows.list("rollouts", order="number", newest=True, limit=1)
    number = last[0]["number"] if last else 0
    facts = {"ended_at": at, "ended_by": by, "ended_reason": reason, "ended_number": number}
    await rows.change("releases", where, state=state, **facts, **values)
    await rows.change(
        "rollouts", {**where, "aborted_at": None}, aborted_at=at, ended=REVOKED if state == REVOKING else state
    )
    wishes: Row = {"unit": model, "version": version, "cancelled": False}
    devices = sorted({one["device"] for one in await rows.list("assignments", **wishes)})
    await rows.change("assignments", wishes, cancelled=True)
    await derive(rows, devices, at)
    return devices


async def move(rows: Rows, devices: Iterable[str], at: str, by: str = "server") -> list[str]:
    """Ask devices that run a withdrawn release for the one before, in the caller's transaction. Those that are moved by
    this. What was wanted of a device after the withdrawal stands: it has been moved, or somebody knows better."""
    moved: list[str] = []
    withdrawn = await rows.list("releases", state=WITHDRAWN)
    for device in devices if withdrawn else ():
        row = await rows.find("devices", id=device)
        if row is None or row["revoked_at"] is not None:  # it hears of nothing; when it comes back it reports
            continue
        units = (row["reported"] or {}).get("units", {})
        for one in withdrawn:
            unit = units.get(one["model"]) or {}
            wishes = await rows.list("assignments", order="number", newest=True, device=device, unit=one["model"])
            last = next((wish["version"] for wish in wishes if wish["state"] == "confirmed"), None)
            if one["version"] not in (unit.get("confirmed"), last):
                continue
            if any(not wish["cancelled"] and wish["number"] > one["ended_number"] for wish in wishes):
                continue
            good = await _before(rows, one, wishes, unit)
            if good is not None:
                await _want(rows, one, good, device, at, by)
                moved.append(device)
    await derive(rows, moved, at)
    return moved


async def _before(rows: Rows, left: Row, wishes: list[Row], unit: dict[str, Any]) -> Row | None:
    """The release to go back to: what the device confirmed last, before; else what it holds in its spare slot."""
    versions = [wish["version"] for wish in wishes if wish["state"] == "confirmed"]
    for version in dict.fromkeys([*versions, unit.get("fallback")]):
        if version and version != left["version"]:
            found = await rows.find("releases", model=left["model"], version=version, state=PUBLISHED)
            if found is not None:
                return found
    return None


async def _want(rows: Rows, left: Row, good: Row, device: str, at: str, by: str) -> None:
    """One rollout for all devices that go from the one release to the other."""
    to = {"instead_of": left["version"]}
    same = {"model": good["model"], "version": good["version"], "aborted_at": None}
    known = await rows.list("rollouts", number=(">", left["ended_number"]), **same)
    found = next((one for one in known if one["to"] == to), None)
    if found is None:
        found = await begin(rows, f"r-{secrets.token_hex(5)}", good, to, by, at)
    await assign(rows, found, device, at)


class Withdrawals:
    """An operator's word about a release."""

    def __init__(self, store: Store, clock: Clock, changed: Changed) -> None:
        self._store, self._clock, self._changed = store, clock, changed

    async def withdraw(self, actor: Actor, model: str, version: str, reason: str) -> list[str]:
        """Nobody is asked to run it any more; the devices that are moved. Raises NotFound (`no_release`), Conflict
        (`release_withdrawn`, `release_revoked`)."""
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            found = await self._known(rows, model, version)
            if found["state"] == WITHDRAWN:
                raise Conflict(f"{model} {version} is withdrawn since {found['ended_at']}", code="release_withdrawn")
            touched = await end(rows, model, version, actor.name, reason, at, state=WITHDRAWN)
            moved = await move(rows, [row["id"] for row in await rows.list("devices", order="id")], at, actor.name)
            detail = {"reason": reason, "moved": len(moved)}
            await record(rows, at, actor, "release.withdraw", f"{model} {version}", **detail)
        self._changed({*touched, *moved})
        return moved

    async def restore(self, actor: Actor, model: str, version: str) -> None:
        """It may be rolled out again; what its withdrawal ended stays ended. Raises NotFound (`no_release`), Conflict
        (`not_withdrawn`, `release_revoked`)."""
        at = stamp(self._clock())
        nothing = {"ended_at": None, "ended_by": None, "ended_reason": None, "ended_number": None}
        async with self._store.writing() as rows:
            found = await self._known(rows, model, version)
            if found["state"] != WITHDRAWN:
                raise Conflict(f"{model} {version} is not withdrawn", code="not_withdrawn")
            await rows.change("releases", {"model": model, "version": version}, state=PUBLISHED, **nothing)
            await record(rows, at, actor, "release.restore", f"{model} {version}", was=found["ended_reason"])

    @staticmethod
    async def _known(rows: Rows, model: str, version: str) -> Row:
        found = await rows.find(
            "releases", model=model, version=version, state=("in", (PUBLISHED, WITHDRAWN, REVOKING, REVOKED))
        )
        if found is None:
            raise NotFound(f"there is no release {model} {version}", code="no_release")
        if found["state"] in (REVOKING, REVOKED):
            refuse_revoked(f"{model} {version}", found["ended_reason"])
        return found
