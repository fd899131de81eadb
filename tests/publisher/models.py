"""Small ONNX models and the folders around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOML = """\
model = "detector"
version = "1.4.0"

[[variants]]
name = "fp32"
file = "model.onnx"

[golden]
file = "golden.npz"
expected = { y = "y" }
labels = "labels"
label_output = "y"

[gates]
accuracy_min = 0.5
"""


def value(name: str, shape: list[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def graph_model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any], **more: Any) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def weights(seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)


def linear(seed: int = 1, shape: list[Any] | None = None) -> Any:
    """y[N,3] = x[N,4] · w"""
    return graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", shape or ["N", 4])],
        [value("y", ["N", 3])],
        [numpy_helper.from_array(weights(seed), "w")],
    )


def golden(path: Path, count: int = 8, **replace: Any) -> None:
    x = np.random.default_rng(2).normal(size=(count, 4)).astype(np.float32)
    y = x @ weights()
    arrays = {"x": x, "y": y, "labels": y.argmax(-1)} | replace
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def folder(path: Path, model: Any = None, toml: str = TOML) -> Path:
    path.mkdir(parents=True)
    onnx.save(model or linear(), str(path / "model.onnx"))
    golden(path / "golden.npz")
    (path / "bundle.toml").write_text(toml)
    return path
