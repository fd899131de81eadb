"""Is it right: golden outputs, labels, slices. The judgements as rows: figures in, an outcome out."""

from __future__ import annotations

import random
from typing import Any

import pytest

from interlock_agent.core.gate import metrics, right
from interlock_agent.core.gate.limits import OwnerLimits, effective_limits
from interlock_agent.core.gate.metrics import Score
from interlock_shared import manifest as manifests
from interlock_shared.documents import CheckResult
from interlock_shared.gates import Golden
from tests.agent.material import the_manifest

LIMITS: dict[str, Any] = {"accuracy_min": 0.8, "accuracy_drop_max": 0.05}
NA = "not_applicable"


def dice() -> random.Random:
    return random.Random("a seed")


def outcomes(checks: list[CheckResult]) -> dict[str, tuple[str, str]]:
    return {check.check: (check.outcome, check.reason) for check in checks}


def golden(**more: Any) -> Golden:
    return Golden(file="g.npz", inputs={"x": "x"}, expected={"y": "y"}, **more)


# --- golden outputs ---------------------------------------------------------------------------------------------------

PASS, MISMATCH = ("pass", "ok"), ("fail", "golden_mismatch")
CLOSE: dict[str, Any] = {"compared": True, "outside": 3, "cosine": 0.9991, "cosine_item": 7, "agreement": 0.98}


@pytest.mark.parametrize(
    ("parity", "output", "expected"),
    [
        ({}, {"compared": True, "outside": 0}, {"parity": PASS}),
        ({}, {"compared": True, "outside": 1}, {"parity": MISMATCH}),
        ({}, {"compared": False, "outside": 9}, {}),
        ({}, {"compared": False, "non_finite": 1}, {"finite": ("fail", "non_finite_output")}),
        (
            {},
            {"compared": True, "outside": 0, "non_finite": 2},
            {"finite": ("fail", "non_finite_output"), "parity": PASS},
        ),
        ({"cosine_min": 0.999}, CLOSE, {"parity_cosine": PASS}),
        ({"cosine_min": 0.9992}, CLOSE, {"parity_cosine": MISMATCH}),
        ({"cosine_min": -1.0}, {"compared": True, "outside": 0, "cosine": None}, {"parity_cosine": PASS}),
        ({"cosine_min": 0.0}, {"compared": True, "outside": 0}, {"parity_cosine": MISMATCH}),
        ({"agreement_min": 0.98, "top_k": 5}, CLOSE, {"parity_top_k": PASS}),
        ({"agreement_min": 0.99}, CLOSE, {"parity_top_k": MISMATCH}),
        ({"agreement_min": 0.1}, {"compared": True, "outside": 0}, {"parity_top_k": MISMATCH}),
        (
            {"rtol": 0.1, "cosine_min": 0.9, "agreement_min": 0.9},
            CLOSE,
            {"parity": MISMATCH, "parity_cosine": PASS, "parity_top_k": PASS},
        ),
    ],
)
def test_golden_outputs(parity: dict[str, Any], output: dict[str, Any], expected: dict[str, tuple[str, str]]) -> None:
    asked = golden(parity={"y": parity} if parity else {})
    assert outcomes(right.parity([{"name": "y", **output}], asked)) == expected


def test_a_row_of_parity_says_what_was_measured_and_where() -> None:
    rows = right.parity([{"name": "y", **CLOSE}], golden(parity={"y": {"cosine_min": 0.5, "agreement_min": 0.5}}))
    cosine, agreement = rows
    assert (cosine.limit, cosine.measured, cosine.detail) == (0.5, 0.9991, {"output": "y", "item": 7})
    assert (agreement.limit, agreement.measured, agreement.detail) == (0.5, 0.98, {"output": "y", "top_k": 1})


AGAIN = {"values": 8, "different": 0, "outside": 0, "max_abs": 0.0}


