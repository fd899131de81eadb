"""Enrolment tokens: for one device, or for a batch that is imaged with the same one and then waits for approval.

A token is shown once; the database has its digest.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from interlock_server.auditing import record
from interlock_server.core.access import DEVICE_TOKEN, Actor, digest
from interlock_server.core.moments import stamp
from interlock_server.ports import Clock, Row, Rows, Store
from interlock_shared.errors import Forbidden, Invalid, NotFound

SECRET_BYTES = 32


async def open_invitation(rows: Rows, sha256: str, at: str, *, again: bool) -> Row:
    """The token's row, where it can be used. `again`: by a key that has used it, which costs no use; a device that
    waits for a person may outlive its token.

    Raises Forbidden (`unauthenticated`, `token_expired`, `token_used`, `token_revoked`).
    """
    found = await rows.find("device_tokens", sha256=sha256)
    if found is None:
        raise Forbidden("the enrolment token is unknown: ask for a new one", code="unauthenticated")
    if found["revoked_at"] is not None:
        raise Forbidden("the enrolment token was taken back: ask for a new one", code="token_revoked")
    if found["expires_at"] <= at and not (again and found["uses"] > 1):
        raise Forbidden(f"the enrolment token expired at {found['expires_at'][:19]}Z", code="token_expired")
    if found["used"] >= found["uses"] and not again:
        raise Forbidden("the enrolment token was used already: ask for a new one", code="token_used")
    return found


class Invitations:
    """Makes, lists and takes back enrolment tokens."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def create(
        self, actor: Actor, labels: Mapping[str, str], device: str | None, hours: float, uses: int
    ) -> dict[str, Any]:
        """`{"id", "token", "expires_at", "uses"}`. `device`: the id that the device will have. More than one use: each
        device waits for approval. Raises Invalid."""
        if device is not None and uses > 1:
            raise Invalid("a token for one device id has one use", field="uses")
        token, now = DEVICE_TOKEN + secrets.token_urlsafe(SECRET_BYTES), self._clock()
        identity, expires = secrets.token_hex(6), stamp(now + timedelta(hours=hours))
        async with self._store.writing() as rows:
            await rows.insert(
                "device_tokens",
                sha256=digest(token),
                id=identity,
                labels=dict(labels),
                device=device,
                uses=uses,
                used=0,
                created_at=stamp(now),
                created_by=actor.name,
                expires_at=expires,
                revoked_at=None,
            )
            detail = {"labels": dict(labels), "token": identity, "uses": uses}
            await record(rows, stamp(now), actor, "device.invite", device or "any", **detail)
        return {"id": identity, "token": token, "expires_at": expires, "uses": uses}

    async def listing(self) -> list[dict[str, Any]]:
        """All tokens, newest first, without what is secret; `state` is `open`, `used`, `expired` or `revoked`."""
        at = stamp(self._clock())
        async with self._store.reading() as rows:
            found = await rows.list("device_tokens", order="created_at", newest=True)
        return [{**{n: v for n, v in one.items() if n != "sha256"}, "state": _state(one, at)} for one in found]

    async def revoke(self, actor: Actor, identity: str) -> None:
        """From now on nobody enrols by it; who has, stays. Raises NotFound."""
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            if not await rows.change("device_tokens", {"id": identity, "revoked_at": None}, revoked_at=at):
                raise NotFound(f"there is no valid enrolment token {identity}", code="no_token")
            await record(rows, at, actor, "device.uninvite", identity)


def _state(one: Row, at: str) -> str:
    if one["revoked_at"] is not None:
        return "revoked"
    if one["used"] >= one["uses"]:
        return "used"
    return "expired" if one["expires_at"] <= at else "open"
