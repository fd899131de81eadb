"""How processes that are measured step back for those that serve: by a niceness that can be undone.

Rules of the file:
- What was measured is the very process that then serves. It is made nicer only where that can be undone: by RLIMIT_NICE
  (`LimitNICE=` of the service), or by the right to (CAP_SYS_NICE).
- Whether it can is tried, once, on a thread that ends with the trial: on Linux a niceness is a thread's own.
- A worker leads a process group, so that its group is all its threads.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import lru_cache

log = logging.getLogger("interlock.host")

NICEST = 19


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
        os.setpriority(os.PRIO_PGRP, pid, min(own + nice, NICEST))
    except ProcessLookupError:
        return 0  # it has ended: whoever asks it next is told
    except OSError as failure:
        log.error("pid=%d niceness %+d: %s", pid, nice, failure)
        return 0
    return nice
