"""Does it start soon enough: from the start of its process to its first answer."""

from __future__ import annotations

from collections.abc import Sequence

from interlock_shared.documents import CheckResult, Outcome


def load_time(seconds: Sequence[float], limit: float | None, answered: bool) -> CheckResult:
    """Each of `seconds` is one start; the shortest is judged: whatever else the device was at makes a start longer, and
    none shorter. `answered`: whether the first answer is in it, or only the loading. One start has no interval."""
    measured = min(seconds)
    outcome: Outcome = "not_applicable" if limit is None else "pass" if measured <= limit else "fail"
    return CheckResult(
        check="load_time",
        outcome=outcome,
        unit="s",
        limit=limit,
        measured=measured,
        reason={"not_applicable": "no_limit", "pass": "ok", "fail": "starts_too_slowly"}[outcome],
        detail={"starts": len(seconds), "seconds": [round(one, 6) for one in seconds], "first_answer": answered},
    )