@pytest.mark.parametrize(
    ("again", "repeated", "expected"),
    [
        ({}, 2, ("pass", "ok")),
        ({"different": 3, "max_abs": 1e-7}, 2, ("pass", "ok")),
        ({"different": 3, "outside": 1, "max_abs": 0.5}, 2, ("fail", "not_deterministic")),
        ({"outside": 1}, 0, (NA, "not_repeated")),
    ],
)
def test_a_model_is_asked_twice(again: dict[str, Any], repeated: int, expected: tuple[str, str]) -> None:
    row = right.determinism([{"name": "y", "again": AGAIN | again}, {"name": "z", "again": AGAIN}], repeated)
    assert (row.outcome, row.reason) == expected
    if repeated:
        assert row.detail["values"] == 16
        assert row.detail["max_abs"] == again.get("max_abs", 0.0)
        assert row.detail["outputs"] == (["y"] if again.get("different") else [])


# --- labels -----------------------------------------------------------------------------------------------------------


def hits(rows: str) -> Score:
    return Score("top1", "higher", "hits", rows)


FEW = ("inconclusive", "too_few_items")
ACCURACY: list[tuple[str, str | None, dict[str, Any], tuple[str, str], tuple[str, str]]] = [
    ("1" * 8 + "0" * 2, None, LIMITS, PASS, (NA, "no_incumbent")),  # exactly the floor
    ("1" * 79 + "0" * 21, None, LIMITS, FEW, (NA, "no_incumbent")),  # below, by what chance does
    ("1" * 70 + "0" * 30, None, LIMITS, ("fail", "accuracy_below_floor"), (NA, "no_incumbent")),
    ("1" * 10, "1" * 10, LIMITS, PASS, PASS),
    ("1" * 95 + "0" * 5, "1" * 100, LIMITS, PASS, PASS),  # exactly the margin
    ("1" * 94 + "0" * 6, "1" * 100, LIMITS, PASS, ("fail", "accuracy_dropped")),  # p = 2^-6
    ("1" * 38 + "0" * 2, "1" * 40, {"accuracy_drop_max": 0.04}, (NA, "no_limit"), FEW),  # p = 2^-2
    ("1" * 60 + "0" * 40, "0" * 30 + "1" * 70, {"accuracy_drop_max": 0.05}, (NA, "no_limit"), FEW),  # 40 lost, 30 won
    ("1" * 100, "1" * 50 + "0" * 50, LIMITS, PASS, PASS),  # better than the incumbent
    ("1" * 10, "1" * 10, {"accuracy_drop_max": 0.0}, (NA, "no_limit"), PASS),
    ("1" * 10, "1" * 10, {"accuracy_min": 0.5}, PASS, (NA, "no_limit")),
    ("0" * 10, "1" * 10, {"gates": "none"}, (NA, "no_limit"), (NA, "no_limit")),
]


@pytest.mark.parametrize(("mine", "theirs", "limits", "floor", "drop"), ACCURACY)
def test_accuracy(
    mine: str, theirs: str | None, limits: dict[str, Any], floor: tuple[str, str], drop: tuple[str, str]
) -> None:
    rows = right.labelled(hits(mine), None if theirs is None else hits(theirs), limits, dice())
    assert outcomes(rows) == {"accuracy": floor, "accuracy_drop": drop}


def test_accuracy_carries_its_figures() -> None:
    row, drop = right.labelled(hits("1" * 90 + "0" * 10), hits("1" * 91 + "0" * 9), LIMITS, dice())
    assert (row.measured, row.incumbent, row.limit) == (0.9, 0.91, 0.8)
    assert (row.detail["metric"], row.detail["items"]) == ("top1", 100)
    assert row.low is not None
    assert row.high is not None
    assert 0.8 < row.low < 0.9 < row.high < 1
    assert drop.measured == pytest.approx(0.01)
    assert drop.low is not None
    assert drop.high is not None
    assert drop.low < 0.01 < drop.high
    assert drop.detail["p"] == 0.5  # one item of one that differs
    assert drop.detail["smallest_effect"] == 0.05  # five items of a hundred: 2^-5 is the first below 0.05


