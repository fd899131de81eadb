"""What a worker tells of golden data: closeness, a second look, rows of metrics, slices; on tiny models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from interlock_agent.host.worker import golden as worker_golden
from interlock_agent.host.worker import metrics, parity
from interlock_agent.host.worker.backends.onnxruntime import Session
from interlock_agent.host.worker.errors import LoadError
from interlock_agent.host.worker.folder import Folder
from interlock_agent.host.worker.golden import Golden
from tests.host import models

X = np.array([[1, 2, 3, 4], [4, 3, 2, 1], [0, 5, 1, 2], [2, 1, 0, 9]], np.float32)


def golden(
    folder: Path,
    arrays: dict[str, Any],
    allowed: tuple[str, ...] = (),
    scale: float = 1.0,
    answers: str = "",
    **entry: Any,
) -> Any:
    """The evaluation of y = x * scale on those arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.onnx").exists():
        models.make_model(folder / "model.onnx", scale)
    np.savez(folder / "golden.npz", **{"x": X, **arrays})
    described = {"file": "golden.npz", "inputs": {"x": "x"}, "rtol": 1e-3, "atol": 1e-4, "batch": 3, **entry}
    models.seal(folder, "tiny", "1.0.0", 1, golden=described)
    return Golden(Folder(str(folder)), Session(str(folder / "model.onnx"), {}), allowed).evaluate(answers)


def labelled(folder: Path, labels: Any, metric: str, **more: Any) -> dict[str, Any]:
    entry = {"labels": "labels", "label_output": "y", "metric": metric, **more.pop("entry", {})}
    return dict(golden(folder, {"labels": np.asarray(labels)}, **entry, **more)["score"])


# --- closeness --------------------------------------------------------------------------------------------------------


def test_cosine_and_agreement_of_the_worst(tmp_path: Path) -> None:
    expected = X.copy()
    expected[2] = [0, 1, 5, 2]  # another first, and far off by angle
    rule = {"y": {"cosine_min": 0.9, "top_k": 2, "agreement_min": 0.9, "rtol": None, "atol": None}}
    (output,) = golden(tmp_path, {"e": expected}, expected={"y": "e"}, parity=rule)["outputs"]
    assert (output["compared"], output["outside"], output["cosine_item"]) == (True, 2, 2)
    assert output["cosine"] == pytest.approx((5 + 5 + 4) / 30)
    assert output["agreement"] == 0.75  # the two best are 1 and 3, expected are 2 and 3


def test_a_rule_of_an_output_replaces_the_tolerance(tmp_path: Path) -> None:
    for atol, outside in ((0.05, 16), (0.2, 0)):
        rule = {"y": {"atol": atol, "rtol": None}}
        (output,) = golden(tmp_path, {"e": X + np.float32(0.1)}, expected={"y": "e"}, parity=rule)["outputs"]
        assert output["outside"] == outside
        assert output["agreement"] is None


@pytest.mark.parametrize(
    ("got", "want", "cosine"),
    [
        ([1, 0], [2, 0], 1.0),
        ([1, 0], [0, 1], 0.0),
        ([1, 1], [-1, -1], -1.0),
        ([3, 4], [4, 3], 24 / 25),
        ([0, 0], [0, 0], 1.0),
        ([0, 0], [1, 0], 0.0),
        ([np.nan, 1], [1, 1], -1.0),
        ([np.nan, 1], [np.nan, 1], 1.0),
        ([np.inf, 1], [np.inf, 2], 1.0),
        ([1e300, 1e300], [1e-300, 1e-300], 1.0),  # squares would not fit
    ],
)
def test_cosines(got: list[float], want: list[float], cosine: float) -> None:
    assert parity.cosines(np.array([got]), np.array([want]))[0] == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("got", "want", "top_k", "agrees"),
    [
        ([3, 2, 1], [30, 20, 10], 1, True),
        ([3, 2, 1], [20, 30, 10], 1, False),
        ([3, 2, 1], [20, 30, 10], 2, True),  # in any order
        ([3, 2, 1], [20, 10, 30], 2, False),
        ([3, 2, 1], [10, 30, 30], 1, False),
        ([1, 2, 3], [10, 30, 30], 1, True),  # expected ones tie
        ([1, 2, 3], [3, 2, 1], 9, True),  # all of them
        ([[3, 1], [1, 3]], [[3, 1], [3, 1]], 1, False),  # each row
    ],
)
def test_agreements(got: Any, want: Any, top_k: int, agrees: bool) -> None:
    assert bool(parity.agreements(np.array([got]), np.array([want]), top_k)[0]) is agrees


