"""Where the incumbent's twin does not fit: the ratio to what was recorded of it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from interlock_agent.config import Config
from interlock_agent.core.gate import fast
from interlock_agent.core.gate import recorded as judge
from interlock_agent.core.states import Event
from interlock_shared import canonical, seals
from interlock_shared.documents import CheckResult, Verdict
from interlock_shared.errors import Refused
from interlock_shared.manifest import Manifest, Tensor
from tests.agent.material import UNIT, tensor, the_manifest
from tests.agent.test_gating import Bench
from tests.agent.test_throughput import Timed
from tests.bench.gate.traces import COMMITTED

MS = 1_000_000
OLD = the_manifest("1.0.0", golden=True)
FINGERPRINT = {"gpu": "none"}


def samples_of(wall: list[int], work: list[int] | None = None) -> dict[str, Any]:
    samples = {"candidate_wall_ns": wall, "candidate_work_ns": work or wall}
    return {"schema": "interlock.samples/1", "samples": samples}


def verdict_of(samples: dict[str, Any], peak: int = 1000, **more: Any) -> dict[str, Any]:
    check = {"check": "memory_peak", "measured": float(peak)}
    document = {
        "version": "1.0.0",
        "ended_at": "2023-11-01T00:00:00Z",
        "payload_sha256": OLD.payload_sha256(),
        "fingerprint": FINGERPRINT,
        "outcome": "accept",
        "stages": [{"stage": "small", "checks": [check]}],
        "environment": {"unit": {"providers": ["CPUExecutionProvider"], "threads": 1}},
        "samples_sha256": canonical.sha256(canonical.encode(samples)),
    }
    return document | more


# --- judged -----------------------------------------------------------------------------------------------------------


def known(ms: float = 1.0, noise: float = 0.0, count: int = 100) -> judge.Recorded:
    dice = random.Random(7)
    wall = [int(ms * MS * (1 + noise * (2 * dice.random() - 1))) for _ in range(count)]
    found = judge.read(verdict_of(samples_of(wall)), samples_of(wall))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("words", "work", "wall", "outcomes"),
    [
        ("as fast", 1.0, 1.0, ("pass", "pass")),
        ("beyond the limit of pairs, within the wider one", 1.5, 1.5, ("pass", "pass")),
        ("beyond the wider one in work", 1.6, 1.0, ("fail", "pass")),
        ("beyond the wider one on the wall", 1.0, 1.6, ("pass", "fail")),
    ],
)
def test_the_ratio_of_two_medians(words: str, work: float, wall: float, outcomes: tuple[str, str]) -> None:
    rows = judge.rows({"work": [work * MS] * 12, "wall": [wall * MS] * 12}, known(), 1.25)
    assert tuple(row.outcome for row in rows) == outcomes, words
    assert {row.limit for row in rows} == {1.25 * (1 + judge.MARGIN)}
    assert [row.detail["baseline"] for row in rows] == ["recorded"] * 2


def test_both_medians_have_their_noise() -> None:
    mine = [1.55 * MS] * 12
    assert judge.rows({"work": mine, "wall": mine}, known(), 1.25)[0].outcome == "pass"
    row = judge.rows({"work": mine, "wall": mine}, known(noise=0.2, count=20), 1.25)[0]
    assert row.outcome == "inconclusive"
    assert row.low is not None
    assert row.high is not None
    assert row.low < 1.25 * (1 + judge.MARGIN) < row.high
    assert judge.rows({"work": [9.0 * MS], "wall": [9.0 * MS]}, known(), 1.25)[0].reason == "too_noisy", "one block"


def test_work_passes_for_certain_and_the_wall_by_its_estimate() -> None:
    mine = [1.5 * MS, 1.62 * MS] * 6
    assert [row.outcome for row in judge.rows({"work": mine, "wall": mine}, known(), 1.25)] == ["inconclusive", "pass"]


def test_two_equal_models_are_told_apart_seldom() -> None:
    """With ten per cent of noise and no other difference, over many seeds: never a failure, and hardly a doubt."""
    outcomes = []
    for seed in range(200):
        dice = random.Random(seed)
        then = [int(MS * dice.lognormvariate(0, 0.1)) for _ in range(100)]
        now = [MS * dice.lognormvariate(0, 0.1) for _ in range(judge.LOOKS[0])]
        found = judge.read(verdict_of(samples_of(then)), samples_of(then))
        assert found is not None
        outcomes += [row.outcome for row in judge.rows({"work": now, "wall": now}, found, 1.25)]
    assert "fail" not in outcomes
    assert outcomes.count("pass") > 0.99 * len(outcomes)


@pytest.mark.parametrize("now", ["quiet", "steady", "toggling"])
@pytest.mark.parametrize("then", ["quiet", "steady", "toggling"])
def test_what_was_recorded_under_one_load_holds_under_another(then: str, now: str) -> None:
    """Recorded blocks of real models: with a limit of 1.25, what is as fast or 1.2 times slower passes; twice fails."""
    theirs, mine = (np.load(COMMITTED / f"{name}.npz") for name in (then, now))
    raw = {scale: theirs[f"same/incumbent_{scale}"].ravel()[:600] for scale in judge.SCALES}
    samples = {f"candidate_{scale}_ns": ns.tolist() for scale, ns in raw.items()}
    found = judge.read(verdict_of({}), {"samples": samples})
    assert found is not None
    for cell, outcome in (("same", "pass"), ("slower 1.2", "pass"), ("slower 2", "fail")):
        blocks = {scale: mine[f"{cell}/candidate_{scale}"][: judge.LOOKS[0]].mean(axis=1) for scale in judge.SCALES}
        rows = judge.rows({scale: list(means) for scale, means in blocks.items()}, found, 1.25)
        assert [row.outcome for row in rows] == [outcome] * 2, cell


def test_of_too_few_samples_nothing_is_known() -> None:
    assert judge.read(verdict_of(samples_of([MS] * 5)), samples_of([MS] * 5)) is None
    assert judge.read(verdict_of(samples_of([])), {"schema": "interlock.samples/1", "samples": {}}) is None


@pytest.mark.parametrize(
    ("free", "fits"),
    [
        ({"memory_free_bytes": 100, "gpu_memory_free_bytes": 50}, True),
        ({"memory_free_bytes": 99, "gpu_memory_free_bytes": 50}, False),
        ({"memory_free_bytes": 100, "gpu_memory_free_bytes": 49}, False),
        ({}, True),
    ],
)
def test_each_kind_of_memory_that_it_took_must_be_free(free: dict[str, int], fits: bool) -> None:
    took = [{"check": "memory_peak", "measured": 100.0}, {"check": "gpu_memory_peak", "measured": 50.0}]
    assert judge.fits({"stages": [{"stage": "small", "checks": took}]}, free) is fits


@pytest.mark.parametrize(
    ("shape", "same_items", "same"),
    [((-1, 4), False, True), ((1, -1), False, False), ((1, -1), True, True), ((), False, True)],
)
def test_work_is_the_same_on_the_same_items_or_on_items_of_one_shape(
    shape: tuple[int, ...], same_items: bool, same: bool
) -> None:
    inputs = [Tensor(name="x", dtype="FP32", shape=shape)]
    assert judge.same_work(inputs, same_items=same_items) is same


def test_items_are_the_same_by_the_segments_of_their_file() -> None:
    sealed = seals.seal(OLD, "0" * 64, "fp32", 1)
    assert judge.items_of(sealed) == tuple(segment.sha256 for segment in OLD.file("golden.npz").segments)
    assert judge.items_of(seals.seal(the_manifest("1.0.0"), "0" * 64, "fp32", 1)) == judge.items_of(None) == ()


# --- the gate ---------------------------------------------------------------------------------------------------------


def bench(
    baseline: str = "auto", *, ratio: float = 1.0, peak: int = 1000, manifest: Manifest | None = None, **recorded: Any
) -> Bench:
    """An incumbent whose verdict lies in its slot; `recorded` replaces fields of it."""
    made = Bench(manifest, config=Config.model_validate({"units": {UNIT: {"gate": {"baseline": baseline}}}}))
    made.host.ratio = lambda pair: ratio
    samples = samples_of([MS] * 100)
    made.disk.write(f"slots/{UNIT}/a/.interlock/samples.json", canonical.encode(samples))
    verdict = verdict_of(samples, peak) | recorded
    made.disk.write(f"slots/{UNIT}/a/.interlock/verdict.json", canonical.encode(verdict))
    return made


def too_large(made: Bench, op: str) -> None:
    made.host.fails[op, "twin"] = Refused("refused memory", code="out_of_memory")


async def judged(made: Bench) -> tuple[Any, Verdict, dict[str, CheckResult]]:
    happened = await made.run()
    verdict = made.verdict(happened)
    return happened, verdict, {check.check: check for stage in verdict.stages for check in stage.checks}


@pytest.mark.parametrize("op", ["load", "evaluate", "probe"])
async def test_a_twin_that_does_not_fit_is_done_without(op: str) -> None:
    made = bench()
    too_large(made, op)
    happened, verdict, rows = await judged(made)
    assert (happened.event, happened.reason) == (Event.ACCEPT, "ok")
    assert verdict.incumbent is not None
    assert verdict.incumbent.baseline == "recorded"
    assert rows["latency_ratio_work"].outcome == rows["latency_ratio_wall"].outcome == "pass"
    assert rows["latency_ratio_work"].detail["recorded_version"] == "1.0.0"
    assert (rows["self_test"].outcome, rows["self_test"].reason) == ("not_applicable", "no_twin")
    if op != "probe":
        assert (rows["accuracy_drop"].outcome, rows["accuracy_drop"].reason) == ("not_applicable", "no_twin")
    assert [one for one in made.host.orders if one == ("load", "twin")] == [("load", "twin")], "tried once"
    assert (("retire", "twin") in made.host.orders) == (op != "load")


@pytest.mark.parametrize(
    ("ratio", "event", "reason"),
    [(1.5, Event.ACCEPT, "ok"), (1.7, Event.REJECT, "too_slow")],
)
async def test_the_wider_limit_decides(ratio: float, event: Event, reason: str) -> None:
    made = bench("recorded", ratio=ratio)
    happened, _, rows = await judged(made)
    assert (happened.event, happened.reason) == (event, reason)
    assert rows["latency_ratio_work"].detail["blocks"] == judge.LOOKS[0]
    assert ("load", "twin") not in made.host.orders


async def test_one_that_is_known_to_need_more_than_is_free_is_not_tried() -> None:
    made = bench(peak=1 << 40)
    _, verdict, _ = await judged(made)
    assert verdict.incumbent is not None
    assert verdict.incumbent.baseline == "recorded"
    assert ("load", "twin") not in made.host.orders


async def test_one_that_fits_is_measured_beside() -> None:
    made = bench(peak=1 << 20)
    _, verdict, rows = await judged(made)
    assert verdict.incumbent is not None
    assert verdict.incumbent.baseline == "twin"
    assert "baseline" not in rows["latency_ratio_work"].detail


@pytest.mark.parametrize(
    "recorded",
    [
        {"fingerprint": {"gpu": "another"}},
        {"payload_sha256": "0" * 64},
        {"outcome": "reject"},
        {"samples_sha256": "0" * 64},
        {"environment": {"unit": {"providers": ["CPUExecutionProvider"], "threads": 4}}},
        {"environment": {}},
    ],
)
async def test_without_a_baseline_of_this_release_on_this_device_there_is_no_verdict(recorded: dict[str, Any]) -> None:
    made = bench("recorded", **recorded)
    happened, _, rows = await judged(made)
    assert (happened.event, happened.reason) == (Event.INCONCLUSIVE, "no_baseline")
    assert rows["latency_ratio"].outcome == "inconclusive"


async def test_on_other_items_of_any_size_there_is_no_baseline() -> None:
    sized: dict[str, Any] = {"signature": {"inputs": [tensor("x", [-1, -1])], "outputs": [tensor("y")]}}
    for content, reason in ((b"", "no_baseline"), (b"1.0.0", "ok")):  # the incumbent's golden data is that of 1.0.0
        made = bench("recorded", manifest=the_manifest("1.1.0", content, golden=True, **sized))
        made.host.loaded = {"inputs": [{"name": "x", "dtype": "FP32", "shape": ["N", "M"]}]}
        happened, _, rows = await judged(made)
        assert happened.reason == reason, rows


async def test_a_slower_candidate_has_its_absolute_limits_beside_a_missing_baseline() -> None:
    made = bench("recorded", outcome="reject")
    made.shared.config = Config.model_validate(
        {"units": {UNIT: {"gate": {"baseline": "recorded", "latency_ms": {"p95": 0.5}}}}}
    )
    happened, _, rows = await judged(made)
    assert (happened.event, happened.reason, rows["latency_p95"].outcome) == (Event.REJECT, "too_slow", "fail")


async def test_the_owner_may_insist_on_a_twin() -> None:
    made = bench("twin")
    too_large(made, "load")
    happened = await made.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "twin_failed")


async def test_a_newer_verdict_about_the_incumbent_is_taken_before_its_slots() -> None:
    made = bench("recorded", ratio=1.5)
    newer = samples_of([MS // 2] * 100)
    made.disk.make(f"verdicts/{UNIT}")
    made.disk.write(f"verdicts/{UNIT}/2.samples.json", canonical.encode(newer))
    made.disk.write(f"verdicts/{UNIT}/2.json", canonical.encode(verdict_of(newer, ended_at="2023-11-12T00:00:00Z")))
    happened, _, rows = await judged(made)
    assert (happened.event, rows["latency_ratio_work"].measured) == (Event.REJECT, 3.0)
    assert rows["latency_ratio_work"].detail["recorded_at"] == "2023-11-12T00:00:00Z"


async def test_what_is_accepted_is_a_baseline_itself() -> None:
    made = bench("recorded")
    first = await made.run()
    verdict = made.verdict(first)
    found = await made.slots.recorded(UNIT, "b", verdict.payload_sha256, FINGERPRINT)
    assert found is not None
    read = judge.read(*found)
    assert read is not None
    assert read.samples >= fast.ABSOLUTE_RUNS
    assert read.size == -(-read.samples // judge.BLOCKS_MAX)
    assert len(read.blocks["wall"]) <= judge.BLOCKS_MAX
    assert replace(read, blocks={}) == judge.Recorded("1.1.0", verdict.ended_at, read.samples, read.size, {})


async def test_throughput_is_asked_without_the_twin() -> None:
    made = bench()
    made.host = Timed(start_s=[0.1])
    object.__setattr__(made.shared.ports, "host", made.host)
    too_large(made, "load")
    made.shared.config = Config.model_validate({"units": {UNIT: {"gate": {"throughput_min": {"4": 50.0}}}}})
    happened, _, rows = await judged(made)
    assert (happened.event, rows["throughput_4"].outcome) == (Event.ACCEPT, "pass")
    assert rows["throughput_4"].incumbent is None
