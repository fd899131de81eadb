"""The live worker is killed (-9): 20 times in a trial, where the standby takes over, and after a confirmation, where
the same release is loaded again. Time to the first good answer that was asked for afterwards, and failed requests.

After a confirmation a second and further crash in a short time waits before the next load (a release that keeps
crashing must not burn the device); every kill but the first of a host is such a one, so each gets a host of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from tests.bench.result import Figure
from tests.host.clients import Load
from tests.host.rig import Rig, running, until

KILLS = 20


async def _kill(rig: Rig, load: Load) -> float:
    """Milliseconds until the first answer to a request that was sent after the kill."""
    pid = await rig.live_pid()
    place = len(load.log)
    os.kill(pid, signal.SIGKILL)
    moment = time.monotonic()
    done = await until(
        lambda: [answered for asked, answered, _ in load.log[place:] if asked >= moment], "a good answer"
    )
    return float(min(done) - moment) * 1000


async def _in_trials(folder: Path, count: int) -> tuple[list[float], int, int]:
    took = []
    async with running(folder, guarded=False) as rig:
        await rig.confirmed(1)
        async with Load(rig.address, busy=8, idle=4, fresh=4) as load:
            await load.served(100)
            for generation in range(2, 2 + count):
                await rig.promote(generation)
                await load.served(20)
                took.append(await _kill(rig, load))
                await rig.agent.event("outcome", generation=generation, outcome="reverted")
        return took, len(load.failures), load.answers.total()


async def _after_confirmation(folder: Path, count: int) -> tuple[list[float], int, int]:
    took, failed, answered = [], 0, 0
    for number in range(count):
        async with running(folder / str(number), guarded=False) as rig:
            await rig.confirmed(1)
            async with Load(rig.address, busy=8, idle=4, fresh=4) as load:
                await load.served(50)
                took.append(await _kill(rig, load))
            failed += len(load.failures)
            answered += load.answers.total()
    return took, failed, answered


def run(folder: Path, scale: float) -> list[Figure]:
    """Both kinds."""
    count = max(2, int(KILLS * scale))
    trial, trial_failed, trial_answers = asyncio.run(_in_trials(folder / "t", count))
    later, later_failed, later_answers = asyncio.run(_after_confirmation(folder, count))
    return [
        Figure("killed in a trial: first good answer", "ms", trial),
        Figure("killed in a trial: failed requests", "count", [float(trial_failed)]).at_most(0),
        Figure("killed in a trial: requests", "count", [float(trial_answers)]),
        Figure("killed after confirmation: first good answer", "ms", later),
        Figure("killed after confirmation: failed requests", "count", [float(later_failed)]).at_most(0),
        Figure("killed after confirmation: requests", "count", [float(later_answers)]),
    ]
