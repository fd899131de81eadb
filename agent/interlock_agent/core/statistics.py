"""Intervals that hold under noise, in plain Python: the agent has no numpy.

All are distribution-free: latencies are skewed and have outliers, so nothing here assumes a normal distribution,
except the paired difference of two proportions, which is a mean of many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds it with the stated confidence."""

    estimate: float
    low: float
    high: float
    confidence: float


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics (type 7 of Hyndman & Fan, 1996). `ordered` is sorted."""
    if not ordered:
        raise ValueError("no samples")
    position = (len(ordered) - 1) * q
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(samples: Sequence[float]) -> float:
    """The middle of the samples."""
    return quantile(sorted(samples), 0.5)


@lru_cache(maxsize=4096)
def interval_ranks(n: int, q: float, confidence: float) -> tuple[int, int]:
    """Indices (from 0) of the order statistics that hold the `q` quantile of n samples with that confidence: the
    number of samples below the quantile is binomial (David & Nagaraja, Order Statistics, §7.1)."""
    alpha = (1 - confidence) / 2
    below, low, high = 0.0, 0, 0  # below: P(X < k)
    for k in range(n + 1):
        if below <= alpha:
            low = k
        if 1 - below <= alpha:
            break
        high = min(k, n - 1)
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        below += math.exp(log + k * math.log(q) + (n - k) * math.log1p(-q))
    return max(low - 1, 0), high


def quantile_interval(samples: Sequence[float], q: float, confidence: float = 0.95) -> Interval:
    """Distribution-free interval of a quantile from order statistics (see `interval_ranks`). Without enough samples a
    side is the extreme one seen."""
    ordered = sorted(samples)
    low, high = interval_ranks(len(ordered), q, confidence)
    return Interval(quantile(ordered, q), ordered[low], ordered[high], confidence)


def median_interval(samples: Sequence[float], confidence: float) -> Interval:
    """The sign interval: `quantile_interval` of the median. For fewer samples than the confidence needs the
    interval is infinite: nothing can be said yet."""
    n = len(samples)
    if n == 0 or 2 * 0.5**n > 1 - confidence:
        middle = median(samples) if n else math.nan
        return Interval(middle, -math.inf, math.inf, confidence)
    return quantile_interval(samples, 0.5, confidence)


def paired_difference(first: str, second: str, confidence: float = 0.95) -> Interval:
    """Difference of two hit rates on the same items (`first` minus `second`, each a string of 1 and 0), with
    Wald's interval for paired proportions, widened by one discordant pair on each side (Agresti & Min, 2005:
    add one half to each cell), so that equal vectors do not have an interval of width zero."""
    if len(first) != len(second) or not first:
        raise ValueError("two hit vectors over the same items are needed")
    n = len(first)
    gained = sum(a == "1" and b == "0" for a, b in zip(first, second, strict=True)) + 0.5
    lost = sum(a == "0" and b == "1" for a, b in zip(first, second, strict=True)) + 0.5
    size = n + 2
    difference = (gained - lost) / size
    spread = math.sqrt(max(gained + lost - (gained - lost) ** 2 / size, 0.0)) / size
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    estimate = (first.count("1") - second.count("1")) / n
    return Interval(estimate, difference - z * spread, difference + z * spread, confidence)


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson, 1927): stays inside [0, 1] and holds near its ends."""
    if n <= 0:
        raise ValueError("no samples")
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(p, max(0.0, centre - spread), min(1.0, centre + spread), confidence)


def slope_interval(points: Sequence[tuple[float, float]], confidence: float) -> Interval:
    """Theil–Sen: the median of the slopes between all pairs of points, with Sen's distribution-free interval from
    Kendall's rank test (Sen, 1968, Estimates of the regression coefficient based on Kendall's tau, §4): up to 29 % of
    the points may be anything. Points with the same first value say nothing of each other. `points` are (x, y); of n,
    n² / 2 slopes are made. Of too few to say anything the interval is infinite."""
    slopes = sorted(
        (after[1] - before[1]) / (after[0] - before[0])
        for before, after in combinations(points, 2)
        if before[0] != after[0]
    )
    if not slopes:
        return Interval(math.nan, -math.inf, math.inf, confidence)
    n = len(points)
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    spread = z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low, high = math.floor((len(slopes) - spread) / 2) - 1, math.ceil((len(slopes) + spread) / 2)
    return Interval(
        quantile(slopes, 0.5),
        slopes[low] if low >= 0 else -math.inf,
        slopes[high] if high < len(slopes) else math.inf,
        confidence,
    )
