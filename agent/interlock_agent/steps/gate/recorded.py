"""The recorded baseline: blocks of the candidate alone, against what was measured of the incumbent earlier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from interlock_agent.core.gate import recorded as judge
from interlock_agent.core.gate.checks import not_applicable
from interlock_agent.steps.gate.run import Run
from interlock_shared.documents import CheckResult


class Block(Protocol):
    """Mean times of a block, in nanoseconds."""

    @property
    def wall(self) -> float: ...
    @property
    def work(self) -> float: ...


async def ratio(
    run: Run, limit: float, block: Callable[[int], Awaitable[Block]], time_is_up: Callable[[], bool]
) -> list[CheckResult]:
    """Rows of the ratio, `block(runs)` by block; more blocks until a look decides, or the budget is spent. A block in
    which the device changed its pace is thrown away."""
    found = await baseline(run)
    if isinstance(found, str):
        return judge.no_baseline(found)
    mine: dict[str, list[float]] = {scale: [] for scale in judge.SCALES}
    rows: list[CheckResult] = []
    for look in judge.LOOKS:
        while len(mine["wall"]) < look and not time_is_up():
            one = await run.steady(block(found.size))
            if one is not None:
                mine["wall"].append(one.wall)
                mine["work"].append(one.work)
        if not mine["wall"]:
            return judge.no_baseline("no_time")
        rows = judge.rows(mine, found, limit)
        outcomes = {row.outcome for row in rows}
        if outcomes == {"pass"} or "fail" in outcomes or time_is_up():
            break
    return [not_applicable("self_test", "no_twin"), *rows]


async def baseline(run: Run) -> judge.Recorded | str:
    """What is recorded of the incumbent, or why there is nothing."""
    found = await run.record()
    if found is None:
        return "nothing accepted is recorded under this fingerprint"
    if found[0].get("environment", {}).get("unit") != run.runs_with:
        return "it was recorded with other providers or threads"
    if not judge.same_work(run.manifest.signature.inputs, same_items=_same_items(run)):
        return "it was recorded on other items, and the size of an input may differ"
    return judge.read(*found) or "too little is recorded"


def _same_items(run: Run) -> bool:
    golden = run.manifest.golden
    if golden is None or run.incumbent is None:
        return False
    return tuple(segment.sha256 for segment in run.manifest.file(golden.file).segments) == run.incumbent.items
