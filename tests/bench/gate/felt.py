"""What applications feel of a gate: latencies of a model that serves, without a gate and while gates run, in turns.

A round is a few times: no gate for longer than the front remembers, so that the gate knows what it was like before it;
then one whole gate of a release as fast as its incumbent, by the shipped stages.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlock_agent.config import UnitGate
from interlock_agent.host.front.recent import WINDOW_S
from tests.bench import result
from tests.bench.gate import bed, rows, verdicts
from tests.bench.gate.cells import CELLS, TURNS
from tests.bench.gate.clients import clients
from tests.bench.gate.rows import Row
from tests.bench.result import Figure, quantile

FILE = "felt.jsonl"
ROUNDS = 6
GATE_S = 15.0  # of each round, at least
WITHOUT_S = 2 * WINDOW_S  # before each gate
QUANTILES = ((0.5, "p50"), (0.99, "p99"))
SLOWDOWN_MAX = UnitGate().live_slowdown_max


async def _round(beds: bed.Bed) -> Row:
    """Milliseconds of every answer `without` and `with` a gate, and what the gates tell of it."""
    spans: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    told: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    async with clients(beds.serving) as asking:
        await asyncio.sleep(WITHOUT_S)
        while sum(ended - began for began, ended in spans["with"]) < GATE_S:
            began = time.monotonic()
            await asyncio.sleep(WITHOUT_S)
            between = time.monotonic()
            row, run = await verdicts.one(beds, CELLS[0])
            spans["without"].append((began, between))
            spans["with"].append((between, time.monotonic()))
            told.append({"outcome": row["outcome"], "total_s": row["total_s"], **run.guest.document()})
    found: Row = {"load": load, "commit": result.commit(), "gates": told}
    for name, some in spans.items():
        found[name] = [round(ms, 3) for span in some for ms in asking.between(*span)]
    return found


def slowdown(row: Row, q: float) -> float:
    """That quantile with a gate ÷ without."""
    return quantile(row["with"], q) / quantile(row["without"], q)


async def _record(path: Path, scratch: Path, missing: int) -> None:
    async with bed.bed(scratch, serving=TURNS) as beds:
        for _ in range(missing):
            row = await _round(beds)
            rows.add(path, row)
            slower = ", ".join(f"{name} × {slowdown(row, q):.2f}" for q, name in QUANTILES)
            print(f"  felt: {len(row['gates'])} gates, {slower}, load {row['load']:.1f}", file=sys.stderr, flush=True)


def record(folder: Path, scratch: Path, count: int) -> None:
    """What is missing of so many rounds."""
    missing = count - len(rows.read(folder / FILE))
    if missing > 0:
        asyncio.run(_record(folder / FILE, scratch, missing))


def figures(folder: Path) -> list[Figure]:
    """Of all that are recorded."""
    done = rows.read(folder / FILE)
    if not done:
        return []
    gates = [gate for row in done for gate in row["gates"]]
    found = []
    for q, text in QUANTILES:
        for name, what in (("without", "without a gate"), ("with", "while gates run")):
            found.append(Figure(f"live {text} {what}", "ms", [quantile(row[name], q) for row in done]))
        ratio = Figure(f"live {text} with ÷ without", "ratio", [slowdown(row, q) for row in done])
        found.append(ratio.at_most(SLOWDOWN_MAX) if text == "p99" else ratio)
    return [
        *found,
        Figure("answers without a gate", "count", [float(len(row["without"])) for row in done], total=True),
        Figure("answers while gates ran", "count", [float(len(row["with"])) for row in done], total=True),
        Figure("a gate, from begin to end", "s", _told(gates, "total_s")),
        Figure("of it stepped back", "s", _told(gates, "yielded_s")),
        Figure("worst p99 that a gate saw ÷ before it", "ratio", _told(gates, "slowdown_worst")),
        Figure("blocks of a gate measured nicer", "blocks", _told(gates, "nice_blocks")),
        Figure("gates without a result", "count", [float(g["outcome"] == "inconclusive") for g in gates], total=True),
        Figure("gates that were wrong", "count", [float(g["outcome"] == "reject") for g in gates], total=True),
        Figure("load average before a round", "processes", [row["load"] for row in done]),
    ]


def _told(gates: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [float(gate[name]) for gate in gates]