# --- against what the reference answered ------------------------------------------------------------------------------


def compared(folder: Path, arrays: dict[str, Any], **entry: Any) -> tuple[bool, int]:
    (output,) = golden(folder, arrays, answers="compare", **entry)["outputs"]
    return output["compared"], output["outside"]


def test_another_form_is_compared_with_what_the_reference_answered(tmp_path: Path) -> None:
    (kept,) = golden(tmp_path, {}, answers="keep")["outputs"]
    assert not kept["compared"]
    assert compared(tmp_path, {}) == (True, 0)
    models.make_model(tmp_path / "model.onnx", 2.0)
    assert compared(tmp_path, {}) == (True, int(np.count_nonzero(X)))
    assert compared(tmp_path, {"e": 2 * X}, expected={"y": "e"}) == (True, 0), "what is expected goes before it"


def test_of_large_answers_the_first_items_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_golden, "ANSWERS_MAX_BYTES", 16)
    golden(tmp_path, {}, answers="keep")
    models.make_model(tmp_path / "model.onnx", 2.0)
    assert compared(tmp_path, {}) == (True, int(np.count_nonzero(X[:3]))), "those of the first batch"


def test_without_the_references_answers_nothing_is_compared(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="reference's answers") as failed:
        compared(tmp_path, {})
    assert failed.value.code == "corrupt"


def test_of_a_model_on_another_device_the_wall_is_both_scales(tmp_path: Path) -> None:
    golden(tmp_path, {})
    one = Golden(Folder(str(tmp_path)), Session(str(tmp_path / "model.onnx"), {}))
    one.on_cpu = False
    found = one.probe(0, 5)
    assert found["work_ns"] == found["wall_ns"]


def test_another_shape_is_far_off() -> None:
    assert parity.cosines(np.zeros((2, 3)), np.zeros((2, 4))).tolist() == [-1.0, -1.0]
    assert not parity.agreements(np.zeros((2, 3)), np.zeros((2, 4)), 1).any()


# --- a second look ----------------------------------------------------------------------------------------------------


def test_a_model_that_answers_alike_is_told_so(tmp_path: Path) -> None:
    found = golden(tmp_path, {"e": X}, expected={"y": "e"})
    assert found["repeated"] == 4
    assert found["outputs"][0]["again"] == {"values": 16, "different": 0, "outside": 0, "max_abs": 0.0}


@pytest.mark.parametrize(("spread", "far"), [(1.0, True), (1e-6, False)])
def test_a_model_that_rolls_dice_is_found_out(tmp_path: Path, spread: float, far: bool) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], scale=spread),
        helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "dice", value[:1], value[1:])
    tmp_path.mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    again = golden(tmp_path, {"labels": [0, 1, 2, 3]}, labels="labels", label_output="y")["outputs"][0]["again"]
    assert again["different"] > 8
    assert (again["outside"] > 0) is far
    assert (again["max_abs"] > 0.01) is far


def test_only_the_first_items_are_run_twice(tmp_path: Path) -> None:
    x = np.ones((100, 4), np.float32)
    assert golden(tmp_path, {"x": x, "e": x}, expected={"y": "e"}, batch=30)["repeated"] == 60


