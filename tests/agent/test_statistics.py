"""Intervals against brute force, known values, and seeded samples."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_agent.core import statistics

FLOATS = st.floats(-1e6, 1e6)


def binomial(n: int, q: float, low: int, high: int) -> float:
    """P(low ≤ X ≤ high)."""
    return sum(math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(low, high + 1))


@given(st.lists(FLOATS, min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_numpys(samples: list[float], q: float) -> None:
    assert statistics.quantile(sorted(samples), q) == pytest.approx(float(np.quantile(samples, q)), abs=1e-6)
    assert statistics.median(samples) == pytest.approx(float(np.median(samples)), abs=1e-6)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("n", [75, 100, 250])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_an_interval_of_a_quantile_holds_exactly_and_is_no_wider_than_it_must(
    n: int, q: float, confidence: float
) -> None:
    interval = statistics.quantile_interval(range(n), q, confidence)  # samples are their own ranks
    low, high = int(interval.low), int(interval.high)
    # The quantile lies at or above sample `low` when more than `low` of the samples are below it.
    assert binomial(n, q, low + 1, high) >= confidence - 1e-9
    alpha = (1 - confidence) / 2
    assert binomial(n, q, 0, low + 1) > alpha, "the lower end could be one sample higher"
    assert binomial(n, q, high, n) > alpha, "the upper end could be one sample lower"


def test_without_enough_samples_a_side_is_the_extreme_one() -> None:
    interval = statistics.quantile_interval([3.0, 1.0, 2.0], 0.95)
    assert interval.high == 3.0
    assert interval.low <= interval.estimate <= interval.high


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_a_median_of_too_few_is_unknown(confidence: float) -> None:
    enough = next(n for n in range(1, 60) if 2 * 0.5**n <= 1 - confidence)
    for n in range(enough):
        interval = statistics.median_interval([1.0] * n, confidence)
        assert (interval.low, interval.high) == (-math.inf, math.inf)
        assert math.isnan(interval.estimate) == (n == 0)
    assert statistics.median_interval([1.0] * enough, confidence).low == 1.0


@pytest.mark.parametrize("n", [20, 45, 100])
def test_the_interval_of_a_median_covers_as_often_as_it_says(n: int) -> None:
    dice = random.Random(f"median {n}")
    covered = 0
    for _ in range(600):
        interval = statistics.median_interval([dice.lognormvariate(0, 1) for _ in range(n)], 0.95)
        covered += interval.low <= 1.0 <= interval.high  # the median of exp(N(0, 1))
    assert covered / 600 >= 0.93


def test_the_interval_of_p95_covers_as_often_as_it_says() -> None:
    dice = random.Random("p95")
    truth = -math.log(0.05)  # of the exponential distribution
    hits = 0
    for _ in range(400):
        interval = statistics.quantile_interval([dice.expovariate(1) for _ in range(100)], 0.95)
        hits += interval.low <= truth <= interval.high
    assert hits / 400 >= 0.93


def test_the_interval_of_a_paired_difference_covers_as_often_as_it_says() -> None:
    dice = random.Random("paired")
    covered = 0
    for _ in range(600):
        pairs = [(dice.random() < 0.9, dice.random() < 0.85) for _ in range(200)]
        first, second = ("".join("1" if pair[side] else "0" for pair in pairs) for side in (0, 1))
        interval = statistics.paired_difference(first, second)
        covered += interval.low <= 0.05 <= interval.high
    assert covered / 600 >= 0.93


def test_a_paired_difference_by_hand() -> None:
    same = statistics.paired_difference("1" * 10, "1" * 10)
    assert same.estimate == 0
    assert same.high == pytest.approx(1.959964 / 12, abs=1e-6)
    assert same.low == -same.high
    worse = statistics.paired_difference("1" * 10, "1" * 8 + "0" * 2)
    assert worse.estimate == pytest.approx(0.2)
    assert worse.low < 0.2 < worse.high
    swapped = statistics.paired_difference("1" * 8 + "0" * 2, "1" * 10)
    assert swapped.low == pytest.approx(-worse.high)
    assert swapped.high == pytest.approx(-worse.low)


@pytest.mark.parametrize(("first", "second"), [("", ""), ("1", "11")])
def test_hit_vectors_must_be_of_the_same_items(first: str, second: str) -> None:
    with pytest.raises(ValueError, match="hit vectors"):
        statistics.paired_difference(first, second)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (50, 100, 0.40383, 0.59617), (1, 2, 0.09453, 0.90547)],
)
def test_wilsons_interval(successes: int, n: int, low: float, high: float) -> None:
    interval = statistics.proportion_interval(successes, n)
    assert interval.low == pytest.approx(low, abs=1e-5)
    assert interval.high == pytest.approx(high, abs=1e-5)


def test_nothing_has_no_figures() -> None:
    with pytest.raises(ValueError, match="no samples"):
        statistics.proportion_interval(0, 0)
    with pytest.raises(ValueError, match="no samples"):
        statistics.quantile([], 0.5)


# --- Theil–Sen --------------------------------------------------------------------------------------------------------


def test_a_slope_by_hand_is_sens_own_example() -> None:
    points = list(zip([1, 2, 3, 4, 10, 12, 18], [9, 15, 19, 20, 45, 55, 78], strict=True))
    interval = statistics.slope_interval(points, 0.93)
    assert interval.estimate == pytest.approx(4.0)  # Sen, 1968, §6
    assert [interval.low, interval.high] == pytest.approx([26 / 7, 35 / 8])


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(-1000, 1000)), min_size=2, max_size=20),
    st.integers(-5, 5),
)
def test_a_slope_follows_what_is_added_to_it(points: list[tuple[int, int]], more: int) -> None:
    one = statistics.slope_interval(points, 0.95)
    other = statistics.slope_interval([(x, y + more * x) for x, y in points], 0.95)
    if len({x for x, _ in points}) == 1:
        assert math.isnan(one.estimate)
        assert (one.low, one.high) == (-math.inf, math.inf)
    else:
        assert other.estimate == pytest.approx(one.estimate + more, abs=1e-6)
        assert [other.low, other.high] == pytest.approx([one.low + more, one.high + more])


def test_the_interval_of_a_slope_covers_as_often_as_it_says() -> None:
    dice = random.Random("slope")
    covered = 0
    for _ in range(400):
        points = [(float(x), 3.0 * x + dice.paretovariate(1.2)) for x in range(20)]  # noise with a heavy tail
        interval = statistics.slope_interval(points, 0.95)
        covered += interval.low <= 3.0 <= interval.high
    assert covered / 400 >= 0.93


def test_a_quarter_of_wild_points_does_not_move_a_slope() -> None:
    points = [(float(x), 2.0 * x if x % 4 else 1e9) for x in range(40)]
    interval = statistics.slope_interval(points, 0.95)
    assert interval.estimate == pytest.approx(2.0)
    assert interval.low == pytest.approx(2.0)


def test_a_slope_of_too_few_is_unknown() -> None:
    interval = statistics.slope_interval([(1.0, 1.0), (2.0, 3.0)], 0.95)
    assert (interval.estimate, interval.low, interval.high) == (2.0, -math.inf, math.inf)
    assert math.isnan(statistics.slope_interval([(1.0, 1.0)], 0.95).estimate)
