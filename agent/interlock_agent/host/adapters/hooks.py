"""The owner's hook: how an application that reads `live` learns that it has moved.

Rules of the file:
- What runs stands in the owner's configuration alone; a bundle brings no command.
- A hook has a time; then it is killed with all that it has started, and has failed.
- What it fails with is told in its own last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from interlock_agent.host.children import PASSED, PASSED_PREFIXES, how_it_ended

WORDS_BYTES = 2000  # of what a failing hook said
SYSTEMCTL = ("systemctl", "--no-ask-password")


class OwnersHooks:
    """The Hooks port."""

    async def run(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        """Run it; what is wrong, or "" when it went well. `facts`: `UNIT`, `FOLDER`, `LIVE`, `RELEASE`, `REASON`."""
        timeout_s = float(hook["timeout_s"])
        try:
            if hook.get("http"):
                return await _post(str(hook["http"]), facts, timeout_s)
            command = [str(word) for word in hook.get("command") or ()]
            if hook.get("systemd"):
                command = [*SYSTEMCTL, str(hook["action"]), str(hook["systemd"])]
            return await self._command(command, facts, timeout_s)
        except asyncio.TimeoutError:
            return f"no answer within {timeout_s:g} s"
        except (OSError, ValueError, http.client.HTTPException) as failed:
            return str(failed) or type(failed).__name__

    @staticmethod
    async def _command(command: list[str], facts: Mapping[str, str], timeout_s: float) -> str:
        kept = {k: v for k, v in os.environ.items() if k in PASSED or k.startswith(PASSED_PREFIXES)}
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**kept, **{f"INTERLOCK_{name}": value for name, value in facts.items()}},
            start_new_session=True,
        )
        said = bytearray()

        async def listen() -> None:
            while process.stdout is not None and (part := await process.stdout.read(4096)):
                said.extend(part)
                del said[:-WORDS_BYTES]

        try:
            await asyncio.wait_for(asyncio.gather(listen(), process.wait()), timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has left behind, too
        words = said.decode(errors="replace").strip()
        return f"{how_it_ended(process.returncode or 0)}: {words or 'it said nothing'}" if process.returncode else ""


async def _post(url: str, facts: Mapping[str, str], timeout_s: float) -> str:
    """In a thread of its own: the loop's few are what the host's records are written by. Its socket ends with the time,
    and so does the thread."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[str] = loop.create_future()
    sockets: list[socket.socket] = []
    over = threading.Event()

    def work() -> None:
        try:
            said = _ask(url, facts, timeout_s, sockets, over)
        except (OSError, ValueError, http.client.HTTPException) as failed:
            said = str(failed) or type(failed).__name__
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if answered.done() else answered.set_result(said))

    threading.Thread(target=work, name="hook", daemon=True).start()
    try:
        return await asyncio.wait_for(answered, timeout_s)
    finally:
        over.set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _ask(
    url: str, facts: Mapping[str, str], timeout_s: float, sockets: list[socket.socket], over: threading.Event
) -> str:
    """Blocks; bounded by `timeout_s` for each step. Nothing is asked when it is `over`: another may have been told."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout_s)
    try:
        connection.connect()
        sockets.append(connection.sock)
        if over.is_set():
            return ""
        body = json.dumps({name.lower(): value for name, value in facts.items()})
        path = parts.path or "/"
        connection.request(
            "POST", f"{path}?{parts.query}" if parts.query else path, body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        words = answer.read(WORDS_BYTES).decode(errors="replace").strip()
        return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}: {words}"
    finally:
        connection.close()
