"""The stages in order, the cheapest first; after a failed stage the rest is `not_run`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from interlock_agent.core.gate import checks as judge
from interlock_agent.core.gate import gap
from interlock_agent.steps.gate import compatible, fast, loads, right, small
from interlock_agent.steps.gate.gap import Gap
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult, StageResult
from interlock_shared.errors import Later, Refused
from interlock_shared.gates import Stage

STAGES: dict[Stage, Callable[[Run, Tried], Awaitable[list[CheckResult]]]] = {
    "compatible": compatible.check,
    "loads": loads.check,
    "right": right.check,
    "fast": fast.check,
    "small": small.check,
}
# The candidate's own fault, as the host tells it.
CRASHED = frozenset(
    """
    worker_died worker_hung load_failed inference_failed out_of_memory compiled_context custom_ops external_data
    """.split()
)


async def judge_variant(run: Run, tried: Tried) -> list[StageResult]:
    """All stages on one variant; the first failure ends it. Raises Later for what is not the candidate's fault."""
    results: list[StageResult] = []
    failed = False
    run.gap = Gap()
    for name in STAGES:
        if failed:
            results.append(StageResult(stage=name, outcome="not_run", seconds=0.0))
            continue
        run.place.tell(doing="gate", stage=name)
        began = run.place.clock.monotonic()
        checks = await _guarded(name, run, tried)
        results.append(judge.stage(name, run.place.clock.monotonic() - began, checks))
        # What does not fit now is not loaded to see it fail: it is asked again.
        failed = results[-1].outcome == "fail" or (name == "compatible" and results[-1].outcome == "inconclusive")
        failed = failed or any(check.reason == "gap_too_short" for check in checks)
    return results


async def _guarded(name: Stage, run: Run, tried: Tried) -> list[CheckResult]:
    budget, run.candidate_s = run.place.settings.stage_s(name, len(run.limits.get("throughput_min", ()))), 0.0
    left_s = run.gap.left_s(run.place.clock)
    try:
        return await asyncio.wait_for(STAGES[name](run, tried), min(budget, left_s))
    except asyncio.TimeoutError:
        mine = run.candidate_s
        if left_s < budget:
            return [gap.too_short(name, run.plan.at_most_s)]
        if mine <= budget / 2:  # the rest went to the twin, to the host, to the machine
            raise Later(f"{name}: not done within {budget:g} s", code="out_of_time") from None
        return [CheckResult(check=name, outcome="fail", unit="s", limit=budget, measured=mine, reason="out_of_time")]
    except Refused as error:
        if error.code == "gap_over":
            return [gap.too_short(name, run.plan.at_most_s)]
        if error.code == "out_of_memory" and run.may_make_room:
            run.cramped = True
            raise Later(f"beside what serves: {error.message}", code="too_little_free") from None
        if error.code not in CRASHED:
            raise Later(error.message, code=error.code) from None
        return [CheckResult(check=name, outcome="fail", reason=error.code, detail={"problems": [error.message[:2000]]})]
