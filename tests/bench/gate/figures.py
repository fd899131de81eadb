"""The judged traces as figures with their targets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from tests.bench.gate.cells import CELLS
from tests.bench.gate.judge import Tally, upper_bound
from tests.bench.result import Figure

WRONG_MAX = 0.01
INCONCLUSIVE_MAX = 0.10
PAIRS_MAX = 40
COVERED_MIN = 0.95
TWICE_S_MAX = 3.0
JUDGED = ("same", "slower 1.2", "slower 1.3", "slower 2")  # cells with a target; the rest is shown


def of_load(load: str, judged: Mapping[str, Mapping[str, Tally]]) -> list[Figure]:
    """All figures of a load: the shipped rules with targets, the others beside them."""
    figures: list[Figure] = []
    for cell in CELLS:
        tally = judged["shipped"][cell.name]
        name = f"{load}, {cell.name}"
        wrong = tally.wrong(cell) / tally.count
        bound = Figure(f"{name}: wrong, upper 95 % bound (seen: {wrong:.2%})", "rate",
                       [upper_bound(tally.wrong(cell), tally.count)])  # fmt: skip
        strict = cell.name in JUDGED or cell.crowded
        figures.append(bound.at_most(WRONG_MAX) if strict else bound)
        rest = Figure(f"{name}: inconclusive", "rate", [tally.inconclusive / tally.count])
        figures.append(rest.at_most(INCONCLUSIVE_MAX) if cell.name in JUDGED else rest)
        pairs = Figure(f"{name}: pairs to a verdict", "pairs", [statistics.median(tally.pairs)])
        figures.append(pairs.at_most(PAIRS_MAX) if cell.name in JUDGED else pairs)
        seconds = Figure(f"{name}: time to a verdict", "s", [statistics.median(tally.seconds)])
        figures.append(seconds.at_most(TWICE_S_MAX) if cell.name == "slower 2" else seconds)
        if cell.name == "slower 1.05":
            figures.append(Figure(f"{name}: the interval does not hold 1.05", "rate",
                                  [1 - tally.covered / tally.count]).at_most(1 - COVERED_MIN))  # fmt: skip
        for rule, cells in judged.items():
            if rule != "shipped":
                other = cells[cell.name]
                figures.append(Figure(f"{name}: wrong by {rule}", "rate", [other.wrong(cell) / other.count]))
                if other.inconclusive:
                    share = other.inconclusive / other.count
                    figures.append(Figure(f"{name}: no answer by {rule}", "rate", [share]))
    return figures
