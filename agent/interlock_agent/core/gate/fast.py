"""Is it fast: the sequential ratio to the incumbent, the self-test before it, and absolute limits on quantiles.

The ratio is judged on two scales: *work* (CPU time of the whole worker) decides what the release costs, *wall* catches
what work is blind to (a pool that waits). The median of paired block ratios has an exact interval under any noise that
treats both blocks of a pair alike; looks at fixed numbers of pairs share one error budget, so that peeking costs
nothing but width (Bonferroni, 1936; O'Brien and Fleming, 1979, for the idea of fixed looks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from interlock_agent.core import statistics
from interlock_agent.core.gate.checks import CONFIDENCE
from interlock_shared.documents import CheckResult, Outcome

LOOKS = (12, 17, 24, 34, 48, 68, 96, 136, 192)  # pairs after which the ratio is looked at
ERROR_BUDGET = 0.02  # over all looks together, and one more when the time is up; split evenly
LOOK_CONFIDENCE = 1 - ERROR_BUDGET / (len(LOOKS) + 1)

FASTER = 0.97  # a variant is faster than another when its ratio lies below this; a smaller gain is not worth asking for

BLOCK_NS = 30_000_000  # a block is long against the clock and the scheduler's slice, short against a change of load
BLOCK_RUNS_MAX = 25
ABSOLUTE_RUNS = 100  # inferences that a quantile is taken of at least
ABSOLUTE_RUNS_MAX = 10_000  # and at most, where a limit lies inside its interval

SELF_TEST_PAIRS = 8
SELF_TESTS = 2  # the second one only after a first that did not pass
NOISE_MAX_PAIRS = 2 * LOOKS[-1]  # a device that needs more than this many pairs is too noisy to be asked

WARM_UP_WINDOW = 3  # blocks
WARM_UP_BLOCKS_MAX = 40
SETTLED = 0.97  # a window that is faster than this part of the one before it shows that it still warms up


def block_runs(run_ns: float) -> int:
    """Inferences in a block, for a run of that length."""
    return max(1, min(BLOCK_RUNS_MAX, round(BLOCK_NS / max(run_ns, 1.0))))


def warmed_up(medians: Sequence[float]) -> bool:
    """Whether the blocks no longer get faster: the best of the last window is not better than that of the window
    before. (The best, since load makes blocks slower and never faster.)"""
    if len(medians) >= WARM_UP_BLOCKS_MAX:
        return True
    if len(medians) < 2 * WARM_UP_WINDOW:
        return False
    last, before = medians[-WARM_UP_WINDOW:], medians[-2 * WARM_UP_WINDOW : -WARM_UP_WINDOW]
    return min(last) >= SETTLED * min(before)


# --- the ratio ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """The ratio's state after a look: `decided` is "", "pass" or "fail"."""

    work: statistics.Interval
    wall: statistics.Interval
    pairs: int
    decided: str


def look(work: Sequence[float], wall: Sequence[float], limit: float) -> Ratio:
    """Look at the paired ratios (candidate ÷ incumbent) on both scales.

    pass: the work interval lies below the limit, and the wall's estimate does too;
    fail: either interval lies above; else undecided, and more pairs are needed."""
    on_work = statistics.median_interval(work, LOOK_CONFIDENCE)
    on_wall = statistics.median_interval(wall, LOOK_CONFIDENCE)
    decided = ""
    if on_work.low > limit or on_wall.low > limit:
        decided = "fail"
    elif on_work.high <= limit and on_wall.estimate <= limit:
        decided = "pass"
    return Ratio(on_work, on_wall, len(work), decided)


@dataclass
class Sequential:
    """Pairs as they come, and when to look at them."""

    limit: float
    work: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    _looks: int = 0

    def add(self, work: float, wall: float) -> Ratio | None:
        """One more pair; what a look says, when one is due."""
        self.work.append(work)
        self.wall.append(wall)
        if self.ended or len(self.work) < LOOKS[self._looks]:
            return None
        self._looks += 1
        return look(self.work, self.wall, self.limit)

    @property
    def ended(self) -> bool:
        """No look is left but the last."""
        return self._looks >= len(LOOKS)

    def last(self) -> Ratio:
        """The look when the time or the looks are up; its share of the budget was kept for it."""
        return look(self.work, self.wall, self.limit)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def ratio_result(ratio: Ratio, limit: float, detail: Mapping[str, object] | None = None) -> list[CheckResult]:
    """Two rows, one a scale. Undecided at the end of the budget is inconclusive, with the smallest effect."""
    rows = []
    for scale, interval in (("work", ratio.work), ("wall", ratio.wall)):
        finite = math.isfinite(interval.low)
        below = interval.high if scale == "work" else interval.estimate
        outcome: Outcome = "fail" if interval.low > limit else "pass" if below <= limit else "inconclusive"
        figures = {
            "pairs": ratio.pairs,
            "confidence": interval.confidence,
            "smallest_effect": (interval.high - interval.low) / 2 if finite else None,
        }
        rows.append(
            CheckResult(
                check=f"latency_ratio_{scale}",
                outcome=outcome,
                unit="candidate / incumbent",
                limit=limit,
                measured=_finite(interval.estimate),
                low=_finite(interval.low),
                high=_finite(interval.high),
                reason={"pass": "ok", "fail": "too_slow", "inconclusive": "too_noisy"}[outcome],
                detail={**figures, **(detail or {})},
            )
        )
    return rows


