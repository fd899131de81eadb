"""The trial: when is a release that serves good enough to be confirmed, and when must it go back?

Pure: the manifest's health section, the time it has served, the host's counters and the standings of the probes in, a
judgement out. What the counters say is judged at each event, without waiting for a probe's period.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interlock_agent.core.probes import Board
from interlock_shared.health import Check, Health

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


def judge(health: Health, seen: Seen, board: Board | None = None) -> Judgement:
    """Unhealthy as soon as a required check fails; healthy when the minimum of time and requests has passed, and every
    required probe has said that it is well, or that it cannot be read here."""
    figures = {
        "elapsed_s": round(seen.elapsed_s, 3),
        "requests": seen.requests,
        "errors": seen.errors,
        "non_finite": seen.non_finite,
        "golden_runs": seen.golden_runs,
    }
    limits = {check.check: check for check in health.effective()}
    total, rate = seen.requests + seen.golden_runs, limits["error_rate"]
    bad = _counted(limits["non_finite"], rate, seen, total)
    if bad is None and board is not None and board.failing():
        bad = (board.failing(), board.message(board.failing()))
    if bad is not None:
        return Judgement(UNHEALTHY, *bad, figures)
    if seen.elapsed_s >= health.min_seconds and total >= health.min_requests:
        if rate.required and seen.errors and seen.errors / max(total, 1) > (rate.max or 0.0):
            text = f"error rate {seen.errors / max(total, 1):.3f} at the end of the trial, {rate.max:g} allowed"
            return Judgement(UNHEALTHY, rate.check, text, figures)
        if board is None or not board.pending():
            return Judgement(HEALTHY, figures=figures)
    return Judgement(WATCHING, figures=figures)


def _counted(non_finite: Check, rate: Check, seen: Seen, total: int) -> tuple[str, str] | None:
    """(check, message) of what the counters alone say."""
    if non_finite.required and seen.non_finite > (non_finite.max or 0.0):
        return non_finite.check, f"{seen.non_finite} answers were not finite, {non_finite.max:g} allowed"
    enough = total >= ERROR_RATE_MIN_REQUESTS
    if rate.required and seen.errors and enough and seen.errors / total > (rate.max or 0.0):
        return rate.check, f"error rate {seen.errors / total:.3f} over {total} requests, {rate.max:g} allowed"
    return None
