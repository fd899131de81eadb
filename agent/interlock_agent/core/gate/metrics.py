"""What the rows of a metric add up to, and two releases compared on the same items by a paired test.

Rows come from the workers (host/worker/metrics.py), one an item. A difference is always *how much worse* the candidate
is, so that one rule serves scores and errors. Hits are compared by McNemar's exact test; everything else by a paired
bootstrap over items: the same items are drawn for both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul
from statistics import NormalDist
from typing import Any, Literal, Protocol

from interlock_agent.core import statistics
from interlock_agent.core.gate.checks import CONFIDENCE

LEVEL = 0.05  # one-sided: how often a release that is no worse may be called so
RESAMPLES_MAX = 2000
RESAMPLES_MIN = 400  # the error of a p-value of 0.05 is then 0.011
RESAMPLE_WORK = 8_000_000  # items drawn in all: about three seconds on a slow core

Kind = Literal["hits", "mean", "root_mean", "ratio", "f1", "map"]
Statistic = Callable[[Sequence[int]], float]
"""The metric of a sample: how often each item is in it."""


class Dice(Protocol):
    """Chance, handed in: `random.Random` with a seed."""

    def choices(self, population: Sequence[int], *, k: int) -> list[int]:
        """`k` of the population, with replacement."""


@dataclass(frozen=True)
class Score:
    """A release on the golden items. `better`: which way the metric goes."""

    metric: str
    better: Literal["higher", "lower"]
    kind: Kind
    rows: Sequence[Any]

    @property
    def value(self) -> float:
        """The metric over all items."""
        return self.statistic()([1] * len(self.rows))

    def statistic(self) -> Statistic:
        """The metric as a function of how often each item counts."""
        return STATISTICS[self.kind](self.rows)

    def part(self, items: Sequence[int]) -> Score:
        """The same of some items."""
        rows = [self.rows[item] for item in items]
        return Score(self.metric, self.better, self.kind, "".join(rows) if self.kind == "hits" else rows)


def score_of(document: dict[str, Any]) -> Score:
    """From a worker's answer. Raises ValueError when it is none."""
    score = Score(document["metric"], document["better"], document["kind"], document["rows"])
    if score.kind not in STATISTICS or score.better not in ("higher", "lower") or not score.rows:
        raise ValueError(f"no such score: {score.kind}, {score.better}, {len(score.rows)} rows")
    return score


def comparable(first: Score, second: Score) -> bool:
    """Whether both are of one metric over as many items."""
    return (first.kind, first.metric, len(first.rows)) == (second.kind, second.metric, len(second.rows))


# --- statistics -----------------------------------------------------------------------------------------------------


def _mean(rows: Sequence[Any]) -> Statistic:
    values = [float(row) for row in rows]
    return lambda counts: math.fsum(map(mul, counts, values)) / max(sum(counts), 1)


def _root_mean(rows: Sequence[Any]) -> Statistic:
    mean = _mean(rows)
    return lambda counts: math.sqrt(mean(counts))


def _ratio(rows: Sequence[Any]) -> Statistic:
    """Errors over all words, not the mean of the items' ratios."""
    above, below = [int(row[0]) for row in rows], [int(row[1]) for row in rows]
    return lambda counts: sum(map(mul, counts, above)) / max(sum(map(mul, counts, below)), 1)


def _f1(rows: Sequence[Any]) -> Statistic:
    """Macro F1: the mean over the classes that occur, as a label or as an answer."""
    cells = sorted({(int(label), int(chosen)) for label, chosen in rows})
    place = {cell: number for number, cell in enumerate(cells)}
    cell_of = [place[int(label), int(chosen)] for label, chosen in rows]

    def of(counts: Sequence[int]) -> float:
        filled = [0] * len(cells)
        for cell, count in zip(cell_of, counts, strict=True):
            filled[cell] += count
        right: Counter[int] = Counter()
        seen: Counter[int] = Counter()  # as a label and as an answer: 2 TP + FP + FN
        for (label, chosen), count in zip(cells, filled, strict=True):
            if count:
                seen[label] += count
                seen[chosen] += count
                right[label] += count if label == chosen else 0
        return sum(2 * right[one] / seen[one] for one in seen) / len(seen) if seen else 0.0

    return of


