"""Whether a candidate fits beside what serves, and for how long nothing will serve where it does not.

What an incumbent needed when it was judged is the best that is known of its successor before that was loaded. The size
of a candidate's files is the least that it needs, and what its manifest asks for is its publisher's word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interlock_agent.core.contract import unmet
from interlock_agent.core.gate.checks import simple
from interlock_agent.core.gate.recorded import needs
from interlock_shared.documents import CheckResult
from interlock_shared.manifest import Requirement

RESERVE = 0.1  # of the gap, at its end, for the slot to be filled and the switch to be made
RESERVE_S = 1.0  # at the least


@dataclass(frozen=True)
class Plan:
    """`makes_room`: what serves is unloaded first. `why`: `policy`, or what does not fit, in words. Nothing serves for
    about `expected_s`, and for `at_most_s` before the device goes back by itself."""

    makes_room: bool = False
    why: str = ""
    expected_s: float = 0.0
    at_most_s: float = 0.0

    def document(self) -> dict[str, Any]:
        """As it is told beforehand; empty where both stay loaded."""
        if not self.makes_room:
            return {}
        return {"why": self.why, "expected_s": round(self.expected_s, 3), "at_most_s": self.at_most_s}


def misfit(
    verdict: Mapping[str, Any] | None,
    file_bytes: int,
    requirements: Sequence[Requirement],
    free: Mapping[str, int],
) -> str:
    """Why another such release does not fit into what is free beside the incumbent, or "". `verdict`: the incumbent's;
    `file_bytes`: of the candidate's form."""
    needed: dict[str, float] = {"memory_free_bytes": file_bytes}
    for what, taken in needs(verdict or {}).items():
        needed[what] = max(taken, needed.get(what, 0))
    for what, size in needed.items():
        if what in free and size > free[what]:
            return f"{what} {free[what]}, and it needs about {size:.0f}"
    short = unmet([one for one in requirements if one.fact in free], dict(free))
    return short[0] if short else ""


def expected_s(verdict: Mapping[str, Any] | None, at_most_s: float) -> float:
    """How long nothing will serve: what the stages took when the incumbent was judged. Speed was measured in pairs
    then, and is measured of one now. Without a record as long as it may be."""
    took = {stage["stage"]: float(stage.get("seconds") or 0.0) for stage in (verdict or {}).get("stages", ())}
    whole = took.get("loads", 0.0) + took.get("right", 0.0) + took.get("fast", 0.0) / 2 + took.get("small", 0.0)
    return min(whole, at_most_s) if whole > 0 else at_most_s


def reserve_s(at_most_s: float) -> float:
    """What of a gap is not spent on judging."""
    return max(RESERVE_S, RESERVE * at_most_s)


def check(plan: Plan, no_baseline: str) -> list[CheckResult]:
    """What is to be said before anything is unloaded: for a judgement that cannot be made nothing is."""
    if not plan.makes_room:
        return []
    if no_baseline:
        row = simple("gap", [no_baseline], "no_baseline")
        return [row.model_copy(update={"outcome": "inconclusive"})]
    row = CheckResult(check="gap", outcome="pass", unit="s", reason="ok", detail=plan.document())
    return [row.model_copy(update={"limit": plan.at_most_s, "measured": plan.expected_s})]


def too_short(stage: str, at_most_s: float) -> CheckResult:
    """A stage that did not end within the gap: the owner may allow more, and the candidate is not to blame."""
    return CheckResult(check=stage, outcome="inconclusive", unit="s", limit=at_most_s, reason="gap_too_short")
