"""Is it small: peak memory on the CPU and on the GPU, alone and beside what serves now; whether it leaks; its energy.

What the device does not tell is `not_told`, never a pass. A figure without a limit is told all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interlock_agent.core.gate.checks import CONFIDENCE, not_applicable
from interlock_agent.core.statistics import slope_interval
from interlock_shared.documents import CheckResult

LEAK_PER = 1000  # inferences
LEAK_BLOCKS_MIN = 8  # fewer points do not show a slope
LEAK_POINTS_MAX = 300  # the slopes between so many points are made within a tenth of a second
LEAK_SEEN_BYTES = 512 * 1024  # allocators take memory in steps: less growth than that in all is none


@dataclass(frozen=True)
class Held:
    """Memory of a process in bytes; None where the device does not tell."""

    peak: int | None
    now: int | None


def bounded(
    check: str,
    measured: float | None,
    limit: float | None,
    *,
    unit: str = "bytes",
    reason: str = "too_large",
    incumbent: float | None = None,
) -> CheckResult:
    """A figure that must not be above its limit."""
    if measured is None:
        return not_applicable(check, "not_told")
    fits = limit is None or measured <= limit
    return CheckResult(
        check=check,
        outcome="not_applicable" if limit is None else "pass" if fits else "fail",
        unit=unit,
        limit=None if limit is None else float(limit),
        measured=float(measured),
        incumbent=incumbent,
        reason="no_limit" if limit is None else "ok" if fits else reason,
    )


def room(check: str, needed: int, free: int | None, total: int | None) -> CheckResult:
    """Memory that is needed against what would be free. More than the device has at all is a failure; more than what
    others leave of it now is inconclusive: it is not the candidate's fault, and may fit later."""
    if free is None:
        return not_applicable(check, "not_told")
    never = total is not None and needed > total
    outcome, reason = ("fail", "too_large") if never else ("inconclusive", "too_little_free")
    if needed <= free:
        outcome, reason = "pass", "ok"
    return CheckResult(
        check=check,
        outcome=outcome,  # type: ignore[arg-type]  # one of three, by the lines above
        unit="bytes",
        limit=float(free),
        measured=float(needed),
        reason=reason,
    )


def memory(
    prefix: str, mine: Held, live: Held | None, leaving: int, space: tuple[int | None, int | None], limit: int | None
) -> list[CheckResult]:
    """The candidate's peak: against the limit; against what the device would have free without it (headroom); and with
    the peak of the release that serves, which stays loaded beside it in a trial, against what would be free without
    both. `leaving`: bytes now held by workers that will be gone by then; `space`: bytes free now, and in all."""
    peak, both = f"{prefix}memory_peak", f"{prefix}memory_both"
    if mine.peak is None:
        return [not_applicable(check, "not_told") for check in (peak, f"{prefix}memory_headroom", both)]
    now = mine.peak if mine.now is None else mine.now
    free, total = space
    rows = [
        bounded(peak, mine.peak, limit, incumbent=None if live is None or live.peak is None else float(live.peak)),
        room(f"{prefix}memory_headroom", mine.peak, None if free is None else free + now, total),
    ]
    if live is None:
        return [*rows, not_applicable(both, "no_incumbent")]
    if live.peak is None or live.now is None:
        return [*rows, not_applicable(both, "not_told")]
    without = None if free is None else free + now + live.now + leaving
    return [*rows, room(both, mine.peak + live.peak, without, total)]


def leak(points: Sequence[tuple[int, int]], limit: float | None) -> CheckResult:
    """Growth of the process over its inferences, after warm-up: Theil–Sen's slope through (inferences so far, resident
    bytes). It fails where the whole interval lies above the limit, and the growth is more than an allocator's step."""
    points = [point for point in points if point[1] > 0]  # an older host tells no present memory
    if len(points) < LEAK_BLOCKS_MIN:
        return not_applicable("memory_leak_per_1000", "too_few_blocks" if points else "not_told")
    step = -(-len(points) // LEAK_POINTS_MAX)
    some = points[::step]
    slope = slope_interval(some, CONFIDENCE)
    growth = slope.estimate * (some[-1][0] - some[0][0])
    figures = [round(value * LEAK_PER, 1) for value in (slope.estimate, slope.low, slope.high)]
    leaks = limit is not None and figures[1] > limit and growth > LEAK_SEEN_BYTES
    return CheckResult(
        check="memory_leak_per_1000",
        outcome="not_applicable" if limit is None else "fail" if leaks else "pass",
        unit="bytes",
        limit=None if limit is None else float(limit),
        measured=figures[0],
        low=figures[1],
        high=figures[2],
        reason="no_limit" if limit is None else "leaks" if leaks else "ok",
        detail={"blocks": len(points), "growth_bytes": points[-1][1] - points[0][1], "confidence": slope.confidence},
    )


@dataclass(frozen=True)
class Spent:
    """Energy of the device over the blocks of one side."""

    joules: float = 0.0
    inferences: int = 0

    def each(self) -> float | None:
        """Joules of an inference; None where nothing was told, or the counter never moved."""
        return round(self.joules / self.inferences, 9) if self.inferences and self.joules > 0 else None


def energy(mine: Spent, theirs: Spent, limit: float | None, *, alone: bool = True) -> CheckResult:
    """Joules of the device for one inference, with the incumbent's beside it. It is the whole device's: while
    applications ask for something too, more than the limit says nothing (`not_alone`)."""
    row = bounded(
        "energy_per_inference", mine.each(), limit, unit="J", reason="too_much_energy", incumbent=theirs.each()
    )
    if row.outcome == "fail" and not alone:
        return row.model_copy(update={"outcome": "inconclusive", "reason": "not_alone"})
    return row
