"""The trial: when is a release that serves good enough to be confirmed, and when must it go back?

Pure: the manifest's health section, the time it has served, and the host's counters in, a judgement out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interlock_shared.manifest import DEFAULT_CHECKS, Health

HEALTHY = "healthy"
UNHEALTHY = "unhealthy"
WATCHING = "watching"

ERROR_RATE_MIN_REQUESTS = 20  # below, one error is 5 % or more: a rate of so few says nothing


@dataclass(frozen=True)
class Seen:
    """What the host counted for the live worker, and how long it has been live (seconds)."""

    elapsed_s: float
    requests: int
    errors: int
    non_finite: int
    golden_runs: int = 0  # the agent's own, where there is no traffic


@dataclass(frozen=True)
class Judgement:
    """`check` is the failed one; `figures` what was seen."""

    outcome: str
    check: str = ""
    message: str = ""
    figures: dict[str, Any] | None = None


def judge(health: Health, seen: Seen) -> Judgement:
    """Unhealthy as soon as a required check fails; healthy when the minimum of time and requests has passed."""
    figures = {
        "elapsed_s": round(seen.elapsed_s, 3),
        "requests": seen.requests,
        "errors": seen.errors,
        "non_finite": seen.non_finite,
        "golden_runs": seen.golden_runs,
    }
    total = seen.requests + seen.golden_runs
    limits = {check.check: check for check in DEFAULT_CHECKS} | {check.check: check for check in health.checks}
    bad = limits["non_finite"]
    if bad.required and seen.non_finite > bad.max:
        text = f"{seen.non_finite} answers were not finite, {bad.max:g} allowed"
        return Judgement(UNHEALTHY, "non_finite", text, figures)
    rate = limits["error_rate"]
    if rate.required and seen.errors and total >= ERROR_RATE_MIN_REQUESTS and seen.errors / total > rate.max:
        text = f"error rate {seen.errors / total:.3f} over {total} requests, {rate.max:g} allowed"
        return Judgement(UNHEALTHY, "error_rate", text, figures)
    if seen.elapsed_s >= health.min_seconds and total >= health.min_requests:
        if rate.required and seen.errors and seen.errors / max(total, 1) > rate.max:
            text = f"error rate {seen.errors / max(total, 1):.3f} at the end of the trial, {rate.max:g} allowed"
            return Judgement(UNHEALTHY, "error_rate", text, figures)
        return Judgement(HEALTHY, figures=figures)
    return Judgement(WATCHING, figures=figures)
