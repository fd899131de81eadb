"""Right: golden outputs, finite outputs, accuracy on labels against floor and incumbent."""

from __future__ import annotations

from interlock_agent.core.gate import right as judge
from interlock_agent.core.gate.checks import not_applicable
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """The golden set is the warm-up set too."""
    if run.manifest.golden is None:
        return [not_applicable("parity", "no_golden"), not_applicable("accuracy", "no_golden")]
    mine = await run.evaluate(tried.worker)
    tried.peak_bytes = max(tried.peak_bytes, int(mine["memory_bytes"]))
    checks = judge.parity(mine["outputs"])
    if any(check.outcome == "fail" for check in checks):
        return checks
    hits = None
    if run.incumbent is not None:
        await run.load_twin(tried)
        if mine["hits"]:
            hits = str((await run.evaluate(run.twin))["hits"])
    return checks + judge.accuracy(str(mine["hits"]), hits, run.limits)
