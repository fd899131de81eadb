"""Throughput at a concurrency, and the time to the first answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from interlock_agent.config import Config
from interlock_agent.core.gate import starts
from interlock_agent.core.gate import throughput as judge
from interlock_agent.core.states import Event
from interlock_agent.steps.gate.stages import STAGES
from interlock_shared.documents import CheckResult, Verdict
from interlock_shared.errors import Refused
from tests.agent.material import UNIT, the_manifest
from tests.agent.test_gating import GOLDEN, Bench, ScriptedHost

# --- judged -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "per_s", "limit", "outcome", "reason"),
    [
        ("enough", [100.0] * 12, 90.0, "pass", "ok"),
        ("just enough", [90.0] * 12, 90.0, "pass", "ok"),
        ("too few for certain", [80.0] * 12, 90.0, "fail", "too_few_per_second"),
        ("a few slow blocks decide nothing", [100.0] * 10 + [1.0, 1.0], 90.0, "pass", "ok"),
        ("below, and not for certain", [80.0, 100.0] * 5 + [80.0, 80.0], 90.0, "inconclusive", "too_noisy"),
        ("before the first look", [100.0] * 11, 90.0, "inconclusive", "no_time"),
    ],
)
def test_the_median_of_blocks(words: str, per_s: list[float], limit: float, outcome: str, reason: str) -> None:
    row = judge.judged(4, per_s, limit, [50.0, 60.0, 70.0])
    assert (row.check, row.outcome, row.reason) == ("throughput_4", outcome, reason), words
    if reason != "no_time":
        assert row.incumbent == 60.0


@pytest.mark.parametrize(
    ("elapsed_ms", "runs", "concurrency", "block"),
    [(10.0, 8, 4, 80), (1000.0, 8, 4, 8), (0.01, 8, 4, judge.RUNS_MAX), (50.0, 2, 1, 4)],
)
def test_a_block_lasts_about_so_long(elapsed_ms: float, runs: int, concurrency: int, block: int) -> None:
    assert judge.block_runs(elapsed_ms * 1e6, runs, concurrency) == block


def test_the_shortest_start_is_judged() -> None:
    assert starts.load_time([9.0, 2.0], 3.0, answered=True).outcome == "pass"
    assert starts.load_time([3.0], 3.0, answered=True).outcome == "pass"
    row = starts.load_time([9.0, 4.0], 3.0, answered=True)
    assert (row.outcome, row.reason, row.measured) == ("fail", "starts_too_slowly", 4.0)
    assert row.detail == {"starts": 2, "seconds": [9.0, 4.0], "first_answer": True}
    assert starts.load_time([9.0], None, answered=False).outcome == "not_applicable"


# --- measured ---------------------------------------------------------------------------------------------------------


@dataclass
class Timed(ScriptedHost):
    """`per_s(concurrency, role, block)` inferences a second; `start_s`: of the candidate, one start after the other."""

    per_s: Callable[[int, str, int], float] = lambda concurrency, role, block: 100.0
    start_s: list[float] = field(default_factory=lambda: [0.5])
    first_ns: int = 1_000_000
    asked: list[tuple[int, str]] = field(default_factory=list)

    def _load(self, order: Any, role: str) -> dict[str, Any]:
        start = self.start_s.pop(0) if role == "candidate" else 0.1
        return super()._load(order, role) | {"start_s": start}

    def _probe(self, order: Any, role: str) -> dict[str, Any]:
        if ("evaluate", "candidate") not in self.orders:
            return {"wall_ns": [self.first_ns], "work_ns": [self.first_ns], "elapsed_ns": 1, "memory_bytes": 1}
        if order.concurrency == 1 and (1, role) not in self.asked:
            return super()._probe(order, role)
        block = self.asked.count((order.concurrency, role))
        self.asked.append((order.concurrency, role))
        elapsed = int(order.runs * 1e9 / self.per_s(order.concurrency, role, block))
        walls = [1_000_000] * order.runs
        return {"wall_ns": walls, "work_ns": walls, "elapsed_ns": elapsed, "memory_bytes": 2000}


async def judged(
    host: ScriptedHost, gates: dict[str, Any], owner: dict[str, Any] | None = None, **more: Any
) -> tuple[Any, dict[str, CheckResult], Verdict]:
    config = Config.model_validate({"units": {UNIT: {"gate": owner or {}}}})
    bench = Bench(the_manifest(**{**GOLDEN, "gates": gates}), config=config, **more)
    object.__setattr__(bench.shared.ports, "host", host)
    happened = await bench.run()
    verdict = bench.verdict(happened)
    return happened, {check.check: check for stage in verdict.stages for check in stage.checks}, verdict


async def test_a_candidate_with_enough_throughput_passes_beside_the_incumbent() -> None:
    host = Timed(per_s=lambda concurrency, role, block: 120.0 if role == "candidate" else 80.0)
    happened, rows, _ = await judged(host, {"throughput_min": {"4": 100.0}})
    row = rows["throughput_4"]
    assert (happened.event, row.outcome, row.limit) == (Event.ACCEPT, "pass", 100.0)
    assert (round(float(row.measured or 0)), round(float(row.incumbent or 0))) == (120, 80)
    blocks = judge.LOOKS[0] + judge.WARM_UP_BLOCKS
    assert (host.asked.count((4, "candidate")), host.asked.count((4, "twin"))) == (blocks, blocks)


async def test_one_with_too_little_is_rejected_at_the_first_look() -> None:
    host = Timed(per_s=lambda concurrency, role, block: 50.0)
    happened, rows, verdict = await judged(host, {"throughput_min": {"4": 100.0, "2": 40.0}}, first=True)
    assert (happened.event, happened.reason) == (Event.REJECT, "too_few_per_second")
    assert (rows["throughput_2"].outcome, rows["throughput_4"].outcome) == ("pass", "fail")
    assert [stage.stage for stage in verdict.stages if stage.outcome == "fail"] == ["fast"]
    assert host.asked.count((4, "candidate")) == judge.LOOKS[0] + judge.WARM_UP_BLOCKS


class OneAtATime(ScriptedHost):
    """Seconds for each inference, however many are asked for at a time."""

    SECONDS = 4.0

    def _probe(self, order: Any, role: str) -> dict[str, Any]:
        del role
        elapsed_s = self.SECONDS * order.runs
        if elapsed_s > order.timeout_s:
            raise Refused(f"no answer within {order.timeout_s:g} s; killed", code="worker_hung")
        walls = [int(self.SECONDS * 1e9)] * order.runs
        return {"wall_ns": walls, "work_ns": walls, "elapsed_ns": int(elapsed_s * 1e9), "memory_bytes": 2000}


async def test_a_slow_model_is_given_the_time_that_so_many_at_once_take() -> None:
    happened, rows, _ = await judged(OneAtATime(), {"throughput_min": {"32": 0.2}})
    assert (happened.event, rows["throughput_32"].outcome) == (Event.ACCEPT, "pass"), happened.reason


async def test_what_cannot_be_told_takes_more_blocks_and_is_inconclusive() -> None:
    host = Timed(per_s=lambda concurrency, role, block: 110.0 if block % 9 in (1, 3, 5, 7) else 99.0)
    happened, rows, _ = await judged(host, {"throughput_min": {"4": 100.0}}, first=True)
    assert (happened.event, happened.reason) == (Event.INCONCLUSIVE, "too_noisy")
    assert rows["throughput_4"].detail["blocks"] == judge.LOOKS[-1]


async def test_the_owners_limit_wins_where_it_is_stricter_and_stands_beside_others() -> None:
    happened, rows, verdict = await judged(
        Timed(), {"throughput_min": {"4": 50.0}}, {"throughput_min": {"4": 200.0, "8": 10.0}}, first=True
    )
    assert verdict.limits["throughput_min"] == {"4": 200.0, "8": 10.0}
    assert (happened.event, rows["throughput_4"].outcome, rows["throughput_8"].outcome) == (
        Event.REJECT,
        "fail",
        "pass",
    )


async def test_a_host_that_cannot_tell_is_older() -> None:
    bench = Bench(the_manifest(**{**GOLDEN, "gates": {"throughput_min": {"4": 50.0}}}), first=True)
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "host_too_old")


async def test_without_golden_data_nothing_is_told_of_throughput() -> None:
    config = Config.model_validate({"units": {UNIT: {"gate": {"throughput_min": {"4": 50.0}}}}})
    bench = Bench(the_manifest(), first=True, config=config)
    rows = {check.check: check for stage in bench.verdict(await bench.run()).stages for check in stage.checks}
    assert (rows["throughput_4"].outcome, rows["throughput_4"].reason) == ("not_applicable", "no_golden")


async def test_a_start_is_measured_to_its_first_answer() -> None:
    host = Timed(start_s=[1.5], first_ns=250_000_000)
    happened, rows, _ = await judged(host, {"load_s_max": 2.0}, first=True)
    assert (happened.event, rows["load_time"].outcome, rows["load_time"].measured) == (Event.ACCEPT, "pass", 1.75)
    assert rows["load_time"].detail["starts"] == 1


async def test_a_slow_start_is_made_once_more_and_the_fresh_process_goes_on() -> None:
    host = Timed(start_s=[9.0, 1.0])
    happened, rows, _ = await judged(host, {"load_s_max": 2.0}, first=True)
    assert (happened.event, rows["load_time"].outcome) == (Event.ACCEPT, "pass")
    assert rows["load_time"].detail["seconds"] == [9.001, 1.001]
    own = [op for op, role in host.orders if role == "candidate"][:5]
    assert own == ["load", "probe", "retire", "load", "probe"]


async def test_two_slow_starts_are_a_rejection_before_anything_else_is_asked() -> None:
    host = Timed(start_s=[9.0, 8.0])
    happened, rows, verdict = await judged(host, {"load_s_max": 20.0}, {"load_s_max": 2.0}, first=True)
    assert (happened.event, happened.reason) == (Event.REJECT, "starts_too_slowly")
    assert (rows["load_time"].measured, rows["load_time"].limit) == (8.001, 2.0)
    assert [stage.outcome for stage in verdict.stages][1:] == ["fail"] + ["not_run"] * (len(STAGES) - 2)


@pytest.mark.parametrize("name", ["0", "33", "4.0", "four", ""])
def test_a_concurrency_is_a_small_number(name: str) -> None:
    with pytest.raises(Exception, match="throughput_min"):
        Config.model_validate({"units": {UNIT: {"gate": {"throughput_min": {name: 1.0}}}}})
