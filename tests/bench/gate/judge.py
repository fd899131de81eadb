"""Thousands of verdicts on recorded pairs: the shipped rules, and beside them what people use today.

A verdict's pairs are resampled from the trace in blocks (Künsch, 1989), so that what one minute of load does to many
pairs in a row stays together. The shipped rules are core.gate.fast's own functions, fed as the stage feeds them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from interlock_agent.core.gate import fast
from tests.bench.gate.cells import CELLS, LIMIT, Cell
from tests.bench.gate.traces import Pairs

BUDGET_S = 60.0
RUN_OF_PAIRS = 24  # that stay together when a trace is resampled
NAIVE_RUNS = 100


@dataclass
class Tally:
    """Verdicts of a cell. `covered`: the work interval held the true ratio."""

    accept: int = 0
    reject: int = 0
    inconclusive: int = 0
    pairs: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    covered: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.accept + self.reject + self.inconclusive

    def wrong(self, cell: Cell) -> int:
        """Accepted and unfit, or rejected and fit."""
        return self.reject if cell.fit else self.accept

    def add(self, outcome: str) -> None:
        """One more."""
        setattr(self, outcome, getattr(self, outcome) + 1)


def upper_bound(events: int, of: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate (Clopper and Pearson, 1934), by bisection of the binomial's sum."""
    if of == 0 or events >= of:
        return 1.0
    low, high = events / of, 1.0
    log_choose = np.cumsum(np.concatenate([[0.0], np.log(np.arange(of, of - events, -1) / np.arange(1, events + 1))]))
    k = np.arange(events + 1)
    for _ in range(50):
        p = (low + high) / 2
        tail = float(np.exp(log_choose + k * np.log(p) + (of - k) * np.log1p(-p)).sum())
        low, high = (p, high) if tail > 1 - confidence else (low, p)
    return high


def resampled(pairs: Pairs, dice: random.Random) -> Iterator[int]:
    """Indices of pairs, in runs that stay together, for ever."""
    while True:
        start = dice.randrange(len(pairs))
        for offset in range(RUN_OF_PAIRS):
            yield (start + offset) % len(pairs)


def shipped(cell: Cell, trace: Mapping[str, Pairs], dice: random.Random, tally: Tally) -> None:
    """One verdict as the stage comes to it: the self-test, then pairs until a look decides or the time is up."""
    took = 0.0
    same = trace["same"]
    work: list[float] = []
    wall: list[float] = []
    for index in resampled(same, dice):
        work.append(same.work[index])
        wall.append(same.wall[index])
        took += same.seconds[index]
        if len(work) % fast.SELF_TEST_PAIRS:
            continue
        test = fast.self_test(work, wall, LIMIT)
        if not test.trouble or len(work) >= fast.SELF_TESTS * fast.SELF_TEST_PAIRS:
            break
    if test.trouble:
        tally.add("inconclusive")
        tally.seconds.append(took)
        tally.pairs.append(0)
        tally.covered += 1  # nothing was said
        return
    pairs = trace[cell.name]
    sequential = fast.Sequential(LIMIT)
    ratio = None
    for index in resampled(pairs, dice):
        ratio = sequential.add(pairs.work[index], pairs.wall[index])
        took += pairs.seconds[index]
        if (ratio is not None and ratio.decided) or sequential.ended or took >= BUDGET_S:
            break
    if ratio is None or not ratio.decided:
        ratio = sequential.last()
    tally.add({"pass": "accept", "fail": "reject", "": "inconclusive"}[ratio.decided])
    tally.pairs.append(ratio.pairs)
    tally.seconds.append(took)
    tally.covered += ratio.work.low <= cell.work <= ratio.work.high


# --- what people use today: one after the other ----------------------------------------------------------------------


def _windows(pairs: Pairs, dice: random.Random, runs: int) -> tuple[Any, Any]:
    """So many runs of the candidate, and then as many of the incumbent, each one after the other."""
    length = pairs.raw["candidate_wall"].shape[1]
    blocks = -(-runs // length)
    start = dice.randrange(max(1, len(pairs) - 2 * blocks))
    mine = pairs.raw["candidate_wall"][start : start + blocks].reshape(-1)[:runs]
    other = pairs.raw["incumbent_wall"][start + blocks : start + 2 * blocks].reshape(-1)[:runs]
    return mine, other


def p95_one_after_the_other(pairs: Pairs, dice: random.Random) -> str:
    """p95 of 100 runs against p95 of 100 runs."""
    mine, other = _windows(pairs, dice, NAIVE_RUNS)
    return "accept" if np.quantile(mine, 0.95) <= LIMIT * np.quantile(other, 0.95) else "reject"


def mean_one_after_the_other(pairs: Pairs, dice: random.Random) -> str:
    """Mean of 100 runs against mean of 100 runs."""
    mine, other = _windows(pairs, dice, NAIVE_RUNS)
    return "accept" if mine.mean() <= LIMIT * other.mean() else "reject"


def _stable(samples: Any) -> float | None:
    """Triton's `perf_analyzer`: stable when throughput and latency of the last three windows differ by at most 10 %;
    up to ten windows are measured."""
    window = max(1, len(samples) // 10)
    means = [samples[n * window : (n + 1) * window].mean() for n in range(10)]
    for end in range(3, 11):
        last = means[end - 3 : end]
        if max(last) <= 1.10 * min(last):
            return float(statistics.fmean(last))
    return None


def perf_analyzer(pairs: Pairs, dice: random.Random) -> str:
    """Both until stable, then the means of the stable windows; one that never is gives no answer."""
    mine, other = (_stable(samples) for samples in _windows(pairs, dice, 10 * NAIVE_RUNS))
    if mine is None or other is None:
        return "inconclusive"
    return "accept" if mine <= LIMIT * other else "reject"


NAIVE: dict[str, Callable[[Pairs, random.Random], str]] = {
    "p95 of 100, one after the other": p95_one_after_the_other,
    "mean of 100, one after the other": mean_one_after_the_other,
    "perf_analyzer's rule": perf_analyzer,
}


def shipped_tally(cell: Cell, trace: Mapping[str, Pairs], verdicts: int, dice: random.Random) -> Tally:
    """So many verdicts of the shipped rules."""
    tally = Tally()
    for _ in range(verdicts):
        shipped(cell, trace, dice, tally)
    return tally


def _dice(seed: int, cell: Cell) -> random.Random:
    return random.Random(f"{seed}/{cell.name}")


def beside(trace: Mapping[str, Pairs], cells: Sequence[Cell], verdicts: int, seed: int) -> dict[str, Tally]:
    """Cell → verdicts of the shipped rules, the same as those of `tallies`."""
    return {cell.name: shipped_tally(cell, trace, verdicts, _dice(seed, cell)) for cell in cells}


def tallies(trace: Mapping[str, Pairs], verdicts: int, seed: int) -> dict[str, dict[str, Tally]]:
    """Rule → cell → verdicts."""
    found: dict[str, dict[str, Tally]] = {"shipped": {}, **{rule: {} for rule in NAIVE}}
    for cell in CELLS:
        dice = _dice(seed, cell)
        found["shipped"][cell.name] = shipped_tally(cell, trace, verdicts, dice)
        for rule, decide in NAIVE.items():
            other = found[rule][cell.name] = Tally()
            for _ in range(verdicts):
                other.add(decide(trace[cell.name], dice))
    return found
