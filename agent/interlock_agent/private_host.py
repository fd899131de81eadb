"""A host of one's own: the real program with state and sockets in a temporary folder, gone when it is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from interlock_agent.adapters.host_client import HostClient
from interlock_agent.processes import ended, ends_with_us
from interlock_shared.errors import Unreachable

START_S = 30.0  # until it listens; a cold disk and a slow core
END_S = 15.0  # from the request to end until it is killed: workers end within seconds


class PrivateHost:
    """`async with PrivateHost(folder) as host`: the Host port of a host that nobody else knows of.

    It ends with this process, whatever ends that. Raises Unreachable with its last words when it does not start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._run = folder, folder / "run"
        self._client = HostClient(self._run / "host.sock")
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> HostClient:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def listen(self, unit: str) -> str:
        """Where the unit would be served; nobody asks."""
        return f"unix:{self._run / unit}.sock"

    def _prepare(self) -> Path:
        settings = {"state_dir": str(self._folder / "state"), "run_dir": str(self._run), "log_level": "warning"}
        file = self._folder / "host.toml"
        file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        return file

    async def _start(self) -> None:
        file = await asyncio.to_thread(self._prepare)
        log = await asyncio.to_thread((self._folder / "host.log").open, "wb")
        with log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "interlock_agent.host", "run", "--config", str(file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._folder)},  # a runtime leaves files there, ONNX Runtime's `.ses`
                start_new_session=True,  # Ctrl-C is for us; the host is asked to end
                preexec_fn=ends_with_us(signal.SIGTERM),
            )
        self._client.start()
        waiting = [asyncio.create_task(self._client.connected.wait()), asyncio.create_task(self._process.wait())]
        try:
            await asyncio.wait(waiting, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if not self._client.connected.is_set():
            words = await asyncio.to_thread(self._last_words)
            raise Unreachable(f"no host could be started: {words}", code="host_away")

    def _last_words(self) -> str:
        lines = (self._folder / "host.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    async def _end(self) -> None:
        await self._client.stop()
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await ended(self._process, END_S)
