"""An event loop with virtual time: time passes only when nothing is left to do, and never really.

Rules of the file:
- No thread, no socket, no real clock: what runs in it is replayed exactly by the same seed.
- Nothing runnable and no timer means that nothing will ever happen again: `Stuck`.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

HASTE_MAX = 20_000  # turns of the loop in one instant
LEAST_S = 1e-6  # less than that is lost when it is added to the time
EPOCH = 1_700_000_000.0  # UTC at virtual time 0


class Stuck(AssertionError):
    """Everything waits for something that nobody will bring."""


class _Timeless(selectors.SelectSelector):
    loop: VirtualLoop
    haste = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is runnable, and no timer is set")
        self.haste = 0 if timeout > 0 else self.haste + 1
        if self.haste > HASTE_MAX:
            self.haste = 0
            raise Stuck("something goes round and round, and time does not pass")
        self.loop.virtual += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual; seconds."""

    def __init__(self) -> None:
        selector = _Timeless()
        selector.loop = self
        self.virtual = 0.0
        super().__init__(selector)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self.virtual


class VirtualClock:
    """The clock of agent and of host. `dice`: chance is the simulation's."""

    def __init__(self, loop: VirtualLoop, dice: Any) -> None:
        self._loop, self._dice = loop, dice

    def now(self) -> float:
        """The agent's: seconds since the epoch."""
        return EPOCH + self._loop.virtual

    signed = 0.0

    def floor(self) -> float:
        """The newest signed time and what has passed since."""
        return self.signed + self._loop.virtual if self.signed else 0.0

    def raise_floor(self, seconds: float) -> None:
        """Never lowers it."""
        self.signed = max(self.signed, seconds - self._loop.virtual)

    def forget_floor(self) -> None:
        """The keys that said it were taken away."""
        self.signed = 0.0

    def behind(self) -> float:
        """Seconds."""
        return max(0.0, self.floor() - self.now())

    def utc(self) -> float:
        """The host's: seconds since the epoch."""
        return EPOCH + self._loop.virtual

    def monotonic(self) -> float:
        """CLOCK_BOOTTIME."""
        return 1000.0 + self._loop.virtual

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(max(LEAST_S, seconds) if seconds > 0 else 0.0)

    def dice(self) -> float:
        """Uniform in [0, 1)."""
        return float(self._dice.random())


class HostClock(VirtualClock):
    """The host calls CLOCK_BOOTTIME `now`."""

    def now(self) -> float:
        """CLOCK_BOOTTIME."""
        return self.monotonic()