def _map(rows: Sequence[Any]) -> Statistic:
    """Mean over the classes that have a truth of the area under precision and recall, precision made to fall
    (Everingham et al., 2010: every point, not eleven). Two items drawn alike count as one with the weight of two."""
    truths: dict[int, list[tuple[int, int]]] = {}  # class -> (item, truths)
    found: dict[int, list[tuple[float, int, bool]]] = {}  # class -> (-score, item, hit)
    for item, row in enumerate(rows):
        for number, wanted, scores, hits in row:
            if wanted:
                truths.setdefault(number, []).append((item, wanted))
            of_class = found.setdefault(number, [])
            of_class += [(-score, item, hit == "1") for score, hit in zip(scores, hits, strict=True)]
    ordered = {number: [(item, hit) for _, item, hit in sorted(of_class)] for number, of_class in found.items()}

    def of(counts: Sequence[int]) -> float:
        areas = []
        for number, wanted in truths.items():
            total = sum(counts[item] * many for item, many in wanted)
            if total:
                areas.append(_area(ordered[number], counts, total))
        return sum(areas) / len(areas) if areas else 0.0

    return of


def _area(ordered: Sequence[tuple[int, bool]], counts: Sequence[int], total: int) -> float:
    hits = taken = 0
    steps: list[tuple[float, int]] = []  # precision at a hit, and the hits there
    for item, hit in ordered:
        count = counts[item]
        if count:
            taken += count
            if hit:
                hits += count
                steps.append((hits / taken, count))
    area = best = 0.0
    for precision, count in reversed(steps):
        best = max(best, precision)
        area += best * count
    return area / total


STATISTICS: dict[str, Callable[[Sequence[Any]], Statistic]] = {
    "hits": _mean,
    "mean": _mean,
    "root_mean": _root_mean,
    "ratio": _ratio,
    "f1": _f1,
    "map": _map,
}


# --- the paired tests -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worse:
    """How much worse the candidate is. `p`: of such a difference or a larger one, were it no worse (one-sided);
    `smallest_effect`: about the smallest that this test could have called worse, None where no difference could be."""

    estimate: float
    low: float
    high: float
    p: float
    smallest_effect: float | None
    test: str
    differ: int  # items on which the two are not alike
    resamples: int = 0


@dataclass(frozen=True)
class Against:
    """A score against a number. `p`: of a score so bad or worse, were the truth at the number (one-sided)."""

    low: float
    high: float
    p: float


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for n trials, exactly; from the side on which fewer terms are."""
    if k <= 0:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    if k <= n * p:
        return max(0.0, 1.0 - binomial_tail(n - k + 1, n, 1 - p))
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    term = total = math.exp(log)
    for at in range(k, n):
        term *= (n - at) / (at + 1) * p / (1 - p)
        total += term
        if term < total * 1e-17:
            break
    return min(1.0, total)


def mcnemar(theirs: str, mine: str, level: float = LEVEL) -> Worse:
    """McNemar's exact test (1947; its binomial form): of the items on which one is right and the other is not, half
    would be lost if the candidate were no worse."""
    interval = statistics.paired_difference(theirs, mine, CONFIDENCE)
    lost = sum(a == "1" and b == "0" for a, b in zip(theirs, mine, strict=True))
    differ = sum(a != b for a, b in zip(theirs, mine, strict=True))
    # As many items may differ as do, or as few as can tell at all.
    fewest = max(differ, math.ceil(-math.log2(level)))
    needed = next((k for k in range((fewest + 1) // 2, fewest + 1) if binomial_tail(k, fewest, 0.5) <= level), fewest)
    smallest = (2 * needed - fewest) / len(mine) if fewest <= len(mine) else None
    p = binomial_tail(lost, differ, 0.5)
    return Worse(interval.estimate, interval.low, interval.high, p, smallest, "mcnemar_exact", differ)


def resamples_for(work: int) -> int:
    """How many samples are drawn, when one costs so much (items, and what is in them)."""
    return max(RESAMPLES_MIN, min(RESAMPLES_MAX, RESAMPLE_WORK // max(work, 1)))


def work_of(score: Score) -> int:
    """What one sample costs, in items."""
    if score.kind != "map":
        return len(score.rows)
    return len(score.rows) + sum(len(found[2]) for row in score.rows for found in row)


def draw(score: Score, dice: Dice, resamples: int, other: Score | None = None) -> tuple[list[float], list[float]]:
    """The metric of samples of items, and `other`'s of the same samples."""
    items = range(len(score.rows))
    statistics_of = [one.statistic() for one in (score, other) if one is not None]
    values: list[list[float]] = [[], []]
    for _ in range(resamples):
        counted = Counter(dice.choices(items, k=len(items)))
        counts = [counted[item] for item in items]
        for number, statistic in enumerate(statistics_of):
            values[number].append(statistic(counts))
    return values[0], values[1]


