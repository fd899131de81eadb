"""Small: the memory of the candidate's process."""

from __future__ import annotations

from interlock_agent.core.gate import small as judge
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """Peak against the limit and the device's free memory."""
    peak = max(tried.peak_bytes, int(tried.loaded.get("memory_bytes", 0)))
    limit = run.limits.get("memory_max_bytes")
    free = run.place.hardware.free().get("memory_free_bytes")
    headroom = None if free is None else free + peak  # it is loaded already: what was free before
    return judge.memory(peak, None if limit is None else int(limit), headroom)
