"""Check results, the stages they make, and the verdict that follows from the stages.

Outcomes follow one rule: a stage fails when one of its checks fails, is inconclusive when one is and none fails;
a check that needs an incumbent is `not_applicable` on a first install, never `pass`.
"""

from __future__ import annotations

from collections.abc import Sequence

from interlock_shared.documents import CheckResult, Outcome, StageResult
from interlock_shared.gates import Stage

CONFIDENCE = 0.95  # of the intervals that are shown with a figure


def stage(name: Stage, seconds: float, checks: Sequence[CheckResult]) -> StageResult:
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
