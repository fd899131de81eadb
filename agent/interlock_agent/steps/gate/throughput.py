"""Throughput: blocks of several inferences at a time in the candidate's process, and in the twin's for comparison.

It has a budget of time of its own, as large as that of the ratio: what was spent there must not leave nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from interlock_agent.core.gate import throughput as judge
from interlock_agent.core.gate.checks import not_applicable
from interlock_agent.steps.gate.run import PROBE_S, Run, Tried, TwinTooLarge
from interlock_shared.documents import CheckResult
from interlock_shared.errors import Later

PATIENCE = 4.0  # times what its inferences take alone


@dataclass
class Blocks:
    """Of one process, at one concurrency."""

    run: Run
    tried: Tried
    worker: str
    name: str
    concurrency: int
    runs: int = 0
    per_s: list[float] = field(default_factory=list)
    _item: int = 0

    async def _block(self) -> int:
        await self.run.step_back()
        answer = await self.run.probe(
            self.worker, self._item, self.runs, self.concurrency, timeout_s=self._patience_s()
        )
        self._item += self.runs
        elapsed = int(answer.get("elapsed_ns", 0))
        if elapsed <= 0:
            raise Later("the host is older than the agent, and cannot tell throughput", code="host_too_old")
        if self.worker == self.tried.worker:
            self.tried.peak_bytes = max(self.tried.peak_bytes, int(answer["memory_bytes"]))
        return elapsed

    def _patience_s(self) -> float:
        """After which its process hangs: several times as long as all of a block took one after the other."""
        samples = self.tried.samples
        alone = samples.get(f"{self.name}_wall_ns") or samples.get("candidate_wall_ns") or [0]
        return max(PROBE_S, PATIENCE * self.runs * sum(alone) / len(alone) / 1e9)

    async def warm_up(self) -> None:
        """Then the length of a block is known too."""
        self.runs = judge.warm_up_runs(self.concurrency)
        for _ in range(judge.WARM_UP_BLOCKS):
            elapsed = await self._block()
            if elapsed > judge.WARM_UP_NS:
                break
        self.runs = judge.block_runs(elapsed, self.runs, self.concurrency)

    async def add(self) -> None:
        """One more block; how long it took is kept, in a list with the number of its inferences in front. One in which
        the device changed its pace is thrown away."""
        elapsed = await self.run.steady(self._block())
        if elapsed is None:
            return
        kept = self.tried.samples.setdefault(f"{self.name}_throughput_{self.concurrency}_ns", [self.runs])
        kept.append(elapsed)
        self.per_s.append(self.runs * 1e9 / elapsed)


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """One row for each concurrency that has a limit."""
    asked = {int(name): float(limit) for name, limit in run.limits.get("throughput_min", {}).items()}
    if not run.measurable:
        return [not_applicable(f"throughput_{concurrency}", "no_golden") for concurrency in asked]
    rows = []
    for concurrency, limit in asked.items():
        try:
            rows.append(await _one(run, tried, concurrency, limit))
        except TwinTooLarge:
            await run.without_twin()
            rows.append(await _one(run, tried, concurrency, limit))
    return rows


async def _one(run: Run, tried: Tried, concurrency: int, limit: float) -> CheckResult:
    time_is_up = run.budget()
    mine = Blocks(run, tried, tried.worker, "candidate", concurrency)
    twin = Blocks(run, tried, run.twin, "incumbent", concurrency) if run.twin else None
    for one in (mine, twin):
        if one is not None:
            await one.warm_up()
    row = judge.judged(concurrency, (), limit)
    for look in judge.LOOKS:
        while len(mine.per_s) < look and not time_is_up():
            await mine.add()
            if twin is not None and len(twin.per_s) < judge.LOOKS[0]:
                await twin.add()
        row = judge.judged(concurrency, mine.per_s, limit, twin.per_s if twin else (), mine.runs)
        if row.outcome != "inconclusive" or time_is_up():
            break
    return row
