"""The gate's judgements: figures in, check results out. Measuring is the caller's; nothing here waits.

Outcomes follow one rule: a stage fails when one of its checks fails, is inconclusive when one is and none fails;
a check that needs an incumbent is `not_applicable` on a first install, never `pass`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interlock_agent.core import statistics
from interlock_shared import canonical
from interlock_shared.documents import CheckResult, Outcome, StageResult
from interlock_shared.manifest import Gates, Manifest

LOOKS = (20, 30, 45, 70, 100)  # pairs after which the ratio is looked at
ERROR_BUDGET = 0.05  # over all looks together, split evenly (Bonferroni): peeking does not inflate it
BLOCK_RUNS = 5  # inferences in a block; the block's median enters the pair
CONFIDENCE = 0.95


@dataclass(frozen=True)
class OwnerLimits:
    """What the device's owner asks for beyond the publisher; the stricter of both wins."""

    accuracy_min: float | None = None
    accuracy_drop_max: float | None = None
    latency_p95_ms: float | None = None
    latency_ratio_max: float | None = None
    memory_max_bytes: int | None = None
    allow_none: bool = False  # whether a manifest may switch its gates off


def _stricter(publisher: float | None, owner: float | None, *, smaller: bool) -> float | None:
    present = [value for value in (publisher, owner) if value is not None]
    if not present:
        return None
    return min(present) if smaller else max(present)


def effective_limits(manifest: Manifest, owner: OwnerLimits) -> dict[str, Any]:
    """The limits that hold here, and under which digest a failure is remembered. `parity` is always on."""
    gates = manifest.gates if isinstance(manifest.gates, Gates) else Gates()
    if manifest.gates == "none" and owner.allow_none:
        return {"gates": "none", "parity": True}
    memory = _stricter(gates.memory_max_bytes, owner.memory_max_bytes, smaller=True)
    return {
        "parity": True,
        "accuracy_min": _stricter(gates.accuracy_min, owner.accuracy_min, smaller=False),
        "accuracy_drop_max": _stricter(gates.accuracy_drop_max, owner.accuracy_drop_max, smaller=True),
        "latency_p95_ms": _stricter(gates.latency_p95_ms, owner.latency_p95_ms, smaller=True),
        "latency_ratio_max": _stricter(gates.latency_ratio_max, owner.latency_ratio_max, smaller=True),
        "memory_max_bytes": None if memory is None else int(memory),
    }


def limits_digest(limits: dict[str, Any]) -> str:
    """SHA-256 of the canonical limits."""
    return canonical.sha256(canonical.encode(limits))


def stage(name: Any, seconds: float, checks: Sequence[CheckResult]) -> StageResult:
    """A stage's outcome from its checks."""
    outcomes = {check.outcome for check in checks}
    outcome: Outcome = "pass"
    if "fail" in outcomes:
        outcome = "fail"
    elif "inconclusive" in outcomes:
        outcome = "inconclusive"
    elif outcomes and outcomes <= {"not_applicable", "not_run"}:
        outcome = "not_applicable"
    return StageResult(stage=name, outcome=outcome, seconds=round(seconds, 6), checks=tuple(checks))


def simple(check: str, problems: Sequence[str], reason: str) -> CheckResult:
    """A check that holds or names what does not."""
    if not problems:
        return CheckResult(check=check, outcome="pass", reason="ok")
    return CheckResult(check=check, outcome="fail", reason=reason, detail={"problems": list(problems)[:20]})


def not_applicable(check: str, why: str) -> CheckResult:
    """A check that cannot be made here, and says why."""
    return CheckResult(check=check, outcome="not_applicable", reason=why)


# --- right ----------------------------------------------------------------------------------------------------------


