"""Who is it: bearer tokens of people and programs. A token is shown once, when it is made; the database has only its
digest.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from interlock_server.auditing import record
from interlock_server.core.access import API_TOKEN, Actor, check_role, digest
from interlock_server.core.moments import stamp
from interlock_server.ports import Clock, Store
from interlock_shared.errors import Forbidden, NotFound

SYSTEM = Actor("server", "admin", "local")
Keep = Callable[[str], Awaitable[None]]
SECRET_BYTES = 32  # random, so that nothing can be guessed


class Tokens:
    """Makes, lists, revokes and recognises credentials."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    async def first(self, keep: Keep | None = None) -> str | None:
        """The admin token of a new installation; None when there has been a token before. `keep` is as of `create`."""
        async with self._store.reading() as rows:
            if await rows.list("api_tokens", limit=1):
                return None
        return str((await self.create(SYSTEM, "first", "admin", keep))["token"])

    async def create(self, actor: Actor, name: str, role: str, keep: Keep | None = None) -> dict[str, Any]:
        """A new token: `{"id", "name", "role", "token"}`. Where `keep`, which is given it, fails, there is none.

        Raises Invalid for an unknown role.
        """
        check_role(role)
        token, identity, at = (
            API_TOKEN + secrets.token_urlsafe(SECRET_BYTES),
            secrets.token_hex(6),
            stamp(self._clock()),
        )
        async with self._store.writing() as rows:
            await rows.insert(
                "api_tokens",
                id=identity,
                name=name,
                role=role,
                sha256=digest(token),
                created_at=at,
                created_by=actor.name,
                revoked_at=None,
            )
            await record(rows, at, actor, "token.create", identity, name=name, role=role)
            if keep is not None:
                await keep(token)
        return {"id": identity, "name": name, "role": role, "token": token}

    async def listing(self) -> list[dict[str, Any]]:
        """All tokens, without what is secret."""
        async with self._store.reading() as rows:
            found = await rows.list("api_tokens", order="created_at")
        return [{name: value for name, value in one.items() if name != "sha256"} for one in found]

    async def revoke(self, actor: Actor, identity: str) -> None:
        """From now on the token is unknown. Raises NotFound."""
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            if not await rows.change("api_tokens", {"id": identity, "revoked_at": None}, revoked_at=at):
                raise NotFound(f"there is no valid token {identity}")
            await record(rows, at, actor, "token.revoke", identity)

    async def bearer(self, token: str, address: str) -> Actor:
        """Whose token it is. Raises Forbidden (`unauthenticated`)."""
        async with self._store.reading() as rows:
            found = await rows.find("api_tokens", sha256=digest(token), revoked_at=None)
        if found is None:
            raise Forbidden("the bearer token is not valid", code="unauthenticated")
        return Actor(found["name"], found["role"], address)

    async def audit(self, limit: int) -> list[dict[str, Any]]:
        """The newest lines of the audit log first."""
        async with self._store.reading() as rows:
            return await rows.list("audit", order="id", newest=True, limit=limit)
