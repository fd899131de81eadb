"""Starts the fetcher child and speaks with it: a job in, lines of JSON out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock_agent.core import time_floor
from interlock_agent.core.revoked import installed
from interlock_agent.core.times import rfc3339
from interlock_agent.fetcher import messages
from interlock_agent.ports import Clock, Stored
from interlock_agent.processes import ended
from interlock_shared.errors import Never, Unreachable, from_wire

LINE_MAX = 32 * 1024 * 1024  # a manifest as JSON inside a line
END_S = 5.0  # for a child that was told to end


class Child:
    """One running fetch; the Source port."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.peak_bytes = 0

    async def _line(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise AssertionError("started with pipes")
        try:
            raw = await self._process.stdout.readline()
            line = dict(json.loads(raw)) if raw else None
        except (ValueError, TypeError, RecursionError) as bad:
            raise Unreachable(f"the fetcher's answer is not one: {bad}", code="fetcher_died") from None
        if line is None:
            code = await self._process.wait()
            raise Unreachable(f"the fetcher ended with {code}", code="fetcher_died")
        if "error" in line:
            raise from_wire(line["error"])
        return line

    async def manifest(self) -> dict[str, Any]:
        """What the manifest says, believed."""
        return dict((await self._line())["head"])

    async def proceed(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Bring the payload in."""
        if self._process.stdin is None:
            raise AssertionError("started with pipes")
        self._process.stdin.write(messages.GO.encode() + b"\n")
        return await self.result(progress)

    async def result(self, progress: Callable[[int, int], None] = lambda done, of: None) -> dict[str, Any]:
        """Read to the end."""
        while True:
            line = await self._line()
            if "progress" in line:
                progress(int(line["progress"][0]), int(line["progress"][1]))
            elif "done" in line:
                return dict(line["done"])

    async def abandon(self) -> None:
        """End it. The end of its standard input is its end; a child that does not listen is killed."""
        if self._process.stdin is None:
            raise AssertionError("started with pipes")
        self._process.stdin.close()
        await ended(self._process, END_S)
        with contextlib.suppress(OSError):  # what was still to be written to it
            await self._process.stdin.wait_closed()


class FetcherProcess:
    """The Fetcher port. `identity`: server, broker and credentials of the enrolment; {} before it."""

    def __init__(self, state: Path, device: str, identity: dict[str, Any], clock: Clock, stored: Stored) -> None:
        self._state = state
        self._device = device
        self._identity = identity
        self._clock = clock
        self.stored = stored
        self.facts: dict[str, str] = {}  # of this device, for a permit that names classes
        self.pids: set[int] = set()

    async def _start(self, kind: str, descriptor: int = -1, **fields: Any) -> Child:
        now = self._clock.now()
        director = self.stored.meta.get("director") or {}
        job = messages.Job(
            kind=kind,
            device=self._device,
            state_dir=str(self._state),
            now=now,
            now_text=rfc3339(now),
            floors=dict(self.stored.meta.get("floors") or {}),
            director_epoch=int(director.get("epoch", 0)),
            server=str(self._identity.get("server", "")),
            clock=now - self._clock.behind(),
            clock_floor=time_floor.of(self.stored.meta),
            facts=self.facts,
            installed={unit: installed(record) for unit, record in self.stored.units.items()},
            descriptor=descriptor,
            **fields,
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "interlock_agent.fetcher",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(descriptor,) if descriptor >= 0 else (),
                limit=LINE_MAX,
                start_new_session=True,  # Ctrl-C is for us; the end of its standard input is for it
            )
        except OSError as bad:  # no memory, no process, no descriptor left: later there may be
            raise Unreachable(f"the fetcher cannot be started: {bad.strerror}", code="io") from None
        if process.stdin is None:
            raise AssertionError("started with pipes")
        process.stdin.write(messages.encode(job))
        return Child(process)

    def _need_server(self) -> None:
        if not self._identity.get("server"):
            raise Never("this device is not enrolled with a server", code="not_enrolled")

    async def online(self, unit: str, version: str, manifest_sha256: str) -> Child:
        """From the update server."""
        self._need_server()
        return await self._start("online", unit=unit, version=version, manifest_sha256=manifest_sha256)

    async def archive(self, descriptor: int) -> Child:
        """From an open `.bundle`; the descriptor is taken over."""
        try:
            return await self._start("archive", descriptor)
        finally:
            os.close(descriptor)

    async def unpack(self, descriptor: int) -> Child:
        """From an open `.bundle`, to judge it and not to install it; the descriptor is taken over."""
        try:
            return await self._start("unpack", descriptor)
        finally:
            os.close(descriptor)

    async def refresh(self) -> dict[str, Any]:
        """Trust metadata alone."""
        self._need_server()
        child = await self._start("refresh")
        try:
            return await child.result()
        finally:
            await child.abandon()

    async def renew(self) -> None:
        """A fresh key and certificate in place of the ones that near their end."""
        self._need_server()
        child = await self._start("renew")
        try:
            await child.result()
        finally:
            await child.abandon()

    async def poll(self) -> bytes | None:
        """The desired document, asked for over HTTP."""
        self._need_server()
        child = await self._start("poll")
        try:
            desired = (await child.result()).get("desired")
        finally:
            await child.abandon()
        return None if desired is None else json.dumps(desired).encode()
