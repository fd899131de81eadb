"""100 swaps under the load of 32 mixed clients: busy, mostly idle on kept connections, a new connection each request.

Counted: requests that failed, and answers of the former release to requests that were sent after `promote` returned.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from interlock_agent.host import messages
from tests.bench.result import Figure, quantile
from tests.host.clients import Load
from tests.host.rig import UNIT, running

SWAPS = 100


async def _swaps(folder: Path, count: int) -> list[Figure]:
    took, wrong = [], 0
    async with running(folder, guarded=False) as rig:
        await rig.confirmed(1)
        async with Load(rig.address, busy=12, idle=12, fresh=8) as load:
            await load.served(200)
            for generation in range(2, 2 + count):
                before = (await rig.agent.status())["live"]
                began = time.monotonic()
                await rig.promote(generation)
                after = time.monotonic()
                took.append((after - began) * 1000)
                await load.served(40)
                wrong += load.answered_after(after, before)
                await rig.agent.order(messages.Confirm(UNIT, generation))
        latencies = [(answered - asked) * 1000 for asked, answered, _ in load.log]
        return [
            Figure("swaps", "count", [float(count)]),
            Figure("requests", "count", [float(load.answers.total())]),
            Figure("failed requests", "count", [float(len(load.failures))]).at_most(0),
            Figure("answers from the wrong release", "count", [float(wrong)]).at_most(0),
            Figure("load, place and promote", "ms", took),
            Figure("latency p50 throughout", "ms", [quantile(latencies, 0.5)]),
            Figure("latency p99 throughout", "ms", [quantile(latencies, 0.99)]),
        ]


def run(folder: Path, scale: float) -> list[Figure]:
    """The swaps."""
    return asyncio.run(_swaps(folder, max(2, int(SWAPS * scale))))
