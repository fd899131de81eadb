"""Tiny models and sealed folders, for every test that needs something to serve.

The model: y = x * scale, with x and y FP32 of shape [-1, 4]. Options make it answer NaN when the first element of an
item is a given number, take long, or have another shape.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 4
SEGMENT = 64 * 1024  # small, so that even a tiny file may have several


def make_model(
    path: Path,
    scale: float,
    nan_on: float | None = None,
    width: int = WIDTH,
    slow: int = 0,
    dtype: str = "FP32",
    hang_on: float | None = None,
) -> None:
    """Write an ONNX file. `nan_on`: the answer is NaN for items that begin with it. `hang_on`: never ends for an
    input that holds it. `slow`: products of two 192 x 192 matrices on the way (about 0.2 ms each)."""
    kind = {"FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "FP16": TensorProto.FLOAT16}[dtype]
    number = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16}[dtype]
    nodes = [helper.make_node("Mul", ["x", "k"], ["scaled"])]
    constants = [_constant("k", np.array(scale, number))]
    last = "scaled"
    if nan_on is not None:
        constants += [
            _constant("magic", np.array(nan_on, number)),
            _constant("nan", np.array(np.nan, number)),
            _constant("zero", np.array([0], np.int64)),
            _constant("one", np.array([1], np.int64)),
            _constant("axis", np.array([1], np.int64)),
        ]
        nodes += [
            helper.make_node("Slice", ["x", "zero", "one", "axis"], ["head"]),
            helper.make_node("Equal", ["head", "magic"], ["bad"]),
            helper.make_node("Where", ["bad", "nan", last], ["spoilt"]),
        ]
        last = "spoilt"
    if slow or hang_on is not None:
        constants += [_constant("turns", np.array(slow, np.int64)), _constant("nothing", np.array(0, number))]
        turns = "turns"
        if hang_on is not None:
            turns = "all"
            constants += [_constant("poison", np.array(hang_on, number)), _constant("ever", np.array(2**60, np.int64))]
            nodes += [
                helper.make_node("Equal", ["x", "poison"], ["poisoned"]),
                helper.make_node("Where", ["poisoned", "ever", "turns"], ["each"]),
                helper.make_node("ReduceMax", ["each"], ["all"], keepdims=0),
            ]
        constants.append(_constant("matrix", np.full((192, 192), 1 / 192, number)))
        nodes += [
            helper.make_node("Loop", [turns, "", "matrix"], ["spent"], body=_turn(kind)),
            helper.make_node("ReduceMean", ["spent"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["void"]),
            helper.make_node("Add", [last, "void"], ["after"]),
        ]
        last = "after"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    x = helper.make_tensor_value_info("x", kind, ["N", width])
    y = helper.make_tensor_value_info("y", kind, ["N", width])
    graph = helper.make_graph(nodes, "tiny", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def _turn(kind: int) -> onnx.GraphProto:
    """The body of the loop: one product of matrices."""
    inputs = [
        helper.make_tensor_value_info("turn", TensorProto.INT64, []),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("m", kind, [192, 192]),
    ]
    outputs = [
        helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("product", kind, [192, 192]),
    ]
    nodes = [
        helper.make_node("Identity", ["go_on"], ["going_on"]),
        helper.make_node("MatMul", ["m", "matrix"], ["product"]),
    ]
    return helper.make_graph(nodes, "turn", inputs, outputs)


def _constant(name: str, value: Any) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(value, name)


def seal(folder: Path, model: str, version: str, generation: int, width: int = WIDTH, **more: Any) -> dict[str, Any]:
    """Write `.interlock/seal.json` for the files that are in `folder`; `more` replaces fields."""
    files = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        data = path.read_bytes()
        parts = [data[start : start + SEGMENT] for start in range(0, len(data), SEGMENT)] or [b""]
        segments = [{"sha256": hashlib.sha256(part).hexdigest(), "size": len(part)} for part in parts]
        files.append({"name": path.name, "size": len(data), "segments": segments})
    digest = hashlib.sha256(json.dumps([model, version, files]).encode()).hexdigest()
    shape = [-1, width]
    document = {
        "schema": "interlock.seal/1",
        "model": model,
        "version": version,
        "manifest_sha256": digest,
        "payload_sha256": digest,
        "variant": "fp32",
        "generation": generation,
        "serve": {
            "runtime": "onnxruntime",
            "file": "model.onnx",
            "inputs": [{"name": "x", "dtype": "FP32", "shape": shape}],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": shape, "non_finite": "refused"}],
            "labels": None,
            "sanity": more.pop("sanity", {}),
        },
        "golden": None,
        "files": files,
    }
    document.update(more)
    (folder / ".interlock").mkdir(exist_ok=True)
    (folder / ".interlock" / "seal.json").write_text(json.dumps(document))
    return document


def golden(folder: Path, scale: float, items: int = 40, wrong: int = 0) -> dict[str, Any]:
    """Write `golden.npz`; the seal's entry. The label is the largest element; the first `wrong` labels are false."""
    x = np.random.default_rng(7).normal(size=(items, WIDTH)).astype(np.float32)
    y = x * np.float32(scale)
    labels = y.argmax(axis=-1)
    labels[:wrong] = (labels[:wrong] + 1) % WIDTH
    np.savez(folder / "golden.npz", x=x, y=y, labels=labels)
    return {
        "file": "golden.npz",
        "inputs": {"x": "x"},
        "expected": {"y": "y"},
        "labels": "labels",
        "label_output": "y",
        "rtol": 1e-3,
        "atol": 1e-4,
        "batch": 16,
    }


def make_slot(
    folder: Path,
    model: str,
    version: str,
    generation: int,
    scale: float = 1.0,
    nan_on: float | None = None,
    with_golden: bool = True,
    slow: int = 0,
    hang_on: float | None = None,
    width: int = WIDTH,
    **more: Any,
) -> Path:
    """A sealed folder with a tiny model, as the agent leaves it; `more` replaces fields of the seal."""
    folder.mkdir(parents=True)
    make_model(folder / "model.onnx", scale, nan_on, width, slow=slow, hang_on=hang_on)
    if with_golden and width == WIDTH:
        more.setdefault("golden", golden(folder, scale))
    seal(folder, model, version, generation, width, **more)
    return folder
