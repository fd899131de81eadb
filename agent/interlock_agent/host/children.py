"""The host's child processes: started, watched, ended, and those of a dead predecessor found again.

Rules of the file:
- A child is a new program (exec), never a fork of this one; it inherits its control socket and what is named.
- Its death ends `ended`, with how it ended in words.
- Each is written down (pid and start time: a pid alone is reused) in a folder that a reboot clears, and crossed out
  when it was reaped; and each carries the mark of the state folder. `leftovers.py` ends what a predecessor left.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interlock_agent.host.wire import LENGTH, MAX_DOCUMENT_BYTES, decode, encode

log = logging.getLogger("interlock.host")

STDERR_LINES = 50  # kept of each child
STDERR_LINE_BYTES = 64 * 1024
LAST_WORDS_S = 0.1  # for the last lines of a child that ended
END_S = 2.0  # between the request to end and the order
MARK = "INTERLOCK_HOST"  # in the environment of a child: whose it is
# What a child may see of the host's environment: where its libraries and GPU are, no secrets.
PASSED = ("PATH", "LANG", "LC_ALL", "TZ", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "ORT_", "TRT_", "COVERAGE_")


def start_time(pid: int) -> str:
    """Clock ticks since boot at which the process started, "" when there is none (field 22 of /proc/PID/stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


def how_it_ended(code: int) -> str:
    """A return code in words: `exit 3`, `SIGKILL`."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def child_environment(packages: Path) -> dict[str, str]:
    """The environment of a child: little of ours, and our package alone on its path."""
    kept = {k: v for k, v in os.environ.items() if k in PASSED or k.startswith(PASSED_PREFIXES)}
    kept |= {MARK: os.environ[MARK]} if MARK in os.environ else {}
    return {**kept, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


class Child:
    """One child process with its control stream. Use `await Child.start(...)`."""

    def __init__(self, process: asyncio.subprocess.Process, record: Path) -> None:
        self._process, self._record = process, record
        self.pid = process.pid
        # Signals go through it: asyncio's own `kill` polls, and so takes the exit code from under its watcher.
        self._pidfd = os.pidfd_open(process.pid)
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.lines: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        self.reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] = lambda line: None,
    ) -> Child:
        """Start `command`; `{control}` and `{parent}` in its arguments are replaced. Raises OSError."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        filled = [word.format(control=theirs.fileno(), parent=os.getpid()) for word in command]
        try:
            # From this thread: the kernel ties the parent-death signal to the thread that made the child.
            process = await asyncio.create_subprocess_exec(
                *filled,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                cwd="/",
                pass_fds=(theirs.fileno(), *pass_fds),
                start_new_session=True,  # a Ctrl-C in the terminal is the host's to deal with
                limit=STDERR_LINE_BYTES,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        record, started = folder / str(process.pid), start_time(process.pid)
        try:
            child = cls(process, record)
            child.reader, child._writer = await asyncio.open_unix_connection(sock=ours, limit=2**20)
        except BaseException:  # no descriptors, say
            process.kill()
            ours.close()
            raise
        child._tasks = (loop.create_task(child._listen(on_line)), loop.create_task(child._reap()))
        try:
            await loop.run_in_executor(None, lambda: record.write_text(started, encoding="utf-8"))
        except OSError as failure:  # no room in `run_dir`: to serve is worth more, and the mark is found too
            log.warning("pid=%d is not recorded: %s", process.pid, failure)
        return child

    async def _listen(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than the limit: what was read is dropped, the next line is taken
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self.lines.append(text)
            on_line(text)

    async def _reap(self) -> None:
        code = await self._process.wait()
        os.close(self._pidfd)
        self._pidfd = -1
        # What it wrote last is still in the pipe; a grandchild may hold the pipe open for ever.
        await asyncio.wait({self._tasks[0]}, timeout=LAST_WORDS_S)
        self._tasks[0].cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().run_in_executor(None, lambda: self._record.unlink(missing_ok=True))
        if not self.ended.done():
            self.ended.set_result(how_it_ended(code))

    def send(self, document: dict[str, Any]) -> None:
        """One frame; nothing happens when the child has gone."""
        if not self._writer.is_closing():
            self._writer.write(encode(document))

    async def read(self) -> dict[str, Any]:
        """The next frame. Raises EOFError (IncompleteReadError) or OSError when it ended, ValueError on a bad one."""
        (length,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
        if length > MAX_DOCUMENT_BYTES:
            raise ValueError(f"frame of {length} bytes is above {MAX_DOCUMENT_BYTES}")
        return decode(await self.reader.readexactly(length))

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def end(self) -> None:
        """End it; at once too, unless it has asked to be told (a tool that measures coverage does)."""
        self._signal(signal.SIGTERM)
        asyncio.get_running_loop().call_later(END_S, self.kill)

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def last_words(self, count: int = 5) -> str:
        """Its last lines on stderr."""
        return " | ".join(list(self.lines)[-count:])
