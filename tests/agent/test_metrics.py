"""Metrics and paired tests against numbers that were worked out by hand or are known."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_agent.core.gate import metrics
from interlock_agent.core.gate.metrics import Score


def score(kind: Any, rows: Any, better: Any = "higher") -> Score:
    return Score("m", better, kind, rows)


# One class, two items: scores 0.9 hit (item 0), 0.8 miss (item 1), 0.7 hit (item 1); three truths. Precision is 1 at
# recall 1/3 and 2/3 at recall 2/3: (1 + 2/3) / 3.
BOXES = [[[0, 1, [0.9], "1"]], [[0, 2, [0.8, 0.7], "01"]]]


@pytest.mark.parametrize(
    ("kind", "rows", "value"),
    [
        ("hits", "1101", 0.75),
        ("mean", [1.0, 2.0, 6.0], 3.0),
        ("root_mean", [1.0, 4.0, 13.0], math.sqrt(6)),
        ("ratio", [[1, 4], [0, 1], [2, 5]], 0.3),  # not the mean of 1/4, 0 and 2/5
        ("ratio", [[2, 0]], 2.0),  # no words at all: the errors themselves
        ("f1", [[0, 0], [0, 0], [1, 1], [1, 0]], (4 / 5 + 2 / 3) / 2),
        ("f1", [[0, 0], [1, 2]], 1 / 3),  # a class that is never a label counts as soon as it is answered
        ("map", BOXES, 5 / 9),
        ("map", [*BOXES, [[1, 1, [], ""]]], 5 / 18),  # a class that is never found is worth nothing
        ("map", [*BOXES, [[7, 0, [0.99], "0"]]], 5 / 9),  # a class without a truth has no precision to speak of
        # A miss that was surer than all: precision 1/2, then 2/3, at three truths; made to fall: 2/3 for both.
        ("map", [[[0, 3, [0.9, 0.8, 0.7], "011"]]], 2 * (2 / 3) / 3),
    ],
)
def test_what_rows_add_up_to(kind: str, rows: Any, value: float) -> None:
    assert score(kind, rows).value == pytest.approx(value)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_an_item_that_counts_twice_is_as_good_as_two(counts: list[int]) -> None:
    rows: dict[str, list[Any]] = {
        "mean": [1.0, 2.5, 0.0, 9.0],
        "ratio": [[1, 4], [0, 1], [2, 5], [3, 3]],
        "f1": [[0, 0], [1, 0], [1, 1], [2, 2]],
    }
    for kind, some in rows.items():
        repeated = [row for row, count in zip(some, counts, strict=True) for _ in range(count)]
        if repeated:
            assert score(kind, some).statistic()(counts) == pytest.approx(score(kind, repeated).value)


# --- exact numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_binomial_tail_is_the_sum_of_its_terms(n: int, p: float) -> None:
    for k in range(n + 2):
        terms = [math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1)]
        assert metrics.binomial_tail(k, n, p) == pytest.approx(math.fsum(terms), abs=1e-12)


def test_the_binomial_tail_of_many_trials() -> None:
    assert metrics.binomial_tail(5001, 10_001, 0.5) == pytest.approx(0.5, abs=1e-9)
    assert metrics.binomial_tail(5100, 10_000, 0.5) == pytest.approx(0.0233, abs=2e-4)  # by the normal distribution


MCNEMAR: list[tuple[int, int, int, float, float | None]] = [
    # lost, won, items alike, p by hand, smallest effect
    (0, 0, 100, 1.0, 5 / 100),
    (1, 0, 99, 1 / 2, 5 / 100),
    (5, 0, 95, 1 / 32, 5 / 100),
    (4, 0, 96, 1 / 16, 5 / 100),
    (8, 2, 90, (45 + 10 + 1) / 1024, 8 / 100),  # nine of ten are the first below 0.05
    (9, 1, 90, (10 + 1) / 1024, 8 / 100),
    (3, 3, 94, (20 + 15 + 6 + 1) / 64, 6 / 100),
    (0, 6, 94, 1.0, 6 / 100),
    (2, 0, 2, 1 / 4, None),  # four items cannot tell at all
]


@pytest.mark.parametrize(("lost", "won", "alike", "p", "smallest"), MCNEMAR)
def test_mcnemar(lost: int, won: int, alike: int, p: float, smallest: float | None) -> None:
    theirs, mine = "1" * lost + "0" * won + "1" * alike, "0" * lost + "1" * won + "1" * alike
    worse = metrics.mcnemar(theirs, mine)
    assert worse.p == pytest.approx(p)
    assert worse.smallest_effect == pytest.approx(smallest)
    assert worse.estimate == pytest.approx((lost - won) / (lost + won + alike))
    assert worse.differ == lost + won


def test_mcnemar_rarely_condemns_a_release_that_is_no_worse() -> None:
    dice, wrong = random.Random("no worse"), 0
    for _ in range(1000):
        pairs = [(dice.random() < 0.8, dice.random() < 0.8) for _ in range(100)]
        theirs, mine = ("".join("1" if pair[side] else "0" for pair in pairs) for side in (0, 1))
        wrong += metrics.mcnemar(theirs, mine).p <= metrics.LEVEL
    assert wrong / 1000 <= 0.065  # 0.05, and two standard errors


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def test_the_same_dice_give_the_same_verdict() -> None:
    theirs, mine = score("mean", [1.0, 2.0, 4.0, 3.0] * 5, "lower"), score("mean", [2.0, 2.0, 3.0, 4.0] * 5, "lower")
    first, second, other = (metrics.compare(theirs, mine, random.Random(seed), 400) for seed in ("a", "a", "b"))
    assert first == second
    assert (first.low, first.p) != (other.low, other.p)
    assert (first.estimate, first.resamples, first.test) == (0.25, 400, "paired_bootstrap")


def test_the_intervals_hold_the_truth() -> None:
    """Paired errors, the candidate's 0.2 larger on average: the interval holds that in about 95 of 100 cases."""
    dice, held, cases = random.Random("coverage"), 0, 300
    for _ in range(cases):
        hard = [dice.gauss(5, 2) for _ in range(60)]
        theirs = score("mean", [one + dice.gauss(0, 0.5) for one in hard], "lower")
        mine = score("mean", [one + 0.2 + dice.gauss(0, 0.5) for one in hard], "lower")
        worse = metrics.compare(theirs, mine, dice, 400)
        held += worse.low <= 0.2 <= worse.high
    assert 0.91 <= held / cases <= 0.985


