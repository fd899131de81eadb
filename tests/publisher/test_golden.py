"""Golden data at build time: labels are what the metric takes, slices have names and items, limits are about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from interlock_server.publisher import build, bundle_toml, golden
from interlock_shared.errors import Invalid
from tests.publisher import models

HEAD = 'model = "detector"\nversion = "1.4.0"\n[[variants]]\nname = "fp32"\nfile = "model.onnx"\n'
GOLDEN = '[golden]\nfile = "golden.npz"\nlabels = "labels"\nlabel_output = "y"\n'
EXPECTED = '[golden]\nfile = "golden.npz"\nexpected = { y = "y" }\n'


def built(folder: Path, text: str, **arrays: Any) -> build.Built:
    models.golden(folder / "golden.npz", **arrays)
    (folder / "bundle.toml").write_text(HEAD + text)
    return build.build(bundle_toml.load(folder))


NAMES = np.array(["day", "night"] * 4)


@pytest.mark.parametrize(
    ("text", "arrays"),
    [
        (GOLDEN + 'metric = "f1"\n', {}),
        (GOLDEN + 'metric = "topk"\ntop_k = 2\n', {}),
        (GOLDEN + 'metric = "mae"\n[gates]\nerror_max = 1\nerror_rise_max = 0.5\n', {"labels": np.zeros((8, 3))}),
        (GOLDEN + 'metric = "ours"\n[gates]\naccuracy_min = 0.5\n', {"labels": np.array(["any"] * 8)}),
        (EXPECTED + "[golden.parity.y]\ncosine_min = 0.999\ntop_k = 2\nagreement_min = 0.98\n", {}),
        (GOLDEN + 'slices = "s"\nslice_names = ["day", "night"]\n', {"s": np.array([0, 1] * 4)}),
        (GOLDEN + 'slices = "s"\n[gates.slices.night]\naccuracy_min = 0.5\n', {"s": NAMES}),
        (GOLDEN + 'slices = "s"\n[gates.slices.run]\naccuracy_min = 0.5\n', {"s": np.array(["run"] * 8)}),  # a name
    ],
)
def test_what_fits_is_built(folder: Path, text: str, arrays: dict[str, Any]) -> None:
    assert built(folder, text, **arrays).manifest.golden is not None


def test_names_of_slices_are_taken_from_the_array(folder: Path) -> None:
    made = built(folder, GOLDEN + 'slices = "s"\n', s=NAMES).manifest
    assert made.golden is not None
    assert made.golden.slice_names == ("day", "night")


@pytest.mark.parametrize(
    ("text", "arrays", "field", "words"),
    [
        (GOLDEN + 'metric = "mae"\n', {}, "golden.labels", "a label has shape"),
        (GOLDEN + 'metric = "mae"\n', {"labels": np.array(["a"] * 8)}, "golden.labels", "about numbers"),
        (GOLDEN + 'metric = "wer"\n', {"labels": np.array(["a b"] * 8)}, "golden.labels", "y is FP32"),
        (GOLDEN + 'metric = "map"\n', {"labels": np.zeros((8, 2, 4))}, "golden.labels", "class, x1, y1, x2, y2"),
        (GOLDEN + 'metric = "map"\n', {"labels": np.zeros((8, 2, 5))}, "golden.label_output", "6 numbers a box"),
        (GOLDEN + 'metric = "topk"\ntop_k = 3\n', {}, "golden.top_k", "the best 3 of 3"),
        (GOLDEN + 'metric = "f1"\n', {"labels": np.array([3] * 8)}, "golden.labels", "the model has 3 classes"),
        (GOLDEN + 'metric = "No"\n', {}, "golden.metric", "pattern"),
        (EXPECTED + 'metric = "mae"\n', {}, "golden", "there are none"),
        (EXPECTED + "[golden.parity.z]\nrtol = 0.1\n", {}, "golden.parity.z", "no output 'z'"),
        (GOLDEN + "[golden.parity.y]\ncosine_min = 0.1\n", {}, "golden", "nothing is expected"),
        (EXPECTED + "[golden.parity.y]\n", {}, "golden.parity.y", "name rtol"),
        (EXPECTED + "[golden.parity.y]\nrtol = 1\ntop_k = 2\n", {}, "golden.parity.y", "top_k needs agreement_min"),
        (EXPECTED + "[golden.parity.y]\nagreement_min = 1\ntop_k = 3\n", {}, "golden.parity.y.top_k", "all of them"),
        (GOLDEN + 'slices = "s"\n', {}, "golden.slices", "there is no array 's'"),
        (GOLDEN + 'slices = "s"\n', {"s": np.array([0, 1] * 4)}, "golden.slices", "needs slice_names"),
        (GOLDEN + 'slices = "s"\n', {"s": NAMES[:4]}, "golden", "differ in their number of items"),
        (
            GOLDEN + 'slices = "s"\nslice_names = ["day"]\n',
            {"s": NAMES},
            "golden.slices",
            "'night' is not among slice_names",
        ),
        (GOLDEN + 'slices = "s"\nslice_names = ["day"]\n', {"s": np.array([0, 1] * 4)}, "golden.slices", "from 0 to 1"),
        (
            GOLDEN + 'slices = "s"\nslice_names = ["day", "night", "dusk"]\n',
            {"s": NAMES},
            "golden.slice_names",
            "no item is in 'dusk'",
        ),
        (
            GOLDEN + 'slices = "s"\n[gates.slices.dusk]\naccuracy_min = 0.5\n',
            {"s": NAMES},
            "gates",
            "no such slice: dusk",
        ),
        (GOLDEN + "[gates]\nerror_max = 1\n", {}, "gates", "error_max is not about top1"),
        (
            GOLDEN + 'metric = "rmse"\n[gates]\naccuracy_min = 0.5\n',
            {"labels": np.zeros((8, 3))},
            "gates",
            "accuracy_min is not about rmse",
        ),
    ],
)
def test_what_a_device_would_stumble_over_is_said_here(
    folder: Path, text: str, arrays: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(Invalid) as refused:
        built(folder, text, **arrays)
    assert words in refused.value.message
    assert refused.value.details["field"] == field
    assert refused.value.details["line"] >= 1


@pytest.mark.parametrize(
    ("rule", "spoil", "agrees"),
    [
        ("rtol = 0.01", 1.001, True),
        ("rtol = 0.01", 1.1, False),
        ("cosine_min = 0.9999", 1.1, True),
        ("cosine_min = 0.9999", -1.0, False),
        ("agreement_min = 1.0\ntop_k = 2", 1.1, True),
        ("agreement_min = 1.0\ntop_k = 2", -1.0, False),
        ("agreement_min = 0.0", -1.0, True),
    ],
)
def test_the_reference_is_held_to_what_is_asked_of_it(folder: Path, rule: str, spoil: float, agrees: bool) -> None:
    models.golden(folder / "golden.npz")
    with np.load(folder / "golden.npz") as arrays:
        y = arrays["y"] * np.float32(spoil)
    made = built(folder, EXPECTED + f"[golden.parity.y]\n{rule}\n", y=y)
    assert made.manifest.golden is not None
    if agrees:
        assert set(golden.compare(made.source, made.manifest.golden, "model.onnx")) == {"expected y"}
    else:
        with pytest.raises(Invalid, match="agree as asked"):
            golden.compare(made.source, made.manifest.golden, "model.onnx")


def test_a_number_beside_items_is_given_as_it_is(folder: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y"))
    k = helper.make_tensor_value_info("k", TensorProto.FLOAT, [])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "k"], ["y"])], "number", [x, k], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    rows, times = np.ones((4, 3), np.float32), np.array([1, 2, 3, 4], np.float32)
    np.savez(folder / "golden.npz", x=rows, k=times, y=rows * times[:, None])
    (folder / "bundle.toml").write_text(HEAD + EXPECTED)
    made = build.build(bundle_toml.load(folder))
    assert made.manifest.golden is not None
    assert golden.compare(made.source, made.manifest.golden, "model.onnx") == {"expected y": 1.0}
