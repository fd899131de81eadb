"""How processes that are measured step back for those that serve: by a niceness that can be undone.

Rules of the file:
- What was measured is the very process that then serves. It is made nicer only where that can be undone: by RLIMIT_NICE
  (`LimitNICE=` of the service), or by the right to (CAP_SYS_NICE).
- Whether it can is tried, once, on a thread that ends with the trial: on Linux a niceness is a thread's own.
- A worker leads a process group, so that its group is all its threads.
- It leads a session too, and where the kernel groups what it schedules by sessions (autogroup: sched(7)), a niceness
  counts only within one: between two sessions it is that of the group that counts, so it is given both.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from functools import lru_cache

log = logging.getLogger("interlock.host")

NICEST = 19
GROUP_AGAIN_S = 0.1  # the kernel takes one niceness of a group in so long from whoever has no rights beyond his own
GROUP_TRIES = 20


@lru_cache(maxsize=1)
def can_be_undone() -> bool:
    """Whether this process may lower a niceness that it has raised. Blocks."""
    found = []

    def trial() -> None:
        me = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, me)
        try:
            os.setpriority(os.PRIO_PROCESS, me, own + 1)
            os.setpriority(os.PRIO_PROCESS, me, own)
            found.append(own < NICEST)
        except OSError:
            return

    thread = threading.Thread(target=trial)
    thread.start()
    thread.join()
    if not found:
        log.warning("measured workers cannot be made nicer: it could not be undone (RLIMIT_NICE)")
    return any(found)


def be_nicer(pid: int, nice: int) -> int:
    """Make all of a worker nicer than this process by so much; what holds then, 0 where it cannot be had. Blocks."""
    if nice and not can_be_undone():
        return 0
    own = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        _group(pid, min(nice, NICEST))  # a new session's is 0, whatever ours is
        os.setpriority(os.PRIO_PGRP, pid, min(own + nice, NICEST))
    except ProcessLookupError:
        return 0  # it has ended: whoever asks it next is told
    except OSError as failure:
        log.error("pid=%d niceness %+d: %s", pid, nice, failure)
        return 0
    return nice


def _group(pid: int, nice: int) -> None:
    """The niceness of its session among the others, where sessions are told apart. Blocks. Raises OSError."""
    for _ in range(GROUP_TRIES):
        try:
            with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
                file.write(str(nice))
        except FileNotFoundError:
            return  # a kernel without
        except BlockingIOError:
            time.sleep(GROUP_AGAIN_S)
        else:
            return
    raise BlockingIOError("the niceness of its session could not be changed")
