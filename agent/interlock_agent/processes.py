"""How a process that this one has started ends: with it, or when it is asked to."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # prctl(2)


def ends_with_us(number: int) -> Callable[[], object]:
    """For `preexec_fn`: the kernel sends it that signal when this process ends, whatever ends that."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, number)


async def ended(process: asyncio.subprocess.Process, patience_s: float) -> None:
    """It was asked to end: wait until it has. One that does not listen is killed."""
    try:
        await asyncio.wait_for(process.wait(), patience_s)
    except asyncio.TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
