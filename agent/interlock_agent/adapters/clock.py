"""Time and chance.

- The wall clock never counts below its floor: a device without a battery wakes up in 1970.
- The floor is raised by times that were signed, and by time that has passed since; never by the wall clock, which may
  be years ahead: what it says is followed while it says so, and never remembered.
- It falls only with the keys that have said it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable


class SystemClock:
    """The Clock port. `wall` is the machine's clock: seconds since the epoch."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._floor = self._floor_set = 0.0

    def raise_floor(self, seconds: float) -> None:
        """Never lowers it."""
        if seconds > self.floor():
            self._floor, self._floor_set = seconds, self.monotonic()

    def forget_floor(self) -> None:
        """What was said of the time counts no more: the keys that said it were taken away."""
        self._floor = 0.0

    def floor(self) -> float:
        """The newest signed time and what has passed since, in suspend too; 0 before there was one."""
        return self._floor + self.monotonic() - self._floor_set if self._floor else 0.0

    def behind(self) -> float:
        """Seconds by which the machine's clock lies below the floor: it is wrong, and the floor is used."""
        return max(0.0, self.floor() - self._wall())

    def now(self) -> float:
        """Seconds since the epoch; from the floor on, when the machine's clock is behind it."""
        return max(self._wall(), self.floor())

    def monotonic(self) -> float:
        """CLOCK_BOOTTIME: passes in suspend too."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(max(0.0, seconds))

    def dice(self) -> float:
        """Uniform in [0, 1). Jitter, not a secret."""
        return random.random()  # jitter
