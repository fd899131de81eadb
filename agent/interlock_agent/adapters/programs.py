"""The measuring command of the device's owner, as a process: a line to it, a line from it.

It runs as the agent's user in a group of its own, without what systemd gives to the agent; it ends with the agent,
whatever ends that, and so does all that it has started, when it is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence

from interlock_agent.core.gate.command import LINE_MAX_BYTES
from interlock_agent.processes import ends_with_us
from interlock_shared.errors import Later, Refused

WORDS = 5  # last lines of its standard error that are told
END_S = 5.0  # from the request to end until it is killed
NOT_FOR_IT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "CREDENTIALS_DIRECTORY")


# It stands in the folder of a release, which brings data and no code: a Python takes no module from where it stands.
SAFE = {"PYTHONSAFEPATH": "1"}


class ProgramProcess:
    """The Program port."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process, self.pid = process, process.pid
        self._words: deque[str] = deque(maxlen=WORDS)
        self._owed = 0  # answers to questions that were given up
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        if self._process.stderr is None:
            return
        with contextlib.suppress(ValueError):  # a line without an end: the rest is not told
            async for line in self._process.stderr:
                self._words.append(line.decode(errors="replace").strip()[:500])

    async def line(self, timeout_s: float) -> bytes:
        """The next line that it says. Raises Refused (`worker_died`, `worker_hung`); then it is ended."""
        if self._process.stdout is None:
            raise AssertionError("it was started with a pipe")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        except asyncio.TimeoutError:
            await self.end()
            raise Refused(f"the command said nothing within {timeout_s:g} s; ended", code="worker_hung") from None
        except ValueError:
            await self.end()
            raise Refused(f"the command said a line above {LINE_MAX_BYTES} bytes", code="inference_failed") from None
        if line:
            return line
        await self.end()
        code = self._process.returncode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        words = f"the command ended by itself ({how}): {' / '.join(self._words) or 'it said nothing'}"
        raise Refused(words, code="worker_died")

    async def ask(self, question: bytes, timeout_s: float) -> bytes:
        """A line to it, and its answer. Raises as `line`."""
        while self._owed:
            await self.line(timeout_s)
            self._owed -= 1
        self._owed += 1
        if self._process.stdin is not None:
            with contextlib.suppress(ConnectionError):  # its end is seen by reading
                self._process.stdin.write(question)
                await self._process.stdin.drain()
        answer = await self.line(timeout_s)
        self._owed -= 1
        return answer

    async def end(self) -> None:
        """Ask it to end, and its children; what remains is killed."""
        for number, patience in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), patience)
                if number == signal.SIGKILL:
                    break
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._listening, END_S)


class OwnersPrograms:
    """The Programs port."""

    async def there(self, command: Sequence[str]) -> bool:
        """Whether it is a file that this process may execute."""
        return await asyncio.to_thread(lambda: os.path.isfile(command[0]) and os.access(command[0], os.X_OK))

    async def start(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> ProgramProcess:
        """Start it in a folder. Raises Later (`no_command`) when there is no such program."""
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_FOR_IT}
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env={**inherited, **SAFE, **environment},
                limit=LINE_MAX_BYTES,
                start_new_session=True,
                preexec_fn=ends_with_us(signal.SIGKILL),
            )
        except OSError as bad:
            raise Later(f"gate.command: {command[0]}: {bad.strerror}", code="no_command") from None
        return ProgramProcess(process)
