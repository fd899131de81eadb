"""What the host asks of fronts while they end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from interlock_agent.host.adapters.fronts import Front, ProcessFronts
from interlock_agent.host.listeners import Listeners
from interlock_agent.host.manager import Kept
from interlock_agent.host.messages import Promoted


class Silent:
    """A front's process that answers nothing but that it stopped, and ends when it is asked to."""

    def __init__(self, front: Front) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._front = front

    def send(self, said: dict[str, Any]) -> None:
        if "stop" in said:
            self._front.waiting.pop((said["n"], "stopped")).set_result(True)

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result("exit 0")


async def test_a_switch_that_is_under_way_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async def lost(unit: str, worker: str) -> None:
        raise AssertionError(worker)

    fronts = ProcessFronts(
        tmp_path, tmp_path, lambda worker: ("", 1), {}, lost, lambda unit, worker, said: None, Listeners(Kept({}))
    )
    front = Front("m", socket.socket(), "127.0.0.1:1", {}, {})
    front.child = Silent(front)  # type: ignore[assignment]
    fronts._fronts["m"] = front
    under_way = asyncio.create_task(fronts.serve("m", None, None, 0.0))
    await asyncio.sleep(0)  # it has asked
    await fronts.close(10.0)
    async with asyncio.timeout(5.0):  # a front that is silent and lives is given 25 s
        assert await (await under_way) == Promoted(0, 0, 0.0)
        assert await (await fronts.serve("m", None, None, 0.0)) == Promoted(0, 0, 0.0)
