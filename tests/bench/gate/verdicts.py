"""One verdict of the whole gate on a real host, by the shipped stages, and when what happened in it."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.adapters.host_client import HostClient
from interlock_agent.core.gate import checks
from interlock_agent.host import messages
from interlock_agent.steps.gate import variants
from interlock_agent.steps.gate.run import Run, Tried
from tests.bench.gate.bed import Bed
from tests.bench.gate.cells import Cell

UNIT = "judged"


@dataclass
class Watch:
    """The host, and when blocks were asked of it and looks were told, in the stage of speed."""

    host: HostClient
    blocks: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)

    def tell(self, **figures: Any) -> None:
        """Progress, as the stages tell it."""
        if "pairs" in figures:
            self.looks.append(time.monotonic())
        elif figures.get("stage") == "fast":
            self.blocks.clear()

    async def request(self, order: Any) -> dict[str, Any]:
        """As the host's."""
        if isinstance(order, messages.Probe):
            self.blocks.append(time.monotonic())
        return await self.host.request(order)

    async def event(self, unit: str, timeout_s: float) -> dict[str, Any] | None:
        """As the host's."""
        return await self.host.event(unit, timeout_s)

    def drop_events(self, unit: str) -> None:
        """As the host's."""
        self.host.drop_events(unit)

    def measuring_s(self, warm_up_blocks: int) -> float | None:
        """From the first block that counts to the look that decided; None where there was no look."""
        if not self.looks or len(self.blocks) <= warm_up_blocks:
            return None
        return self.looks[-1] - self.blocks[warm_up_blocks]


async def one(beds: Bed, cell: Cell) -> tuple[dict[str, Any], Run]:
    """A verdict from nothing loaded to nothing left, as a row; and its run."""
    load, began = os.getloadavg()[0], time.monotonic()
    watch = Watch(beds.host)
    run, _ = await asyncio.to_thread(beds.run_of, cell, UNIT, watch, watch.tell)
    await run.begin()
    try:
        judged = await variants.judge(run)
        await run.retire(judged.chosen.worker)
    finally:
        await run.end()
    return _row(cell, judged.chosen, watch) | {"total_s": time.monotonic() - began, "load": load}, run


def _row(cell: Cell, tried: Tried, watch: Watch) -> dict[str, Any]:
    outcome, reason, message = checks.conclude(tried.stages)
    fast = next(stage for stage in tried.stages if stage.stage == "fast")
    ratios = {check.check: check for check in fast.checks if check.check.startswith("latency_ratio_")}
    work = ratios.get("latency_ratio_work")
    detail = work.detail if work is not None else {}
    return {
        "cell": cell.name,
        "outcome": outcome,
        "reason": reason,
        "message": message,
        "pairs": int(detail.get("pairs", 0)),
        "ratios": {name: check.measured for name, check in ratios.items()},
        "measuring_s": watch.measuring_s(sum(dict(detail.get("warm_up_blocks", {})).values())),
        "fast_s": fast.seconds,
    }
