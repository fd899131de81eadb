"""How tasks of the event loop are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 3.0


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel, and again, until all have ended; what they raise is nobody's business any more.

    Before Python 3.12 `asyncio.wait_for` swallows a cancellation that comes when what it waits for is just done
    (python/cpython#86296): a task that asks in a loop would go on for ever, and so would whoever waits for its end.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()
