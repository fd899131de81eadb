"""Takes up a release from an open file, whoever gave it: a person at the command line, or the inbox.

What the owner and the server allow is asked before a byte of the file is read. The file goes through the same engine as
a release from the server; when the answer is there, nothing more is read from it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from interlock_agent.core.records import UnitRecord, Wish
from interlock_agent.core.sideloads import FORBID
from interlock_agent.core.states import RESTING, Phase
from interlock_agent.engine import Engine
from interlock_agent.ports import Source
from interlock_shared.errors import Forbidden, Incompatible, Refused

Tell = Callable[[dict[str, Any]], Awaitable[None]]

TELL_S = 0.2  # at least so often something is told while an install is under way
RESTS = frozenset(phase.value for phase in (*RESTING, Phase.WAITING))


async def untold(document: dict[str, Any]) -> None:
    """For those who want to hear of the end alone."""


class Installer:
    """`enrolled`: whether this device ever met its server."""

    def __init__(self, engine: Engine, *, enrolled: bool) -> None:
        self._engine, self._enrolled = engine, enrolled

    def refuse_forbidden(self) -> None:
        """Raises Forbidden (`sideload_forbidden`, `unenrolled`)."""
        if self._engine.shared.sideload_policy() == FORBID:
            said = 'by its owner (`sideload.policy = "forbid"`)'
            if self._engine.config.sideload.policy != FORBID:
                said = "by the server"
            raise Forbidden(f"files are forbidden on this device, {said}", code="sideload_forbidden")
        if not self._enrolled and self._engine.config.sideload.unenrolled != "allow":
            raise Forbidden(
                "this device was never enrolled with a server: its owner must allow files, with "
                '`sideload.unenrolled = "allow"` in its configuration',
                code="unenrolled",
            )

    async def install(self, descriptor: int, tell: Tell = untold) -> dict[str, Any]:
        """The release in that file, which is taken over: how it ended, as `follow` says it. Raises InterlockError."""
        try:
            self.refuse_forbidden()
        except BaseException:
            os.close(descriptor)
            raise
        source = await self._engine.ports.fetcher.archive(descriptor)
        try:
            head = await source.manifest()
            unit = str(head["model"])
            self._refuse_unlisted(unit)
            under_way = self._under_way(unit, str(head["manifest_sha256"]))
            if under_way:
                await source.abandon()  # an agent that was restarted goes on with what it had read
                return await self.follow(unit, under_way, tell)
            wish = Wish(
                version=str(head["version"]),
                manifest_sha256=str(head["manifest_sha256"]),
                assignment=f"sideload-{secrets.token_hex(8)}",
                origin="sideload",
            )
            await self._engine.sideload(unit, wish, _Read(source, head))
        except BaseException:
            await source.abandon()
            raise
        return await self.follow(unit, wish.assignment, tell)

    def _refuse_unlisted(self, unit: str) -> None:
        try:
            self._engine.config.unit(unit)
        except KeyError:
            message = f"{unit}: this device does not accept models that are not listed"
            raise Incompatible(message, code="unit_not_listed") from None

    def _under_way(self, unit: str, manifest_sha256: str) -> str:
        """The assignment of an attempt with that very release from a file, past its reading; "" without one."""
        record = self._engine.record(unit)
        attempt = record.attempt
        reading = (Phase.ACCEPTED.value, Phase.FETCHING.value)
        if attempt is None or record.phase in RESTS or record.phase in reading:
            return ""
        mine = attempt.wish.origin == "sideload" and attempt.wish.manifest_sha256 == manifest_sha256
        return attempt.wish.assignment if mine else ""

    async def follow(self, unit: str, assignment: str, tell: Tell) -> dict[str, Any]:
        """Tell what happens until the attempt with that assignment rests; what became of it. Raises Refused
        (`superseded`)."""

        def over(record: UnitRecord) -> bool:
            mine = record.attempt is not None and record.attempt.wish.assignment == assignment
            return not mine or record.phase in RESTS

        while True:
            record = self._engine.record(unit)
            await tell({"unit": unit, "phase": record.phase, **self._engine.shared.progress.get(unit, {})})
            try:
                record = await asyncio.wait_for(self._engine.wait(unit, over), TELL_S)
            except asyncio.TimeoutError:
                continue
            if record.attempt is None or record.attempt.wish.assignment != assignment:
                raise Refused(f"{unit}: something newer took its place", code="superseded")
            return await self._became(record, record.attempt.wish.version)

    async def _became(self, record: UnitRecord, version: str) -> dict[str, Any]:
        last = await self._engine.ports.journal.history(record.unit, 1)
        same = bool(last) and last[0]["after"] == record.phase and last[0]["generation"] == record.generation
        return {
            "unit": record.unit,
            "version": version,
            "phase": record.phase,
            "reason": record.reason,
            "message": str(last[0]["detail"].get("message", "")) if same else "",
            "generation": record.generation,
        }


class _Read:
    """A source whose head was read already."""

    def __init__(self, source: Source, head: dict[str, Any]) -> None:
        self._source, self._head = source, head

    async def manifest(self) -> dict[str, Any]:
        return self._head

    async def proceed(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        return dict(await self._source.proceed(progress))

    async def abandon(self) -> None:
        await self._source.abandon()
