"""The watched folder: a bundle that is put there is installed as `interlock-agent install` would, one after the other.

A look every few seconds: a folder on a stick, or on a network, tells nobody of its changes. What could not be taken for
a reason that passes (another switch is under way, no space) stays there, and is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from interlock_agent.core.times import rfc3339
from interlock_agent.installer import Installer
from interlock_agent.ports import Clock
from interlock_shared.errors import InterlockError, Later

log = logging.getLogger("interlock.inbox")

SCHEMA = "interlock.inbox/1"
AGAIN_S = 60.0  # until what had to wait is tried again
DONE, REFUSED = "done", "refused"
PASSES = ("no_space", "source_lost", "unreachable", "io")  # the file is needed once more


class Entry(Protocol):
    """A file as a look saw it; equal when it has not changed."""

    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> int: ...
    @property
    def wrong(self) -> str: ...


class Folder(Protocol):
    """The inbox on disk; everything blocks."""

    def prepare(self) -> None: ...
    def look(self) -> list[Any]: ...
    def open(self, entry: Any) -> int | None: ...
    def put(self, entry: Any, where: str, at: str, note: dict[str, Any]) -> None: ...


class Inbox:
    """Watches one folder. `trouble`: why it is not watched, "" when it is."""

    def __init__(self, folder: Folder, installer: Installer, clock: Clock, every_s: float) -> None:
        self._folder, self._installer, self._clock, self._every_s = folder, installer, clock, every_s
        self._before: list[Any] = []
        self._later: dict[Any, float] = {}  # by entry: not before this time of the monotonic clock
        self.trouble = ""
        self.on_trouble: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self._folder.prepare)
                self._told("")
                await self.look()
            except InterlockError as bad:
                self._told(bad.message)
            await self._clock.sleep(self._every_s)

    def _told(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            log.warning("inbox: %s", trouble or "it is watched again")
            self.on_trouble()

    async def look(self) -> None:
        """One look: take what has not changed since the one before."""
        now = await asyncio.to_thread(self._folder.look)
        steady = [entry for entry in now if entry in self._before]
        self._before = now
        self._later = {entry: until for entry, until in self._later.items() if entry in now}
        for entry in steady:
            if self._later.get(entry, 0.0) <= self._clock.monotonic():
                await self._take(entry)

    async def _take(self, entry: Entry) -> None:
        try:
            if entry.wrong:
                await self._put(entry, REFUSED, code="not_a_plain_file", message=entry.wrong)
                return
            descriptor = await asyncio.to_thread(self._folder.open, entry)
            if descriptor is None:
                return  # it is being written
            log.info("inbox: %s", entry.name)
            answer = await self._installer.install(descriptor)
            if answer["reason"] in PASSES:
                raise Later(answer["message"], code=answer["reason"])
            ended = {"confirmed": DONE, "waiting": DONE}.get(answer["phase"], REFUSED)
            await self._put(entry, ended, **{**answer, "code": answer["reason"]})
        except Later as later:
            log.warning("inbox: %s is tried again: %s", entry.name, later.message)
            self._later[entry] = self._clock.monotonic() + AGAIN_S
        except InterlockError as refused:
            try:
                await self._put(entry, REFUSED, code=refused.code, message=refused.message)
            except Later as later:
                log.error("inbox: %s", later.message)
                self._later[entry] = self._clock.monotonic() + AGAIN_S

    async def _put(self, entry: Entry, where: str, **said: Any) -> None:
        at = rfc3339(self._clock.now())
        log.info("inbox: %s is %s: %s", entry.name, where, said.get("message") or said.get("code") or "confirmed")
        note = {"schema": SCHEMA, "at": at, "file": entry.name, "owner": entry.owner, "outcome": where, **said}
        await asyncio.to_thread(self._folder.put, entry, where, at, note)