def mae(rows: list[float]) -> Score:
    return Score("mae", "lower", "mean", rows)


ERRORS: list[tuple[float, float | None, dict[str, Any], tuple[str, str], tuple[str, str]]] = [
    (1.0, None, {"error_max": 1.0}, PASS, (NA, "no_incumbent")),
    (1.5, None, {"error_max": 1.0}, ("fail", "error_above_limit"), (NA, "no_incumbent")),
    (1.2, 1.0, {"error_rise_max": 0.3}, (NA, "no_limit"), PASS),
    (1.2, 1.0, {"error_rise_max": 0.1}, (NA, "no_limit"), ("fail", "error_rose")),
    (1.04, 1.0, {}, (NA, "no_limit"), PASS),  # silent: a twentieth
    (1.06, 1.0, {}, (NA, "no_limit"), ("fail", "error_rose")),
    (9.0, 1.0, {"gates": "none"}, (NA, "no_limit"), (NA, "no_limit")),
    (0.5, 1.0, {"error_max": 1.0, "error_rise_max": 0.0}, PASS, PASS),
]


@pytest.mark.parametrize(("mine", "theirs", "limits", "ceiling", "rise"), ERRORS)
def test_errors(
    mine: float, theirs: float | None, limits: dict[str, Any], ceiling: tuple[str, str], rise: tuple[str, str]
) -> None:
    beside = None if theirs is None else mae([theirs] * 40)
    assert outcomes(right.labelled(mae([mine] * 40), beside, limits, dice())) == {"error": ceiling, "error_rise": rise}


def test_a_few_items_cannot_tell_however_far_they_are_off() -> None:
    (_, rise) = right.labelled(mae([5.0] * 4), mae([1.0] * 4), {"error_rise_max": 0.1}, dice())
    assert (rise.outcome, rise.reason) == FEW
    assert rise.detail["p"] == 0.5**4
    assert rise.detail["smallest_effect"] is None


def test_a_limit_in_the_other_words_is_refused_not_forgotten() -> None:
    rows = right.labelled(mae([1.0] * 9), None, {"accuracy_min": 0.9}, dice())
    assert ("error", "fail", "limit_not_comparable") in [(row.check, row.outcome, row.reason) for row in rows]
    rows = right.labelled(hits("1" * 9), None, {"error_max": 0.9}, dice())
    assert ("accuracy", "fail", "limit_not_comparable") in [(row.check, row.outcome, row.reason) for row in rows]


# --- slices -----------------------------------------------------------------------------------------------------------


def sliced(day: tuple[str, str], night: tuple[str, str], limits: dict[str, Any]) -> dict[str, tuple[str, str]]:
    mine, theirs = day[0] + night[0], day[1] + night[1]
    index = [0] * len(day[0]) + [1] * len(night[0])
    return outcomes(right.labelled(hits(mine), hits(theirs), limits, dice(), "", index, ["day", "night"]))


def test_a_better_average_does_not_hide_a_slice_that_got_worse() -> None:
    day, night = ("1" * 900, "1" * 800 + "0" * 100), ("1" * 70 + "0" * 30, "1" * 100)
    limits = {"accuracy_drop_max": 0.01, "slices": {"night": {"accuracy_drop_max": 0.05}}}
    assert sliced(day, night, limits) == {
        "accuracy": (NA, "no_limit"),
        "accuracy_drop": PASS,
        "accuracy.day": (NA, "no_limit"),
        "accuracy_drop.day": (NA, "no_limit"),
        "accuracy.night": (NA, "no_limit"),
        "accuracy_drop.night": ("fail", "accuracy_dropped"),
    }