def test_a_model_without_an_item_axis_takes_items_one_by_one(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "bare", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    found = golden(tmp_path, {"e": X, "l": X.argmax(-1)}, expected={"y": "e"}, labels="l", label_output="y")
    assert (found["outputs"][0]["outside"], found["outputs"][0]["cosine"]) == (0, pytest.approx(1.0))
    assert found["score"]["rows"] == "1111"


def test_a_number_beside_items_is_given_as_it_is(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    k = helper.make_tensor_value_info("k", TensorProto.FLOAT, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "k"], ["y"])], "number", [x, k], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    times = np.array([1, 2, 3, 4], np.float32)
    arrays = {"k": times, "e": X * times[:, None]}
    (output,) = golden(tmp_path, arrays, inputs={"x": "x", "k": "k"}, expected={"y": "e"})["outputs"]
    assert (output["compared"], output["outside"]) == (True, 0)


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "labels", "kind", "rows"),
    [
        ("top1", [3, 0, 0, 3], "hits", "1101"),
        ("topk", [2, 2, 3, 1], "hits", "1010"),
        ("f1", [3, 0, 0, 3], "f1", [[3, 3], [0, 0], [0, 1], [3, 3]]),
        ("mae", X + np.array([[1.0], [2.0], [0.0], [0.5]]), "mean", [1.0, 2.0, 0.0, 0.5]),
        ("rmse", X + np.array([[1.0], [2.0], [0.0], [0.5]]), "root_mean", [1.0, 4.0, 0.0, 0.25]),
    ],
)
def test_rows_of_a_model(tmp_path: Path, metric: str, labels: Any, kind: str, rows: Any) -> None:
    score = labelled(tmp_path, labels, metric, entry={"top_k": 2})
    better = "lower" if metric in ("mae", "rmse") else "higher"
    assert score == {"metric": metric, "better": better, "kind": kind, "rows": rows}


OPTIONS = metrics.Options(top_k=5, detections=100)


@pytest.mark.parametrize(
    ("labels", "answers", "rows"),
    [
        (["a b c", "a"], [["a c"], ["b a"]], [[1, 3], [1, 1]]),
        ([b"x y"], [[b"y x"]], [[2, 2]]),
        ([[1, 2, 3, -1]], [[1, 3, -1, -1]], [[1, 3]]),
        ([""], [["a b"]], [[2, 0]]),
    ],
)
def test_wrong_words(labels: Any, answers: Any, rows: Any) -> None:
    assert metrics.wer(np.array(answers), np.array(labels), OPTIONS) == rows


def test_detections_by_hand() -> None:
    """Truths: two of class 0, one of class 1. Found: a hit, a second box on the same truth, one that overlaps by a
    third, the right place under the wrong class; rows that fill up."""
    truths = [[0, 0, 0, 10, 10], [0, 20, 20, 30, 30], [1, 50, 50, 60, 60], [-1, 0, 0, 0, 0]]
    found = [
        [1, 0, 10, 10, 0.8, 0],  # 90 of 100: a hit, after the surer one below took this truth, a miss
        [0, 0, 10, 10, 0.9, 0],
        [25, 20, 35, 30, 0.7, 0],  # 50 of 150
        [50, 50, 60, 60, 0.6, 0],
        [50, 50, 60, 55, 0.5, 1],  # exactly half
        [0, 0, 0, 0, 0.0, 0],
        [0, 0, 9, 9, 0.3, -1],
    ]
    (row,) = metrics.detections(np.array([found]), np.array([truths]), OPTIONS)
    assert row == [[0, 2, [0.9, 0.8, 0.7, 0.6], "1000"], [1, 1, [0.5], "1"]]
    (row,) = metrics.detections(np.array([found]), np.array([truths]), metrics.Options(5, 2))
    assert row == [[0, 2, [0.9, 0.8], "10"], [1, 1, [], ""]]


def test_a_class_may_be_the_answer_itself() -> None:
    assert metrics.top1(np.array([[2], [0]], np.int64), np.array([2, 1]), OPTIONS) == "10"


