"""Fast: the candidate's blocks beside the twin's, paired and in random order, until the judgement is made.

A block is a few single inferences in one process; its times on the wall and of work enter a pair. The first thing that
is measured against the twin is the twin itself: a device that cannot tell two equal things apart is not asked more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from interlock_agent.core.gate import fast as judge
from interlock_agent.core.gate.checks import not_applicable
from interlock_agent.core.quarantine import CRASHES
from interlock_agent.steps.gate import recorded, throughput
from interlock_agent.steps.gate.run import Run, Tried, TwinTooLarge
from interlock_shared.documents import CheckResult, Comparison
from interlock_shared.errors import Later, Refused


@dataclass(frozen=True)
class Block:
    """Time of an inference in one block, in nanoseconds: the block's whole time, so that nothing that an inference
    waited for is left out; what disturbs a block is left to the median over pairs. `nice`: the niceness that held."""

    wall: float
    work: float
    nice: int = 0


@dataclass
class Measure:
    """What is measured of one variant. `void`: pairs that were thrown away, because the device changed in them."""

    run: Run
    tried: Tried
    runs: int = judge.BLOCK_RUNS_MAX
    void: int = 0
    warm_up_blocks: dict[str, int] = field(default_factory=dict)
    asked: str = ""  # the worker of the last block
    _item: int = 0

    def __post_init__(self) -> None:
        self.time_is_up = self.run.budget()

    async def block(self, worker: str, name: str, runs: int, nice: int = 0) -> Block:
        """Measure one, keep its raw samples under that name; those of a worker that gave way to others say nothing of
        how it will serve, and are kept apart."""
        await self.run.step_back()
        costs, hardware = self.tried.costs, self.run.place.hardware
        costs.before(hardware)
        self.asked = worker
        answer = await self.run.probe(worker, self._item, runs, nice=nice)
        costs.after(hardware, name, runs)
        self._item += runs
        wall = [int(ns) for ns in answer["wall_ns"]]
        work = [int(ns) for ns in answer["work_ns"]]
        held = int(answer.get("nice", 0))
        self.run.guest.was_nice(held)
        kept = f"{name}_nice" if held else name
        self.tried.samples.setdefault(f"{kept}_wall_ns", []).extend(wall)
        self.tried.samples.setdefault(f"{kept}_work_ns", []).extend(work)
        if worker == self.tried.worker:
            self.tried.peak_bytes = max(self.tried.peak_bytes, int(answer["memory_bytes"]))
        if name == "candidate":
            costs.candidate(hardware, self.tried.loaded, answer, runs)
        return Block(sum(wall) / len(wall), sum(work) / len(work), held)

    async def warm_up(self, worker: str, name: str) -> None:
        """Until it no longer gets faster; then the length of a block is known too."""
        walls: list[float] = []
        runs = 1
        while not judge.warmed_up(walls):
            walls.append((await self.block(worker, f"{name}_warm_up", runs, self.run.guest.nice)).wall)
            runs = judge.block_runs(walls[-1])
        self.runs = min(self.runs, runs)  # the slower of both says how many make a block
        self.warm_up_blocks[name] = len(walls)

    async def pair(self, one: tuple[str, str], two: tuple[str, str]) -> tuple[float, float] | None:
        """(work, wall) of the first ÷ the second, (worker, name) each, in random order; None when it is void. Both are
        as nice as the gate was when the pair began: fair to both, whatever applications feel meanwhile."""
        order = [one, two]
        if self.run.place.clock.dice() < 0.5:
            order.reverse()
        blocks = await self.run.steady(self._blocks(order))
        if blocks is None or blocks[one[1]].nice != blocks[two[1]].nice:
            self.void += 1
            return None
        mine, other = blocks[one[1]], blocks[two[1]]
        return mine.work / max(other.work, 1.0), mine.wall / max(other.wall, 1.0)

    async def _blocks(self, order: Sequence[tuple[str, str]]) -> dict[str, Block]:
        nice = self.run.guest.nice
        return {name: await self.block(worker, name, self.runs, nice) for worker, name in order}

    async def self_test(self, limit: float) -> judge.SelfTest:
        """The twin against itself, and once more where that did not pass."""
        work: list[float] = []
        wall: list[float] = []
        test = None
        for attempt in range(1, judge.SELF_TESTS + 1):
            while len(work) < attempt * judge.SELF_TEST_PAIRS and not self.time_is_up():
                found = await self.pair((self.run.twin, "self_test_one"), (self.run.twin, "self_test_two"))
                if found is not None:
                    work.append(found[0])
                    wall.append(found[1])
            test = judge.self_test(work, wall, limit)
            if not test.trouble:
                break
        assert test is not None
        return test

    async def ratio(self, limit: float, one: tuple[str, str], two: tuple[str, str]) -> judge.Ratio:
        """Pairs of the first ÷ the second, until a look decides or the budget is spent."""
        sequential = judge.Sequential(limit)
        while not self.time_is_up() and not sequential.ended:
            found = await self.pair(one, two)
            ratio = None if found is None else sequential.add(*found)
            if ratio is not None:
                estimate = round(ratio.work.estimate, 3)
                self.run.place.tell(doing="gate", stage="fast", pairs=ratio.pairs, ratio=estimate)
                if ratio.decided:
                    return ratio
        return sequential.last()

    async def absolute(self) -> list[CheckResult]:
        """Quantiles of what is there, with more of the candidate alone where that could decide a limit: looked at when
        there are twice as many, so that an interval is not asked until it happens to say something."""
        samples, due = self.tried.samples, judge.ABSOLUTE_RUNS
        limits = self.run.limits.get("latency_ms", {})
        beside = samples.get("incumbent_wall_ns", [])
        while True:
            mine = samples.get("candidate_wall_ns", [])
            if mine and (len(mine) >= due or self.time_is_up()):
                due = 2 * len(mine)
                rows = judge.latency(mine, limits, beside)
                if self.time_is_up() or not judge.undecided(rows) or len(mine) >= judge.ABSOLUTE_RUNS_MAX:
                    return rows
            await self.block(self.tried.worker, "candidate", self.runs)


async def head_to_head(run: Run, one: Tried, best: Tried) -> Comparison:
    """Whether a variant is faster than the best so far: for certain in work, as far as it is seen on the wall. One that
    fails now, after it has passed, is not: the best keeps its place. Raises Later when the best fails."""
    measure = Measure(run, one)
    names = (one.worker, "against_mine"), (best.worker, "against_other")
    try:
        for worker, name in names:
            await measure.warm_up(worker, name)
        ratio = await measure.ratio(judge.FASTER, *names)
    except Refused as error:
        if measure.asked != one.worker or error.code not in CRASHES:
            raise Later(f"{one.variant.name} beside {best.variant.name}: {error.message}", code=error.code) from None
        problems = {"problems": [error.message[:2000]]}
        row = CheckResult(check="latency_ratio", outcome="inconclusive", reason=error.code, detail=problems)
        return Comparison(variant=one.variant.name, against=best.variant.name, faster=False, checks=(row,))
    detail = {"void": measure.void, "block_runs": measure.runs}
    return Comparison(
        variant=one.variant.name,
        against=best.variant.name,
        faster=ratio.decided == "pass",
        checks=tuple(judge.ratio_result(ratio, judge.FASTER, detail)),
    )


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """Latency, and what passes there is asked for its throughput."""
    rows = await _latency(run, tried)
    if any(row.outcome == "fail" for row in rows):
        return rows
    return [*rows, *await throughput.check(run, tried)]


async def _latency(run: Run, tried: Tried) -> list[CheckResult]:
    """Absolute limits, and the ratio to the incumbent where there is one and a limit."""
    if not run.measurable:
        return [not_applicable("latency", "no_golden"), not_applicable("latency_ratio", "no_golden")]
    measure = Measure(run, tried)
    await measure.warm_up(tried.worker, "candidate")
    limit = run.limits.get("latency_ratio_max")
    if run.incumbent is None or limit is None:
        why = "no_limit" if run.incumbent is not None else "no_incumbent"
        return [*await measure.absolute(), not_applicable("latency_ratio", why)]
    await run.load_twin(tried)
    if not run.alone:
        try:
            return await _beside_twin(measure, float(limit))
        except TwinTooLarge:
            await run.without_twin()
    block = partial(measure.block, tried.worker, "candidate")
    rows = await recorded.ratio(run, float(limit), block, measure.time_is_up)
    return [*rows, *await measure.absolute()]


async def _beside_twin(measure: Measure, limit: float) -> list[CheckResult]:
    run, tried = measure.run, measure.tried
    await measure.warm_up(run.twin, "incumbent")
    test = await measure.self_test(limit)
    rows = [judge.self_test_result(test)]
    if test.trouble:
        return [*rows, *await measure.absolute()]
    ratio = await measure.ratio(limit, (tried.worker, "candidate"), (run.twin, "incumbent"))
    detail = {"void": measure.void, "warm_up_blocks": measure.warm_up_blocks, "block_runs": measure.runs}
    detail["work"] = tried.loaded.get("work", "cpu")
    return [*rows, *judge.ratio_result(ratio, limit, detail), *await measure.absolute()]