@pytest.mark.parametrize(
    ("night", "drop"),
    [
        ("1" * 95 + "0" * 5, PASS),
        ("1" * 94 + "0" * 6, ("fail", "accuracy_dropped")),  # 2^-6 is below 0.05 ÷ 2
        ("1" * 3 + "0" * 2, FEW),  # 2^-2
        ("0" * 5, FEW),  # 2^-5 is below 0.05, but two slices are looked at
    ],
)
def test_each_slice_is_asked_at_its_share_of_the_level(night: str, drop: tuple[str, str]) -> None:
    limits = {"slices": {name: {"accuracy_drop_max": 0.05} for name in ("day", "night")}}
    assert sliced(("1" * 50, "1" * 50), (night, "1" * len(night)), limits)["accuracy_drop.night"] == drop


def test_a_slice_has_its_own_floor() -> None:
    limits = {"accuracy_min": 0.5, "slices": {"night": {"accuracy_min": 0.9}}}
    found = sliced(("1" * 50, "1" * 50), ("1" * 10 + "0" * 20, "1" * 10 + "0" * 20), limits)
    assert found["accuracy"] == PASS
    assert found["accuracy.night"] == ("fail", "accuracy_below_floor")


def test_slices_of_an_error() -> None:
    mine, theirs = mae([1.0] * 40 + [3.0] * 20), mae([2.0] * 60)
    limits = {"slices": {"night": {"error_max": 2.5, "error_rise_max": 0.5}}}
    found = outcomes(right.labelled(mine, theirs, limits, dice(), "", [0] * 40 + [1] * 20, ["day", "night"]))
    assert found["error_rise"] == PASS
    assert found["error.night"] == ("fail", "error_above_limit")
    assert found["error_rise.night"] == ("fail", "error_rose")
    assert found["error_rise.day"] == (NA, "no_limit")


SLICED: dict[str, Any] = {
    "file": "golden.npz",
    "inputs": {"x": "x"},
    "labels": "labels",
    "label_output": "y",
    "slices": "s",
    "slice_names": ["day", "night"],
}


@pytest.mark.parametrize(
    ("gates", "owner", "day", "night"),
    [
        ({}, {}, None, None),
        ({"slice_drop_max": 0.1}, {}, 0.1, 0.1),
        ({"slice_drop_max": 0.1, "slices": {"night": {"accuracy_drop_max": 0.3}}}, {}, 0.1, 0.3),
        ({"slice_drop_max": 0.1, "slices": {"night": {"accuracy_drop_max": 0.3}}}, {"slice_drop_max": 0.2}, 0.1, 0.2),
        ({}, {"slice_drop_max": 0.2}, 0.2, 0.2),
    ],
)
def test_limits_of_slices(gates: dict[str, Any], owner: dict[str, Any], day: float | None, night: float | None) -> None:
    document = the_manifest(golden=True).model_dump(mode="json", by_alias=True)
    manifest = manifests.from_document(document | {"golden": SLICED, "gates": gates})
    limits = effective_limits(manifest, OwnerLimits(**owner))
    assert {name: one["accuracy_drop_max"] for name, one in limits["slices"].items()} == {"day": day, "night": night}


# --- plug-ins ---------------------------------------------------------------------------------------------------------


def test_a_plug_in_needs_the_owner() -> None:
    assert right.allowed("top1", ()) is None
    assert right.allowed("ours", ("ours",)) is None
    refused = right.allowed("ours", ("theirs",))
    assert refused is not None
    assert (refused.outcome, refused.reason) == ("fail", "metric_not_allowed")
    assert "ours" in refused.detail["problems"][0]


@pytest.mark.parametrize(("metric", "outcome"), [("mae", "fail"), ("ours", "inconclusive")])
def test_trouble_with_a_plug_in_is_not_the_candidates_fault(metric: str, outcome: str) -> None:
    row = right.trouble("accuracy", metric, {"problem": "metric_failed", "message": "it broke"})
    assert (row.outcome, row.reason, row.detail["problems"]) == (outcome, "metric_failed", ["it broke"])


def test_a_score_that_is_none_is_not_believed() -> None:
    for strange in ({"kind": "sum"}, {"better": "sideways"}, {"rows": ""}):
        with pytest.raises(ValueError, match="no such score"):
            metrics.score_of({"metric": "top1", "better": "higher", "kind": "hits", "rows": "1", **strange})