def test_labels_of_another_form_are_a_problem_not_a_crash(tmp_path: Path) -> None:
    score = labelled(tmp_path, np.zeros((4, 3)), "mae")
    assert score["problem"] == "metric_failed"
    assert "4 numbers an item, its label 3" in score["message"]


def test_an_error_that_is_not_finite_is_a_problem(tmp_path: Path) -> None:
    assert labelled(tmp_path, np.full((4, 4), np.nan), "mae")["problem"] == "metric_failed"


# --- plug-ins ---------------------------------------------------------------------------------------------------------

PLUG_IN = """\
import numpy
def far(answers, labels):
    return numpy.abs(answers - labels).max(axis=1)
far.better = "lower"
def broken(answers, labels):
    raise RuntimeError("it broke")
def short(answers, labels):
    return [1.0]
def sideways(answers, labels):
    return [1.0] * len(labels)
sideways.better = "sideways"
"""


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with metrics, as pip would leave it."""
    site = tmp_path / "site"
    info = site / "owners_metrics-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "owners_metrics.py").write_text(PLUG_IN)
    names = ("far", "broken", "short", "sideways")
    lines = [f"{name} = owners_metrics:{name}" for name in names] + ["gone = no_such_module:x"]
    (info / "entry_points.txt").write_text(f"[{metrics.GROUP}]\n" + "\n".join(lines) + "\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: owners-metrics\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "owners_metrics", raising=False)


@pytest.mark.usefixtures("plug_ins")
def test_a_plug_in_of_the_owner(tmp_path: Path) -> None:
    labels = X + np.array([[0.0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]], np.float32)
    score = labelled(tmp_path / "m", labels, "far", allowed=("far",))
    assert score == {"metric": "far", "better": "lower", "kind": "mean", "rows": [1.0, 2.0, 0.0, 3.0]}


@pytest.mark.usefixtures("plug_ins")
@pytest.mark.parametrize(
    ("name", "allowed", "problem"),
    [
        ("far", (), "metric_not_allowed"),
        ("far", ("other",), "metric_not_allowed"),
        ("unknown", ("unknown",), "metric_missing"),
        ("gone", ("gone",), "metric_missing"),
        ("sideways", ("sideways",), "metric_missing"),
        ("broken", ("broken",), "metric_failed"),
        ("short", ("short",), "metric_failed"),
    ],
)
def test_a_plug_in_that_cannot_be_used(tmp_path: Path, name: str, allowed: tuple[str, ...], problem: str) -> None:
    assert labelled(tmp_path / "m", X, name, allowed=allowed)["problem"] == problem
    assert ("owners_metrics" in sys.modules) is (name in allowed and name not in ("unknown", "gone"))


# --- slices -----------------------------------------------------------------------------------------------------------

SLICES: dict[str, Any] = {"labels": "l", "label_output": "y", "slices": "s", "slice_names": ["day", "night"]}


@pytest.mark.parametrize(
    "array", [[0, 1, 1, 0], ["day", "night", "night", "day"], [b"day", b"night", b"night", b"day"]]
)
def test_slices_by_number_and_by_name(tmp_path: Path, array: list[Any]) -> None:
    assert golden(tmp_path, {"l": [0] * 4, "s": array}, **SLICES)["slices"] == [0, 1, 1, 0]


@pytest.mark.parametrize("array", [[0, 1, 2, 0], [0, -1, 0, 0], ["day", "dusk", "day", "day"], [0.5] * 4, [0, 1]])
def test_slices_that_do_not_fit(tmp_path: Path, array: list[Any]) -> None:
    with pytest.raises(LoadError, match=r"slice|items|not in list"):
        golden(tmp_path, {"l": [0] * 4, "s": array}, **SLICES)


def test_without_labels_there_is_no_score(tmp_path: Path) -> None:
    found = golden(tmp_path, {"e": X}, expected={"y": "e"})
    assert (found["score"], found["slices"], found["items"]) == ({}, [], 4)
