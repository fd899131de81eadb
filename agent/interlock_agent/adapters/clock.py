"""Time and chance. The wall clock never runs below its floor: a device without a battery wakes up in 1970."""

from __future__ import annotations

import asyncio
import random
import time


class SystemClock:
    """The Clock port. `floor`: the highest wall time (seconds since the epoch) that was ever believed."""

    def __init__(self, floor: float = 0.0) -> None:
        self._floor = floor
        self._floor_set = self.monotonic()

    def raise_floor(self, seconds: float) -> None:
        """Never lowers it."""
        if seconds > self._floor:
            self._floor, self._floor_set = seconds, self.monotonic()

    @property
    def behind(self) -> bool:
        """Whether the device's clock lies below the floor: it is wrong, and the floor is used."""
        return time.time() < self._floor

    def now(self) -> float:
        """Seconds since the epoch; from the floor on, when the clock is behind it, it goes on by the monotonic one."""
        return max(time.time(), self._floor + self.monotonic() - self._floor_set if self.behind else 0.0)

    def monotonic(self) -> float:
        """CLOCK_BOOTTIME: passes in suspend too."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(max(0.0, seconds))

    def dice(self) -> float:
        """Uniform in [0, 1). Jitter, not a secret."""
        return random.random()  # jitter
