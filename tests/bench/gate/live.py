"""Verdicts of the whole gate, one by one on a real host under the three loads: whether the traces tell the truth.

They are too few to show a rate of a hundredth; they are compared with the thousands that were judged on recorded pairs.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import result
from tests.bench.gate import bed, rows, verdicts
from tests.bench.gate.cells import CELLS, Cell
from tests.bench.gate.figures import TWICE_S_MAX
from tests.bench.gate.judge import Tally, upper_bound
from tests.bench.gate.load import LOADS, load
from tests.bench.gate.rows import Row
from tests.bench.result import Figure

FILE = "verdicts.jsonl"
LIVE = tuple(cell for cell in CELLS if cell.name in ("same", "slower 1.3", "slower 2"))
VERDICTS = 20  # a cell and load
IN_A_ROW = 5  # under one load, then the next: so that a quiet hour is not one load's
WRONG_EXPECTED = 0.01  # of which so few verdicts can show no more than that they do not contradict it


def _of(done: Sequence[Row], kind: str, cell: Cell) -> list[Row]:
    return [row for row in done if (row["kind"], row["cell"]) == (kind, cell.name)]


async def _some(path: Path, scratch: Path, kind: str, wanted: int) -> None:
    """Until every cell has so many under that load."""
    async with bed.bed(scratch) as beds:
        while True:
            done = rows.read(path)
            short = [cell for cell in LIVE if len(_of(done, kind, cell)) < wanted]
            if not short:
                return
            random.Random(len(done)).shuffle(short)
            for cell in short:
                row, _ = await verdicts.one(beds, cell)
                rows.add(path, {"kind": kind, "commit": result.commit(), **row})
                print(f"  live, {kind}, {cell.name}: {row['outcome']} after {row['pairs']} pairs, "
                      f"{row['total_s']:.1f} s, load {row['load']:.1f}", file=sys.stderr, flush=True)  # fmt: skip


def record(folder: Path, scratch: Path, count: int) -> None:
    """What is missing of so many verdicts a cell and load."""
    for wanted in [*range(IN_A_ROW, count, IN_A_ROW), count]:
        for kind in LOADS:
            with load(kind):
                asyncio.run(_some(folder / FILE, scratch, kind, wanted))


def figures(folder: Path, traces: Mapping[str, Mapping[str, Tally]]) -> list[Figure]:
    """Of all that are recorded; `traces`: load → cell → what was judged on the recorded pairs, to stand beside them."""
    done = rows.read(folder / FILE)
    found: list[Figure] = []
    wrong = count = 0
    for kind in LOADS:
        for cell in LIVE:
            some = _of(done, kind, cell)
            if some:
                tally = tally_of(some)
                wrong, count = wrong + tally.wrong(cell), count + tally.count
                found += _cell(f"{kind}, {cell.name}", cell, some, tally, traces.get(kind, {}).get(cell.name))
    if found:
        bound = upper_bound(wrong, count)
        found.insert(0, Figure(f"all {count} verdicts: wrong (upper 95 % bound: {bound:.1%})", "verdicts", [wrong])
                     .at_most(WRONG_EXPECTED * count))  # fmt: skip
    return found


def tally_of(some: Sequence[Row]) -> Tally:
    """As the resampled verdicts are counted."""
    tally = Tally()
    for row in some:
        tally.add(row["outcome"])
        tally.pairs.append(row["pairs"])
        tally.seconds.append(row["measuring_s"] if row["measuring_s"] is not None else row["fast_s"])
    return tally


def _cell(name: str, cell: Cell, some: Sequence[Row], tally: Tally, traces: Tally | None) -> list[Figure]:
    """What the traces say stands in brackets."""

    def beside(text: str) -> str:
        return "" if traces is None else f" (on the traces: {text})"

    of_traces = traces or Tally(pairs=[0], seconds=[0.0])
    bound = upper_bound(tally.wrong(cell), tally.count)
    said = f"{tally.accept} accepted, {tally.reject} rejected, {tally.inconclusive} inconclusive"
    wrong = Figure(
        f"{name}: {said}; wrong, of {tally.count}, at most {bound:.1%}"
        + beside(f"{of_traces.wrong(cell) / max(1, of_traces.count):.2%}"),
        "verdicts",
        [tally.wrong(cell)],
    )
    open_share = of_traces.inconclusive / max(1, of_traces.count)
    seconds = Figure(
        f"{name}: self-test and pairs" + beside(f"{statistics.median(of_traces.seconds):.3g}"), "s", tally.seconds
    )
    return [
        wrong.at_most(WRONG_EXPECTED * tally.count),
        Figure(f"{name}: inconclusive" + beside(f"{open_share:.2%}"), "rate", [tally.inconclusive / tally.count]),
        Figure(f"{name}: pairs" + beside(f"{statistics.median(of_traces.pairs):g}"), "pairs",
               [float(pairs) for pairs in tally.pairs]),
        seconds.at_most(TWICE_S_MAX) if cell.name == "slower 2" else seconds,
        Figure(f"{name}: stage of speed, with warm-up", "s", [row["fast_s"] for row in some]),
        Figure(f"{name}: whole verdict, with loading both", "s", [row["total_s"] for row in some]),
        Figure(f"{name}: load average before it", "processes", [row["load"] for row in some]),
    ]  # fmt: skip