def parity(outputs: Sequence[dict[str, Any]]) -> list[CheckResult]:
    """Golden outputs within tolerance, and no NaN or Inf, for each output."""
    results = []
    for output in outputs:
        name = str(output["name"])
        if output.get("non_finite"):
            detail = {"output": name, "values": int(output["non_finite"])}
            results.append(CheckResult(check="finite", outcome="fail", reason="non_finite_output", detail=detail))
        if output.get("compared"):
            outside = int(output["outside"])
            results.append(
                CheckResult(
                    check="parity",
                    outcome="fail" if outside else "pass",
                    unit="values outside tolerance",
                    limit=0.0,
                    measured=float(outside),
                    reason="golden_mismatch" if outside else "ok",
                    detail={"output": name, "max_abs": output.get("max_abs"), "max_rel": output.get("max_rel")},
                )
            )
    return results


def accuracy(hits: str, incumbent_hits: str | None, limits: dict[str, Any]) -> list[CheckResult]:
    """Accuracy on labels: floor, and drop against the incumbent on the same items.

    The drop's interval (paired) is in the result with its half width: the smallest effect that could be seen."""
    if not hits:
        return [not_applicable("accuracy", "no_labels"), not_applicable("accuracy_drop", "no_labels")]
    measured = hits.count("1") / len(hits)
    interval = statistics.proportion_interval(hits.count("1"), len(hits), CONFIDENCE)
    floor = limits.get("accuracy_min")
    outcome: Outcome = "not_applicable" if floor is None else "pass" if measured >= floor else "fail"
    rows = [
        CheckResult(
            check="accuracy",
            outcome=outcome,
            unit="fraction",
            limit=floor,
            measured=measured,
            low=interval.low,
            high=interval.high,
            incumbent=None if incumbent_hits is None else incumbent_hits.count("1") / len(incumbent_hits),
            reason="no_limit" if floor is None else "ok" if measured >= floor else "accuracy_below_floor",
            detail={"items": len(hits)},
        )
    ]
    margin = limits.get("accuracy_drop_max")
    if incumbent_hits is None or margin is None:
        return [*rows, not_applicable("accuracy_drop", "no_incumbent" if incumbent_hits is None else "no_limit")]
    drop = statistics.paired_difference(incumbent_hits, hits, CONFIDENCE)
    worse = drop.estimate > margin
    rows.append(
        CheckResult(
            check="accuracy_drop",
            outcome="fail" if worse else "pass",
            unit="fraction",
            limit=margin,
            measured=drop.estimate,
            low=drop.low,
            high=drop.high,
            reason="accuracy_dropped" if worse else "ok",
            detail={"items": len(hits), "smallest_effect": (drop.high - drop.low) / 2},
        )
    )
    return rows


# --- fast -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """The ratio's state after a look: `decided` is "", "pass" or "fail"."""

    work: statistics.Interval
    wall: statistics.Interval
    pairs: int
    decided: str


def look(work: Sequence[float], wall: Sequence[float], limit: float) -> Ratio:
    """Look at the paired ratios (candidate ÷ incumbent) on both scales.

    pass: the work interval lies below the limit and the wall interval does not lie above it;
    fail: either lies above; else undecided, and more pairs are needed."""
    confidence = 1 - ERROR_BUDGET / len(LOOKS)
    on_work = statistics.median_interval(work, confidence)
    on_wall = statistics.median_interval(wall, confidence)
    decided = ""
    if on_work.low > limit or on_wall.low > limit:
        decided = "fail"
    elif on_work.high <= limit and on_wall.low <= limit:
        decided = "pass"
    return Ratio(on_work, on_wall, len(work), decided)


