"""Record pairs under a load: the cells in turn, so that all see the same minutes. In parts of a minute, each written
when it is whole, so that a recording that was cut off goes on."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

from interlock_agent.steps.gate.fast import Measure
from tests.bench.gate import bed, traces
from tests.bench.gate.cells import CELLS
from tests.bench.gate.load import LOADS, load

PART_S = 60.0


def parts(folder: Path, kind: str) -> list[Path]:
    """What is recorded of a load."""
    return sorted((folder / kind).glob("*.npz"))


async def _part(beds: bed.Bed, measures: list[Measure], dice: random.Random) -> traces.Arrays:
    arrays: traces.Arrays = {}
    end = time.monotonic() + PART_S
    turns = list(zip(CELLS, measures, strict=True))
    while time.monotonic() < end:
        dice.shuffle(turns)
        for cell, measure in turns:
            bed.samples(measure)
            began = time.perf_counter()
            pair = await measure.pair((measure.tried.worker, "candidate"), (measure.run.twin, "incumbent"))
            seconds = time.perf_counter() - began
            if pair is not None:
                traces.add(arrays, cell.name, bed.samples(measure), seconds)
    del beds
    return arrays


async def _load(folder: Path, scratch: Path, kind: str, missing: int) -> None:
    done = len(parts(folder, kind))
    with load(kind):
        async with bed.bed(scratch) as beds:
            measures = await bed.measured(beds, CELLS)
            for number in range(done, done + missing):
                arrays = await _part(beds, measures, random.Random(number))
                await asyncio.to_thread(traces.write, folder / kind / f"{number:04}.npz", arrays)
                pairs = len(arrays[f"{CELLS[0].name}/seconds"])
                print(f"  {kind}: minute {number + 1} of {done + missing}, {pairs} pairs a cell", flush=True)


def record(folder: Path, scratch: Path, minutes: int) -> None:
    """Until every load has so many minutes; the loads take turns of five, so that a quiet hour is not one load's."""
    while True:
        short = [kind for kind in LOADS if len(parts(folder, kind)) < minutes]
        if not short:
            return
        kind = min(short, key=lambda one: (len(parts(folder, one)), LOADS.index(one)))
        asyncio.run(_load(folder, scratch, kind, min(5, minutes - len(parts(folder, kind)))))