def test_the_bootstrap_rarely_condemns_a_release_that_is_no_worse() -> None:
    dice, wrong, cases = random.Random("level"), 0, 300
    for _ in range(cases):
        rows = [[dice.randint(0, 3), dice.randint(0, 3)] for _ in range(50)]
        theirs, mine = (score("ratio", [[row[side], 10] for row in rows], "lower") for side in (0, 1))
        wrong += metrics.compare(theirs, mine, dice, 400).p <= metrics.LEVEL
    assert wrong / cases <= 0.085  # 0.05, percentiles' little more, and two standard errors


@pytest.mark.parametrize(
    ("kind", "good", "bad", "better"),
    [
        ("mean", 1.0, 2.0, "lower"),
        ("root_mean", 1.0, 2.0, "lower"),
        ("ratio", [1, 10], [2, 10], "lower"),
        ("f1", [1, 1], [1, 0], "higher"),
        ("map", [[0, 1, [0.9], "1"]], [[0, 1, [0.9], "0"]], "higher"),
    ],
)
def test_what_is_plainly_worse_is_seen_and_what_is_better_is_not(kind: str, good: Any, bad: Any, better: str) -> None:
    fine, poor = score(kind, [good] * 30, better), score(kind, [good] * 10 + [bad] * 20, better)
    worse = metrics.compare(fine, poor, random.Random(1), 400)
    assert worse.estimate > 0
    assert worse.p < 0.01
    assert 0 < worse.low <= worse.estimate <= worse.high
    back = metrics.compare(poor, fine, random.Random(1), 400)
    assert back.p == 1.0
    assert back.estimate == pytest.approx(-worse.estimate)
    same = metrics.compare(fine, fine, random.Random(1), 400)
    assert (same.estimate, same.p, same.differ) == (0.0, 1.0, 0)


def test_few_items_have_no_small_p() -> None:
    worse = metrics.compare(score("mean", [1.0] * 3), score("mean", [0.0] * 3), random.Random(1), 400)
    assert worse.p == 0.5**3
    assert worse.smallest_effect is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (score("mean", [1.0]), score("mean", [1.0, 2.0])),
        (score("mean", [1.0]), score("hits", "1")),
        (score("mean", []), score("mean", [])),
    ],
)
def test_only_the_same_items_are_compared(one: Score, other: Score) -> None:
    with pytest.raises(ValueError, match="same items"):
        metrics.compare(one, other, random.Random(1), 400)


def test_a_figure_against_a_limit() -> None:
    dice = random.Random(1)
    below = metrics.against(score("hits", "1" * 70 + "0" * 30), 0.8, dice, 400)
    assert below.p == pytest.approx(metrics.binomial_tail(30, 100, 0.2))
    error = score("mean", [1.0, 2.0, 3.0] * 20, "lower")
    assert metrics.against(error, 1.5, dice, 400).p < 0.01
    assert metrics.against(error, 2.5, dice, 400).p > 0.99
    assert metrics.against(error, None, dice, 400).p == 1.0


@pytest.mark.parametrize(("work", "resamples"), [(10, 2000), (4000, 2000), (10_000, 800), (1_000_000, 400)])
def test_work_is_bounded(work: int, resamples: int) -> None:
    assert metrics.resamples_for(work) == resamples


def test_ten_thousand_items_take_seconds_not_minutes() -> None:
    dice = random.Random("many")
    rows = [[dice.randint(0, 9), dice.randint(0, 9)] for _ in range(10_000)]
    began = time.process_time()
    worse = metrics.compare(score("f1", rows), score("f1", rows[::-1]), dice, metrics.resamples_for(20_000))
    assert worse.resamples == 400
    assert time.process_time() - began < 30
