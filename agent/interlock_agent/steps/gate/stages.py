"""The stages in order, the cheapest first; after a failed stage the rest is `not_run`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from interlock_agent.core.gate import checks as judge
from interlock_agent.steps.gate import compatible, fast, loads, right, small
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult, StageResult
from interlock_shared.errors import Later, Refused

STAGES: dict[str, Callable[[Run, Tried], Awaitable[list[CheckResult]]]] = {
    "compatible": compatible.check,
    "loads": loads.check,
    "right": right.check,
    "fast": fast.check,
    "small": small.check,
}
CRASHED = frozenset({"worker_died", "worker_hung", "load_failed"})  # the candidate's own fault


async def judge_variant(run: Run, tried: Tried) -> list[StageResult]:
    """All stages on one variant; the first failure ends it. Raises Later for what is not the candidate's fault."""
    results: list[StageResult] = []
    failed = False
    for name in STAGES:
        if failed:
            results.append(StageResult(stage=name, outcome="not_run", seconds=0.0))  # type: ignore[arg-type]
            continue
        run.place.tell(doing="gate", stage=name)
        began = run.place.clock.monotonic()
        checks = await _guarded(name, run, tried)
        results.append(judge.stage(name, run.place.clock.monotonic() - began, checks))
        failed = results[-1].outcome == "fail"
    return results


async def _guarded(name: str, run: Run, tried: Tried) -> list[CheckResult]:
    try:
        return await STAGES[name](run, tried)
    except Refused as error:
        if error.code not in CRASHED:
            raise Later(error.message, code=error.code) from None
        return [CheckResult(check=name, outcome="fail", reason=error.code, detail={"problems": [error.message[:2000]]})]
