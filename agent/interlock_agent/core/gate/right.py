"""Is it right: golden outputs, finite outputs, accuracy on labels against the floor and the incumbent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interlock_agent.core import statistics
from interlock_agent.core.gate.checks import CONFIDENCE, not_applicable
from interlock_shared.documents import CheckResult, Outcome


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
