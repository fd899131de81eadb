"""What a dead host has left behind is ended before its successor serves anything.

Rules of the file:
- Fronts and workers end with their host: by the kernel's signal, and at the end of their control stream. What lives all
  the same (a process that was kept from both, a child of one) would answer, or hold memory that is counted on.
- Found twice: by the records (pid and start time), and by the mark in the environment, since records go with `run_dir`,
  and a host may be killed before one is written. The mark is the state folder: who holds its lock is its only host.
- Ended by the order that nobody can ignore, through a descriptor of that very process: a pid alone is reused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from interlock_agent.host.children import MARK, start_time

log = logging.getLogger("interlock.host")

GONE_S = 5.0  # for what was killed to be gone; one that hangs in a driver is told, and not waited for any longer


def mark_of(state: Path) -> str:
    """Of the children of the host of that folder, whatever path leads there."""
    known = state.stat()
    return f"{known.st_dev}:{known.st_ino}"


def end_leftovers(records: Path, mark: str) -> list[int]:
    """Kill them and wait until they are gone; their pids. A record stays as long as its process does. Blocks."""
    ended = []
    for entry in sorted(records.iterdir()):
        if not entry.name.isdigit():
            continue
        pid, recorded = int(entry.name), entry.read_text(encoding="utf-8").strip()
        there = bool(recorded) and _end(pid, partial(_started, pid, recorded))
        ended += [pid] if there else []
        if not there or start_time(pid) != recorded:
            entry.unlink(missing_ok=True)
    for pid in _marked(mark):
        if _end(pid, partial(_has, pid, mark)):
            ended.append(pid)
    return ended


def _started(pid: int, at: str) -> bool:
    return start_time(pid) == at


def _has(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has gone, or is another user's
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def _marked(mark: str) -> list[int]:
    found = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in found if pid != os.getpid() and _has(pid, mark)]


def _end(pid: int, is_it: Callable[[], bool]) -> bool:
    """Kill the process that `is_it`, and wait; whether there was one."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_it():
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        if not waiting.poll(GONE_S * 1000):
            log.error("pid=%d was left by a predecessor and does not end", pid)
        return True
    finally:
        os.close(process)
