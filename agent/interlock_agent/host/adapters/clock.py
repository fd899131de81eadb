"""Time, as the kernel tells it."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """`ports.Clock` on this machine."""

    def now(self) -> float:
        """CLOCK_BOOTTIME, seconds."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def utc(self) -> float:
        """Seconds since 1970."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait. The loop's clock stands still in suspend; whoever wakes looks at `now` again."""
        await asyncio.sleep(seconds)