# --- is the device quiet enough -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelfTest:
    """The incumbent against itself. `trouble`: "" when this device can judge, else `biased`, `too_noisy`, or
    `no_time`: the budget ended before it could be asked."""

    work: statistics.Interval
    wall: statistics.Interval
    pairs: int
    pairs_needed: int  # that a candidate as fast as the incumbent would need
    trouble: str


def self_test(work: Sequence[float], wall: Sequence[float], limit: float) -> SelfTest:
    """Judge pairs of which both halves are the incumbent's: their median is 1, and their spread says how many pairs a
    verdict will take. A median's standard error is 1.2533 σ ÷ √n for large n; σ is the interquartile range ÷ 1.349."""
    confidence = 1 - 2 * 0.5**SELF_TEST_PAIRS
    if len(work) < SELF_TEST_PAIRS:
        nothing = statistics.Interval(math.nan, -math.inf, math.inf, confidence)
        return SelfTest(nothing, nothing, len(work), 0, "no_time")
    on_work, on_wall = (statistics.median_interval(scale, confidence) for scale in (work, wall))
    ordered = sorted(math.log(max(ratio, 1e-9)) for ratio in work)
    sigma = (statistics.quantile(ordered, 0.75) - statistics.quantile(ordered, 0.25)) / 1.349
    z = NormalDist().inv_cdf((1 + LOOK_CONFIDENCE) / 2)
    distance = abs(math.log(limit)) or 1e-9
    needed = max(LOOKS[0], math.ceil((z * 1.2533 * sigma / distance) ** 2))
    tolerance = (limit - 1) / 2 if limit > 1 else 0.0
    biased = any(one.low > 1 + tolerance or one.high < 1 / (1 + tolerance) for one in (on_work, on_wall))
    trouble = "biased" if biased else "too_noisy" if needed > NOISE_MAX_PAIRS else ""
    return SelfTest(on_work, on_wall, len(work), needed, trouble)


def self_test_result(test: SelfTest) -> CheckResult:
    """One row; a device that cannot judge makes the stage inconclusive, never a failure of the candidate."""
    return CheckResult(
        check="self_test",
        outcome="inconclusive" if test.trouble else "pass",
        unit="incumbent / incumbent",
        measured=_finite(test.work.estimate),
        low=_finite(test.work.low),
        high=_finite(test.work.high),
        reason=test.trouble or "ok",
        detail={"pairs": test.pairs, "pairs_needed": test.pairs_needed, "wall": _finite(test.wall.estimate)},
    )


# --- absolute limits ------------------------------------------------------------------------------------------------

SHOWN = ("p50", "p95", "p99")  # for people, with or without a limit


def latency(
    wall_ns: Sequence[int], limits_ms: Mapping[str, float], incumbent_ns: Sequence[int] = ()
) -> list[CheckResult]:
    """Quantiles of wall time (`p95`: the 0.95 quantile) with distribution-free intervals, against absolute limits.

    One fails when its interval lies above the limit, passes when the estimate is within, else it is inconclusive."""
    ordered = sorted(ns / 1e6 for ns in wall_ns)
    beside = sorted(ns / 1e6 for ns in incumbent_ns)
    rows = []
    for name in sorted({*SHOWN, *limits_ms}, key=lambda one: float(one[1:])):
        q, limit = float(name[1:]) / 100, limits_ms.get(name)
        interval = statistics.quantile_interval(ordered, q, CONFIDENCE)
        outcome: Outcome = "not_applicable"
        reason = "no_limit"
        if limit is not None:
            outcome = "fail" if interval.low > limit else "pass" if interval.estimate <= limit else "inconclusive"
            reason = {"pass": "ok", "fail": "too_slow", "inconclusive": "too_noisy"}[outcome]
        rows.append(
            CheckResult(
                check=f"latency_{name}",
                outcome=outcome,
                unit="ms",
                limit=limit,
                measured=interval.estimate,
                low=interval.low,
                high=interval.high,
                incumbent=statistics.quantile(beside, q) if beside else None,
                reason=reason,
                detail={"samples": len(ordered)},
            )
        )
    return rows


def undecided(rows: Sequence[CheckResult]) -> bool:
    """Whether more samples could decide one of them."""
    return any(row.outcome == "inconclusive" for row in rows)
