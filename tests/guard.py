"""Two guards over everything a test runs: no blocking call in an event loop, no connection that leaves this machine.

Both are one audit hook (PEP 578): the interpreter itself reports `open`, `socket.connect` and the like, so nothing but
`time.sleep` (reported from Python 3.13 on only) has to be patched, and no timing is involved.

Blocking: a call of BLOCKING is an error when it is made on a thread whose event loop is running a callback, and code of
our own packages asked for it. What is meant stands in ALLOWED, one row a function with its reason; there is no other
way out. Imports are let through: they read files once.

Foreign sockets: only Unix sockets and loopback addresses may be connected to, by anybody.

The guards work in started processes too: `tests/guarded/sitecustomize.py` installs them (see `guarded_environment`).

An audit hook cannot be taken out again; `install` is for test processes only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(
    str(ROOT / part) + os.sep
    for part in ("shared/interlock_shared", "agent/interlock_agent", "server/interlock_server", "tests/planted")
)

# Audit events that mean waiting: for a disk, a process, a name server, a peer, a clock.
BLOCKING = frozenset(
    {
        "open",
        "os.listdir",
        "os.rename",
        "os.scandir",
        "os.system",
        "shutil.copyfile",
        "shutil.rmtree",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "sqlite3.connect",
        "subprocess.Popen",
        "time.sleep",
    }
)


class Allowed(NamedTuple):
    """One function that may block a loop: a path's end, a function's name ("*": the whole file), and why."""

    file: str
    function: str
    reason: str


# The only list of exceptions. A row allows the function and whatever it calls.
ALLOWED = (
    Allowed(
        "interlock_shared/durable.py", "*", "kilobytes that must be on disk before the next step: journal, then act"
    ),
    Allowed(
        "interlock_agent/adapters/telemetry/sysfs.py", "*", "the kernel's own files, read around each block of the gate"
    ),
    Allowed(
        "interlock_agent/fetcher/stores.py", "remove", "the fetcher has no loop; here the collector may come inside one"
    ),
    Allowed("interlock_agent/adapters/journal.py", "*", "synchronous=FULL: no effect starts before its row is durable"),
)


class BlockingCall(AssertionError):
    """Our own code made a blocking call on a thread whose event loop is running."""


class ForeignSocket(AssertionError):
    """A connection to an address outside this machine was tried."""


def is_local(address: object) -> bool:
    """Whether a socket address stays on this machine: a Unix path, loopback, or the name localhost."""
    if isinstance(address, (str, bytes)):
        return True
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return True  # netlink and the like: no network
    host = address[0].partition("%")[0]
    if host in {"localhost", ""}:
        return True
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    return bool(mapped.is_loopback or mapped.is_unspecified)


def culprit(frame: FrameType | None) -> FrameType | None:
    """The nearest frame of ours that asked for a blocking call, or None when nobody of ours did, or may."""
    found: FrameType | None = None
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        if file.startswith("<frozen importlib") or file.endswith(("/asyncio/subprocess.py", "/linecache.py")):
            return None  # an import, asyncio's own way of starting a process, or a traceback that quotes its sources
        if any(file.endswith(row.file) and row.function in {"*", code.co_name} for row in ALLOWED):
            return None
        if file.endswith("/asyncio/events.py") and code.co_name == "_run":
            break  # below this lies the loop itself
        if found is None and file.startswith(OURS):
            found = frame
        frame = frame.f_back
    return found


def _waits(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether this very call can wait: a non-blocking connect cannot, nor a sleep of nothing, nor /proc and /dev."""
    if event == "socket.connect":
        return bool(arguments[0].gettimeout() != 0)
    if event == "time.sleep":
        return bool(arguments[0] > 0)
    if event == "open":
        return not (isinstance(arguments[0], int) or str(arguments[0]).startswith(("/proc/", "/dev/", "/sys/")))
    return True


# Violations of this process; a raise may be swallowed by a broad `except`, the list is not.
violations: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    inet = event == "socket.connect" and arguments[0].family in {socket.AF_INET, socket.AF_INET6}
    if inet and not is_local(arguments[1]):
        violations.append(f"foreign socket: {arguments[1]}")
        raise ForeignSocket(f"tests may connect to this machine only, not to {arguments[1]}")
    if event not in BLOCKING or asyncio._get_running_loop() is None:
        return
    if not _waits(event, arguments):
        return
    frame = culprit(sys._getframe(1))
    if frame is not None:
        place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        violations.append(f"{event} in the event loop: {place}")
        raise BlockingCall(
            f"{event} blocks the event loop: {place}; use a thread, or a row in tests/guard.py's ALLOWED"
        )


_installed: list[Callable[..., None]] = []


def install() -> None:
    """Install both guards in this process, once; they stay until it ends."""
    if not _installed:
        _installed.append(_hook)
        sys.addaudithook(_hook)
        if sys.version_info < (3, 13):
            original = time.sleep

            def sleep(seconds: float) -> None:
                _hook("time.sleep", (seconds,))
                original(seconds)

            time.sleep = sleep  # type: ignore[assignment]


def guarded_environment(**more: str) -> dict[str, str]:
    """The environment for a started process of ours: the guards in it, warnings from our own code as errors.

    Every warning is an error there as well. A library that warns gets a filter in tests/guarded/sitecustomize.py, with
    its reason.
    """
    path = os.pathsep.join(part for part in (str(ROOT / "tests" / "guarded"), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", "INTERLOCK_GUARD": "1", **more}
