"""Inferences a second, so many at a time: the median of blocks, with a distribution-free interval.

A block lasts about so long whatever the model, so that the threads' beginning and end are a small part of it. There are
looks at fixed numbers of blocks, which share an error budget: looking again costs nothing but width.
"""

from __future__ import annotations

from collections.abc import Sequence

from interlock_agent.core import statistics
from interlock_shared.documents import CheckResult, Outcome

LOOKS = (12, 24, 48, 96)  # blocks after which the median is looked at
ERROR_BUDGET = 0.05  # over all looks together; split evenly
LOOK_CONFIDENCE = 1 - ERROR_BUDGET / len(LOOKS)

WARM_UP_BLOCKS = 2  # of each: threads have their arenas, and how many runs make a block is known
WARM_UP_NS = 1_000_000_000  # one block that long is enough
BLOCK_NS = 100_000_000
RUNS_MAX = 2_000
UNIT = "inferences / s"


def warm_up_runs(concurrency: int) -> int:
    """Inferences in a block before anything is known."""
    return 2 * concurrency


def block_runs(elapsed_ns: float, runs: int, concurrency: int) -> int:
    """Inferences in a block, after one of `runs` took so long: each thread has two at least."""
    return max(2 * concurrency, min(RUNS_MAX, round(BLOCK_NS * runs / max(elapsed_ns, 1.0))))


def judged(
    concurrency: int, per_s: Sequence[float], limit: float, beside: Sequence[float] = (), runs: int = 0
) -> CheckResult:
    """Fails when the interval lies below the limit, passes when the estimate is within, else it is inconclusive. Before
    the first look nothing can be said."""
    name = f"throughput_{concurrency}"
    detail = {"concurrency": concurrency, "blocks": len(per_s), "block_runs": runs, "confidence": LOOK_CONFIDENCE}
    if len(per_s) < LOOKS[0]:
        return CheckResult(check=name, outcome="inconclusive", unit=UNIT, limit=limit, reason="no_time", detail=detail)
    interval = statistics.median_interval(per_s, LOOK_CONFIDENCE)
    outcome: Outcome = "fail" if interval.high < limit else "pass" if interval.estimate >= limit else "inconclusive"
    return CheckResult(
        check=name,
        outcome=outcome,
        unit=UNIT,
        limit=limit,
        measured=interval.estimate,
        low=interval.low,
        high=interval.high,
        incumbent=statistics.median(beside) if beside else None,
        reason={"pass": "ok", "fail": "too_few_per_second", "inconclusive": "too_noisy"}[outcome],
        detail=detail,
    )
