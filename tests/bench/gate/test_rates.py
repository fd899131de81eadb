"""The shipped rules of speed, judged on a slice of recorded pairs: noise of a real machine, the same at every run."""

from __future__ import annotations

import math
import statistics

import pytest

from tests.bench.gate import judge, traces
from tests.bench.gate.cells import CELLS, Cell
from tests.bench.gate.figures import COVERED_MIN, INCONCLUSIVE_MAX, PAIRS_MAX, WRONG_MAX
from tests.bench.gate.judge import Tally
from tests.bench.gate.load import LOADS

VERDICTS = 600


@pytest.fixture(scope="module")
def judged() -> dict[str, dict[str, dict[str, Tally]]]:
    return {kind: judge.tallies(traces.read([traces.COMMITTED / f"{kind}.npz"]), VERDICTS, 7) for kind in LOADS}


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_the_gate_is_right_under_load(judged: dict[str, dict[str, dict[str, Tally]]], kind: str, cell: Cell) -> None:
    tally = judged[kind]["shipped"][cell.name]
    assert tally.count == VERDICTS
    assert tally.wrong(cell) <= WRONG_MAX * VERDICTS
    assert tally.inconclusive <= INCONCLUSIVE_MAX * VERDICTS
    assert statistics.median(tally.pairs) <= PAIRS_MAX
    if cell.work == 1.05:
        assert tally.covered >= COVERED_MIN * VERDICTS


def test_what_people_use_today_is_often_wrong_on_the_same_pairs(judged: dict[str, dict[str, dict[str, Tally]]]) -> None:
    """Not a check of ours but of the traces: were they quiet, everything would be right on them."""
    for rule in judge.NAIVE:
        share = [judged[kind][rule][cell.name] for kind in ("steady", "toggling") for cell in CELLS]
        useless = sum(tally.wrong(cell) + tally.inconclusive for tally, cell in zip(share, 2 * CELLS, strict=True))
        assert useless > WRONG_MAX * VERDICTS * len(share), rule


@pytest.mark.parametrize(("events", "of"), [(0, 100), (1, 100), (5, 50), (40, 5000)])
def test_the_upper_bound_of_a_rate(events: int, of: int) -> None:
    p = judge.upper_bound(events, of)
    assert sum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(events + 1)) == pytest.approx(
        0.05, rel=1e-6
    )


def test_of_nothing_but_errors_everything_may_be_wrong() -> None:
    assert judge.upper_bound(3, 3) == 1.0
