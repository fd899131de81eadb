"""Keeps the trust metadata fresh: at the server's notice, at a new session with the broker, and now and then.

What comes is journaled before anything acts on it; a refresh that fails changes nothing, and is tried again.
"""

from __future__ import annotations

import asyncio
import logging

from interlock_agent.core.retry import backoff
from interlock_agent.engine import Engine
from interlock_agent.ports import Ports
from interlock_shared.errors import InterlockError, Later

log = logging.getLogger("interlock.refresher")


class Refresher:
    """`spread_s`: devices that hear the same notice ask at different times inside it; `every_s`: without one."""

    def __init__(self, engine: Engine, ports: Ports, spread_s: float, every_s: float) -> None:
        self._engine, self._ports, self._spread_s, self._every_s = engine, ports, spread_s, every_s
        self._noticed = asyncio.Event()

    def noticed(self) -> None:
        """There may be newer metadata."""
        self._noticed.set()

    async def run(self) -> None:
        """Until cancelled."""
        clock = self._ports.clock
        while True:
            try:
                await asyncio.wait_for(self._noticed.wait(), self._every_s * (0.5 + clock.dice()))
            except asyncio.TimeoutError:
                pass
            await clock.sleep(self._spread_s * clock.dice())
            self._noticed.clear()  # a notice from now on is of something newer
            await self._refresh()

    async def _refresh(self) -> None:
        failures = 0
        while True:
            try:
                await self._engine.shared.trust_moved(await self._ports.fetcher.refresh())
                return
            except Later as error:
                failures += 1
                log.debug("metadata: %s", error.message)
                await self._ports.clock.sleep(backoff(failures, self._ports.clock.dice()))
            except InterlockError as error:  # refused: it is asked for again when there is something newer
                log.warning("metadata refused: %s", error.message)
                return
