"""Memory that the host's processes hold when a model serves and nobody asks: resident, as the kernel counts it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.bench.result import Figure
from tests.host import clients
from tests.host.rig import Rig, running

ROUNDS = 5
MIB = 2**20


def resident(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / MIB
    raise AssertionError(f"process {pid} has no memory: it has ended")


def _what(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    return "front" if "interlock_agent.host.front" in command else "worker"


async def _held(rig: Rig) -> dict[str, float]:
    await rig.confirmed(1)
    for _ in range(50):
        await clients.infer(rig.address)
    children = await asyncio.to_thread(rig.children)
    found = {_what(pid): resident(pid) for pid in children if pid != rig.process.pid}
    return {"host": resident(rig.process.pid), **found}


async def _rounds(folder: Path, rounds: int) -> list[dict[str, float]]:
    held = []
    for number in range(rounds):
        async with running(folder / str(number), guarded=False) as rig:
            held.append(await _held(rig))
    return held


def figures(folder: Path, scale: float) -> list[Figure]:
    """Of host, front and a worker with a tiny model."""
    held = asyncio.run(_rounds(folder, ROUNDS))
    targets = {"host": 40.0, "front": 25.0}
    rows = []
    for what in ("host", "front", "worker"):
        row = Figure(f"memory: {what}", "MiB", [round(one[what], 1) for one in held])
        rows.append(row.at_most(targets[what]) if what in targets else row)
    return rows
