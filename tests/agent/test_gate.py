"""The gate's judgements, as rows: figures in, an outcome out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_agent.core.gate import checks as judge
from interlock_agent.core.gate import fast
from interlock_agent.core.gate.limits import OwnerLimits, effective_limits, limits_digest
from interlock_shared.documents import CheckResult
from interlock_shared.gates import Gates
from tests.agent.material import the_manifest

NA = "not_applicable"
RATIOS: list[tuple[str, list[float], list[float], str, tuple[str, str]]] = [
    ("clearly as fast", [1.0] * 20, [1.0] * 20, "pass", ("pass", "pass")),
    ("at the limit", [1.25] * 20, [1.25] * 20, "pass", ("pass", "pass")),
    ("slower by work", [1.5] * 20, [1.0] * 20, "fail", ("fail", "pass")),
    ("slower by wall", [1.0] * 20, [1.5] * 20, "fail", ("pass", "fail")),
    ("slower by both", [1.5] * 20, [1.5] * 20, "fail", ("fail", "fail")),
    ("work spread", [1.0] * 10 + [1.5] * 10, [1.0] * 20, "", ("inconclusive", "pass")),
    ("wall spread, work fine", [1.0] * 20, [1.0] * 11 + [1.5] * 9, "pass", ("pass", "pass")),
    ("wall more above than below", [1.0] * 20, [1.0] * 9 + [1.5] * 11, "", ("pass", "inconclusive")),
    ("too few", [9.0] * 3, [9.0] * 3, "", ("inconclusive", "inconclusive")),
    ("none", [], [], "", ("inconclusive", "inconclusive")),
]


@pytest.mark.parametrize(("words", "work", "wall", "decided", "rows"), RATIOS, ids=[row[0] for row in RATIOS])
def test_the_ratio(words: str, work: list[float], wall: list[float], decided: str, rows: tuple[str, str]) -> None:
    del words
    ratio = fast.look(work, wall, 1.25)
    assert (ratio.decided, ratio.pairs) == (decided, len(work))
    if not work:
        return
    one, two = fast.ratio_result(ratio, 1.25)
    assert (one.check, two.check) == ("latency_ratio_work", "latency_ratio_wall")
    assert (one.outcome, two.outcome) == rows
    reasons = {"pass": "ok", "fail": "too_slow", "inconclusive": "too_noisy"}
    assert (one.reason, two.reason) == tuple(reasons[outcome] for outcome in rows)


def test_too_few_pairs_have_no_interval() -> None:
    row = fast.ratio_result(fast.look([2.0] * 3, [2.0] * 3, 1.25), 1.25)[0]
    assert (row.low, row.high, row.detail["smallest_effect"]) == (None, None, None)


def test_looking_often_does_not_use_up_more_than_the_budget() -> None:
    confidence = fast.look([1.0] * 20, [1.0] * 20, 1.25).work.confidence
    assert (1 - confidence) * (len(fast.LOOKS) + 1) == pytest.approx(fast.ERROR_BUDGET)  # one more at the end


MS = 1_000_000
LATENCY: list[tuple[str, list[int], float | None, str]] = [
    ("no limit", [5 * MS] * 100, None, "not_applicable"),
    ("within", [5 * MS] * 100, 6.0, "pass"),
    ("at the limit", [5 * MS] * 100, 5.0, "pass"),
    ("above", [5 * MS] * 100, 4.0, "fail"),
    ("a few outliers are no p95", [5 * MS] * 97 + [90 * MS] * 3, 6.0, "pass"),
    ("the estimate is above and the interval reaches below", [5 * MS] * 94 + [9 * MS] * 6, 6.0, "inconclusive"),
    ("a tenth is above", [5 * MS] * 80 + [9 * MS] * 20, 6.0, "fail"),
]


@pytest.mark.parametrize(("words", "samples", "limit", "outcome"), LATENCY, ids=[row[0] for row in LATENCY])
def test_p95(words: str, samples: list[int], limit: float | None, outcome: str) -> None:
    del words
    p50, p95, p99 = fast.latency(samples, {} if limit is None else {"p95": limit}, [4 * MS] * 10)
    assert (p50.check, p50.outcome) == ("latency_p50", "not_applicable")
    assert (p95.check, p95.outcome) == ("latency_p95", outcome)
    assert (p99.check, p99.outcome) == ("latency_p99", "not_applicable")
    assert p50.measured == pytest.approx(5.0)
    assert p95.incumbent == pytest.approx(4.0)
    assert p95.detail == {"samples": 100}


def test_any_quantile_may_have_a_limit() -> None:
    rows = fast.latency(list(range(MS, 1001 * MS, MS)), {"p99.9": 900.0, "p50": 600.0, "p5": 1.0})
    assert [(row.check, row.outcome) for row in rows] == [
        ("latency_p5", "fail"),
        ("latency_p50", "pass"),
        ("latency_p95", "not_applicable"),
        ("latency_p99", "not_applicable"),
        ("latency_p99.9", "fail"),
    ]


# --- the self-test and the warm-up ------------------------------------------------------------------------------------

QUIET = [0.98, 1.01, 1.0, 0.99, 1.02, 1.0, 1.01, 0.99]
SELF_TESTS: list[tuple[str, list[float], list[float], str]] = [
    ("quiet", QUIET, QUIET, ""),
    ("the second is always slower", [1.2] * 8, QUIET, "biased"),
    ("the second is always faster, on the wall", QUIET, [0.7] * 8, "biased"),
    ("a little slower is none of the limit's business", [1.02] * 8, QUIET, ""),
    ("no two are alike", [0.1, 8.0, 0.2, 6.0, 1.0, 9.0, 0.1, 5.0], QUIET, "too_noisy"),
    ("noise on the wall alone costs pairs, no verdict", QUIET, [0.1, 8.0, 0.2, 6.0, 1.0, 9.0, 0.1, 5.0], ""),
    ("no time", QUIET[:5], QUIET[:5], "no_time"),
    ("no time at all", [], [], "no_time"),
]


@pytest.mark.parametrize(("words", "work", "wall", "trouble"), SELF_TESTS, ids=[row[0] for row in SELF_TESTS])
def test_the_incumbent_against_itself(words: str, work: list[float], wall: list[float], trouble: str) -> None:
    del words
    test = fast.self_test(work, wall, 1.10)
    row = fast.self_test_result(test)
    assert (test.trouble, row.outcome) == (trouble, "inconclusive" if trouble else "pass")
    assert row.detail["pairs"] == len(work)


def test_more_noise_needs_more_pairs_and_so_does_a_stricter_limit() -> None:
    noisy = [ratio**12 for ratio in QUIET]
    rows = ((QUIET, 1.1), (noisy, 1.1), (noisy, 1.05))
    needed = [fast.self_test(pairs, QUIET, limit).pairs_needed for pairs, limit in rows]
    assert fast.LOOKS[0] == needed[0] < needed[1] < needed[2]


@pytest.mark.parametrize(
    ("medians", "done"),
    [
        ([9.0, 5.0, 3.0], False),
        ([9.0, 5.0, 3.0, 2.0, 1.9, 1.8], False),  # still falling
        ([2.0, 1.9, 1.8, 1.8, 1.8, 1.8], True),
        ([2.0, 1.9, 1.8, 7.0, 9.0, 1.8], True),  # load is no warming up
        ([float(2 * fast.WARM_UP_BLOCKS_MAX - n) for n in range(fast.WARM_UP_BLOCKS_MAX)], True),  # bounded
    ],
)
def test_warm_up_ends_when_it_is_over(medians: list[float], done: bool) -> None:
    assert fast.warmed_up(medians) is done


@pytest.mark.parametrize(("run_ms", "runs"), [(0.01, 25), (1, 25), (3, 10), (30, 1), (5000, 1)])
def test_a_block_lasts_a_few_slices_of_the_scheduler(run_ms: float, runs: int) -> None:
    assert fast.block_runs(run_ms * MS) == runs


def test_pairs_are_looked_at_at_fixed_numbers_and_once_more_at_the_end() -> None:
    sequential = fast.Sequential(1.1)
    looked = [n for n in range(1, fast.LOOKS[-1] + 50) if sequential.add(1.1 + 0.5 * (n % 2), 1.0) is not None]
    assert tuple(looked) == fast.LOOKS
    assert sequential.ended
    assert sequential.last().pairs == fast.LOOKS[-1] + 49


def one(outcome: Any) -> CheckResult:
    return CheckResult(check="c", outcome=outcome, reason=str(outcome))


@pytest.mark.parametrize(
    ("checks", "outcome"),
    [
        ([], "pass"),
        (["pass"], "pass"),
        (["pass", "not_applicable"], "pass"),
        (["not_applicable"], "not_applicable"),
        (["not_applicable", "not_run"], "not_applicable"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
    ],
)
def test_a_stage_is_its_worst_check(checks: list[str], outcome: str) -> None:
    assert judge.stage("fast", 0.1, [one(check) for check in checks]).outcome == outcome


@pytest.mark.parametrize(
    ("stages", "concluded"),
    [
        ([["pass"], ["not_applicable"]], ("accept", "ok")),
        ([["inconclusive"], ["pass"]], ("inconclusive", "inconclusive")),
        ([["inconclusive"], ["fail"]], ("reject", "fail")),
        ([["fail", "inconclusive"], []], ("reject", "fail")),
        ([], ("accept", "ok")),
    ],
)
def test_the_verdict_is_the_first_failure(stages: list[list[str]], concluded: tuple[str, str]) -> None:
    made = [judge.stage("fast", 0.0, [one(check) for check in checks]) for checks in stages]
    assert judge.conclude(made)[:2] == concluded


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (judge.simple("contract", ["a", "b", "c", "d"], "contract_broken"), "right: contract: a; b; c"),
        (
            CheckResult(check="p95", outcome="fail", unit="ms", measured=5.0, low=4.0, high=6.0, limit=3.0, reason="r"),
            "right: p95 5 ms [4, 6], limit 3 (r)",
        ),
        (CheckResult(check="x", outcome="fail", limit="two", reason="r"), "right: x, limit two (r)"),
        (CheckResult(check="x", outcome="fail", reason="r"), "right: x (r)"),
    ],
)
def test_a_verdict_says_why_in_one_sentence(check: CheckResult, text: str) -> None:
    assert judge.explain("right", check) == text


def test_a_list_of_problems_is_kept_short() -> None:
    assert len(judge.simple("c", [str(n) for n in range(99)], "r").detail["problems"]) == 20
    assert judge.simple("c", [], "r").outcome == "pass"


# --- limits: the stricter of both ---------------------------------------------------------------------------------

SMALLER = (
    "accuracy_drop_max",
    "latency_ratio_max",
    "memory_max_bytes",
    "memory_leak_max_bytes_per_1000",
    "energy_max_j",
)
QUANTILES = st.dictionaries(st.sampled_from(["p50", "p95", "p99.9"]), st.floats(0.1, 100))


@given(
    publisher=st.fixed_dictionaries(
        {},
        optional={
            "accuracy_min": st.floats(0, 1),
            "accuracy_drop_max": st.floats(0, 1),
            "latency_ms": QUANTILES,
            "latency_ratio_max": st.floats(0.1, 10),
            "memory_max_bytes": st.integers(1, 2**40),
            "memory_leak_max_bytes_per_1000": st.integers(1, 2**30),
            "energy_max_j": st.floats(0.001, 100),
        },
    ),
    owner=st.fixed_dictionaries(
        {},
        optional={
            "accuracy_min": st.floats(0, 1),
            "accuracy_drop_max": st.floats(0, 1),
            "latency_ms": QUANTILES,
            "latency_ratio_max": st.floats(0.1, 10),
            "memory_max_bytes": st.integers(1, 2**40),
            "memory_leak_max_bytes_per_1000": st.integers(1, 2**30),
            "energy_max_j": st.floats(0.001, 100),
        },
    ),
)
def test_the_stricter_of_publisher_and_owner_wins(publisher: dict[str, Any], owner: dict[str, Any]) -> None:
    manifest = the_manifest(gates=publisher)
    assert isinstance(manifest.gates, Gates)
    limits = effective_limits(manifest, OwnerLimits(**owner))
    assert limits["parity"] is True
    for name in ("accuracy_min", *SMALLER):
        both = [value for value in (getattr(manifest.gates, name), owner.get(name)) if value is not None]
        wanted = None if not both else min(both) if name in SMALLER else max(both)
        assert limits[name] == wanted, name
    for quantile in ("p50", "p95", "p99.9"):
        asked = [of[quantile] for of in (manifest.gates.latency_ms, owner.get("latency_ms", {})) if quantile in of]
        assert limits["latency_ms"].get(quantile) == (min(asked) if asked else None)


def test_a_silent_manifest_has_the_defaults() -> None:
    limits = effective_limits(the_manifest(), OwnerLimits())
    assert limits["accuracy_drop_max"] == 0.01
    assert limits["latency_ratio_max"] == 1.25
    assert limits["accuracy_min"] is None


def test_gates_none_needs_the_owner() -> None:
    manifest = the_manifest(gates="none")
    assert effective_limits(manifest, OwnerLimits(allow_none=True)) == {"gates": "none", "parity": True}
    assert effective_limits(manifest, OwnerLimits())["latency_ratio_max"] == 1.25
    ours = effective_limits(the_manifest(), OwnerLimits(accuracy_min=0.9, allow_none=True))
    assert ours["accuracy_min"] == 0.9


def test_other_limits_have_another_digest() -> None:
    digests = {
        limits_digest(effective_limits(the_manifest(), OwnerLimits(accuracy_min=floor))) for floor in (None, 0.5, 0.6)
    }
    assert len(digests) == 3
