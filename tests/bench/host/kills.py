"""The live worker is killed (-9) again and again under the crowd: in a trial, where the standby takes over, and after a
confirmation, where the same release is loaded again. Time from the kill to the first good answer to a request that was
asked after it, and requests lost.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from bisect import bisect_left
from pathlib import Path

from interlock_agent.host import messages
from tests.bench.host.crowd import Seen, asking
from tests.bench.host.slots import serve
from tests.bench.result import Figure
from tests.host import clients
from tests.host.rig import UNIT, Rig, running

KILLS = 100


async def _kill(rig: Rig) -> float:
    """When it was; returns when the model answers again."""
    pid = await rig.live_pid()
    moment = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    reply = await clients.infer(rig.address)
    if reply.status != 200:
        raise AssertionError(f"{reply.status}: {reply.body!r}")
    return moment


async def _one(rig: Rig, generation: int, confirm: bool) -> float:
    status = await rig.agent.status()
    slot = "b" if status["confirmed_slot"] == "a" else "a"
    loaded = await rig.agent.order(messages.Load(UNIT, generation, str(rig.slots / slot), "candidate", {}))
    await rig.agent.order(messages.Promote(UNIT, generation, loaded["worker"], slot))
    if confirm:
        await rig.agent.order(messages.Confirm(UNIT, generation))
    for _ in range(5):
        await clients.infer(rig.address)
    moment = await _kill(rig)
    if not confirm:
        await rig.agent.event("outcome", generation=generation, outcome="reverted")
    return moment


async def _kills(folder: Path, count: int, confirm: bool) -> tuple[list[float], Seen]:
    async with running(folder, guarded=False) as rig:
        await serve(rig)
        async with asking(rig.address, folder) as seen:
            moments = [await _one(rig, generation, confirm) for generation in range(2, 2 + count)]
    return moments, seen


def _first_good(moments: list[float], seen: Seen) -> list[float]:
    """Milliseconds from each kill to the first good answer to what was asked after it."""
    answers = sorted(seen.answers)
    asked = [one[0] for one in answers]
    took = []
    for moment in moments:
        later = answers[bisect_left(asked, moment) :][:2000]  # the first good answer is among the first that were asked
        took.append((min(answered for _, answered, _, _ in later) - moment) * 1000)
    return took


def figures(folder: Path, scale: float) -> list[Figure]:
    """Both kinds."""
    rows = []
    for name, confirm, target in (("in a trial", False, 50.0), ("after confirmation", True, 0.0)):
        count = max(2, int(KILLS * scale))
        print(f"  kills {name}: {count}", flush=True)
        moments, seen = asyncio.run(_kills(folder / name.split()[0], count, confirm))
        took = Figure(f"killed {name}: first good answer", "ms", _first_good(moments, seen))
        rows += [
            took.at_most(target) if target else took,
            Figure(f"killed {name}: requests lost", "count", [float(len(seen.failures))]).at_most(0),
            Figure(f"killed {name}: requests", "count", [float(len(seen.answers))]),
        ]
        for _, _, kind, what in seen.failures[:5]:
            print(f"  failed: {kind}: {what}")
    return rows