def ratio_result(ratio: Ratio, limit: float) -> list[CheckResult]:
    """Two rows, one a scale. Undecided at the end of the budget is inconclusive, with the smallest effect."""
    outcome: Outcome = "pass" if ratio.decided == "pass" else "fail" if ratio.decided == "fail" else "inconclusive"
    rows = []
    for scale, interval in (("work", ratio.work), ("wall", ratio.wall)):
        finite = abs(interval.low) != float("inf")
        own = outcome if outcome != "fail" or interval.low > limit else "pass"
        reason = {"pass": "ok", "fail": "too_slow", "inconclusive": "too_noisy"}[own]
        rows.append(
            CheckResult(
                check=f"latency_ratio_{scale}",
                outcome=own,
                unit="candidate / incumbent",
                limit=limit,
                measured=interval.estimate,
                low=interval.low if finite else None,
                high=interval.high if finite else None,
                reason=reason,
                detail={
                    "pairs": ratio.pairs,
                    "confidence": interval.confidence,
                    "smallest_effect": (interval.high - interval.low) / 2 if finite else None,
                },
            )
        )
    return rows


def latency(wall_ns: Sequence[int], limit_ms: float | None, incumbent_ns: Sequence[int] = ()) -> list[CheckResult]:
    """p50 (for people) and p95 against the absolute limit, on wall time, with distribution-free intervals.

    p95 fails when its interval lies above the limit, passes when the estimate is within, else it is inconclusive."""
    rows = []
    for q, name, limit in ((0.5, "latency_p50", None), (0.95, "latency_p95", limit_ms)):
        interval = statistics.quantile_interval([ns / 1e6 for ns in wall_ns], q, CONFIDENCE)
        outcome: Outcome = "not_applicable"
        reason = "no_limit"
        if limit is not None:
            outcome = "fail" if interval.low > limit else "pass" if interval.estimate <= limit else "inconclusive"
            reason = {"pass": "ok", "fail": "too_slow", "inconclusive": "too_noisy"}[outcome]
        incumbent = statistics.quantile(sorted(ns / 1e6 for ns in incumbent_ns), q) if incumbent_ns else None
        rows.append(
            CheckResult(
                check=name,
                outcome=outcome,
                unit="ms",
                limit=limit,
                measured=interval.estimate,
                low=interval.low,
                high=interval.high,
                incumbent=incumbent,
                reason=reason,
                detail={"samples": len(wall_ns)},
            )
        )
    return rows


# --- small ----------------------------------------------------------------------------------------------------------


def memory(peak_bytes: int, limit: int | None, free_bytes: int | None) -> list[CheckResult]:
    """Peak memory of the worker against the limit, else against what the device has free (headroom)."""
    rows = []
    for name, bound in (("memory_peak", limit), ("memory_headroom", free_bytes)):
        fits = bound is None or peak_bytes <= bound
        rows.append(
            CheckResult(
                check=name,
                outcome="not_applicable" if bound is None else "pass" if fits else "fail",
                unit="bytes",
                limit=None if bound is None else float(bound),
                measured=float(peak_bytes),
                reason="no_limit" if bound is None else "ok" if fits else "too_large",
            )
        )
    return rows


# --- the verdict ----------------------------------------------------------------------------------------------------


def conclude(stages: Sequence[StageResult]) -> tuple[str, str, str]:
    """(outcome, reason, message) of the verdict: the first failure decides, then the first inconclusive check."""
    for wanted, outcome in (("fail", "reject"), ("inconclusive", "inconclusive")):
        for one in stages:
            for check in one.checks:
                if check.outcome == wanted:
                    return outcome, check.reason, explain(one.stage, check)
    return "accept", "ok", "every check that applies passed"


def explain(stage_name: str, check: CheckResult) -> str:
    """One sentence for people."""
    problems = check.detail.get("problems")
    if problems:
        return f"{stage_name}: {check.check}: " + "; ".join(str(problem) for problem in problems[:3])
    text = f"{stage_name}: {check.check}"
    if isinstance(check.measured, float):
        text += f" {check.measured:.4g} {check.unit}".rstrip()
    if check.low is not None and check.high is not None:
        text += f" [{check.low:.4g}, {check.high:.4g}]"
    if check.limit is not None:
        text += f", limit {check.limit:.4g}" if isinstance(check.limit, float) else f", limit {check.limit}"
    return f"{text} ({check.reason})"