def bootstrap(theirs: Score, mine: Score, dice: Dice, resamples: int, level: float = LEVEL) -> Worse:
    """Paired bootstrap over items (Efron & Tibshirani, 1993): percentiles, and how often a sample shows nothing worse.
    Where m items differ, no p-value is below 2^-m: that is the smallest a test by changing signs could give."""
    differ = sum(a != b for a, b in zip(theirs.rows, mine.rows, strict=True))
    sign = 1 if mine.better == "higher" else -1
    estimate = sign * (theirs.value - mine.value)
    first, second = draw(theirs, dice, resamples, mine)
    drops = sorted(sign * (a - b) for a, b in zip(first, second, strict=True))
    tail = (1 - CONFIDENCE) / 2
    p = (1 + sum(drop <= 0 for drop in drops)) / (len(drops) + 1)
    middle = math.fsum(drops) / len(drops)
    deviation = math.sqrt(math.fsum((drop - middle) ** 2 for drop in drops) / (len(drops) - 1))
    smallest = NormalDist().inv_cdf(1 - level) * deviation
    return Worse(
        estimate,
        statistics.quantile(drops, tail),
        statistics.quantile(drops, 1 - tail),
        max(p, 0.5 ** min(differ, 1000)),
        smallest if 0.5 ** min(differ, 1000) <= level else None,
        "paired_bootstrap",
        differ,
        len(drops),
    )


def compare(theirs: Score, mine: Score, dice: Dice, resamples: int, level: float = LEVEL) -> Worse:
    """The paired test that fits the metric. Raises ValueError when the two are not about the same items."""
    if not comparable(theirs, mine) or not mine.rows:
        raise ValueError("two scores of one metric over the same items are needed")
    if mine.kind == "hits":
        return mcnemar(str(theirs.rows), str(mine.rows), level)
    return bootstrap(theirs, mine, dice, resamples, level)


def against(mine: Score, limit: float | None, dice: Dice, resamples: int) -> Against:
    """A score against its floor, an error against its ceiling: exactly for hits, else by the bootstrap."""
    n = len(mine.rows)
    if mine.kind == "hits":
        hits = str(mine.rows).count("1")
        interval = statistics.proportion_interval(hits, n, CONFIDENCE)
        p = 1.0 if limit is None else binomial_tail(n - hits, n, 1 - limit)
        return Against(interval.low, interval.high, p)
    values = sorted(draw(mine, dice, resamples)[0])
    within = sum(limit is None or (value >= limit if mine.better == "higher" else value <= limit) for value in values)
    tail = (1 - CONFIDENCE) / 2
    p = max((1 + within) / (len(values) + 1), 0.5 ** min(n, 1000))
    return Against(statistics.quantile(values, tail), statistics.quantile(values, 1 - tail), p)
