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
from collections.abc import Mapping
from functools import partial
from typing import Any

from interlock_agent.host.adapters import triton
from interlock_agent.host.asking import WORDS_BYTES, Asking, in_thread
from interlock_agent.host.children import PASSED, PASSED_PREFIXES, how_it_ended

REAP_S = 2.0  # for a killed command to be gone
SYSTEMCTL = ("systemctl", "--no-ask-password")


class OwnersHooks:
    """The Hooks port."""

    async def run(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        """Run it; what is wrong, or "" when it went well. `facts`: `UNIT`, `FOLDER`, `LIVE`, `RELEASE`, `REASON`."""
        timeout_s = float(hook["timeout_s"])
        try:
            if hook.get("http"):
                return await in_thread(partial(_post, str(hook["http"]), facts), timeout_s)
            if hook.get("triton"):
                return await in_thread(partial(triton.tell, hook["triton"], facts), timeout_s)
            command = [str(word) for word in hook.get("command") or ()]
            if hook.get("systemd"):
                command = [*SYSTEMCTL, str(hook["action"]), str(hook["systemd"])]
            return await self._command(command, facts, timeout_s)
        except asyncio.TimeoutError:
            return f"no answer within {timeout_s:g} s"
        except (OSError, ValueError, http.client.HTTPException) as failed:
            return str(failed) or type(failed).__name__

    async def lost(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        """What is no longer as it was told, or "". Only a server that loads by itself can tell."""
        if not hook.get("triton"):
            return ""
        try:
            return await in_thread(partial(triton.lost, hook["triton"], facts), triton.LOOK_TIMEOUT_S)
        except asyncio.TimeoutError:
            return f"no answer within {triton.LOOK_TIMEOUT_S:g} s"

    async def away(self, hook: Mapping[str, Any]) -> str:
        """Why it would be no use to tell it anything now, or "" when it can be told, or nobody knows."""
        if not hook.get("triton"):
            return ""
        try:
            return await in_thread(partial(triton.away, hook["triton"]), triton.LOOK_TIMEOUT_S)
        except asyncio.TimeoutError:
            return f"Triton does not answer within {triton.LOOK_TIMEOUT_S:g} s"

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
            await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=REAP_S)
        words = said.decode(errors="replace").strip()
        return f"{how_it_ended(process.returncode or 0)}: {words or 'it said nothing'}" if process.returncode else ""


def _post(url: str, facts: Mapping[str, str], asking: Asking) -> str:
    body = json.dumps({name.lower(): value for name, value in facts.items()})
    status, words = asking.ask("POST", url, body)
    return "" if 200 <= status < 300 else f"HTTP {status}: {words}"
