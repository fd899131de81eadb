"""Other models made of one: a note in it, NaN at times, eight bits, the same work twice."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def with_note(source: Path, target: Path, note: str) -> None:
    """The same model with a note in its metadata: other bytes, the same answers."""
    model = onnx.load(str(source))
    entry = model.metadata_props.add()
    entry.key, entry.value = "note", note
    onnx.save(model, str(target))


def treacherous(source: Path, target: Path, first_byte: int) -> None:
    """The same model, which answers NaN when the first feature is `first_byte`: what a bad normalisation does."""
    model = onnx.load(str(source))
    graph = model.graph
    output, source_input = graph.output[0].name, graph.input[0].name
    _rename(graph, output, "il_honest")
    _constants(
        graph,
        il_first=np.array([0], dtype=np.int64),
        il_magic=np.array(first_byte, dtype=np.int32),
        il_nan=np.array(np.nan, dtype=np.float32),
    )
    graph.node.extend(
        [
            helper.make_node("Gather", [source_input, "il_first"], ["il_column"], axis=1),  # int32[N,1]
            helper.make_node("Equal", ["il_column", "il_magic"], ["il_is"]),
            helper.make_node("Where", ["il_is", "il_nan", "il_honest"], [output]),
        ]
    )
    onnx.save(model, str(target))


def quantised(source: Path, target: Path) -> None:
    """The same model with weights of eight bits, and activations that become such while it runs: a release engineer's
    first idea for a faster one. Unsigned weights, which ONNX Runtime has kernels for on every CPU."""
    from onnxruntime import quantization

    logging.disable(logging.WARNING)  # it recommends to optimise first; ONNX Runtime does so when it loads
    try:
        quantization.quantize_dynamic(str(source), str(target), weight_type=quantization.QuantType.QUInt8)
    finally:
        logging.disable(logging.NOTSET)


def twofold(source: Path, target: Path) -> None:
    """The same answers for twice the work: two copies of the model, and the mean of what both say. The second copy
    reads the input plus nothing, a nothing that is only known when it runs, so that no optimiser finds them alike."""
    model = onnx.load(str(source))
    graph = model.graph
    given, output = graph.input[0].name, graph.output[0].name
    own = {"": "", given: "il_same"}
    copies = []
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}/again"
        copy.input[:] = [own.get(name, f"{name}/again") for name in node.input]
        copy.output[:] = [own.get(name, f"{name}/again") for name in node.output]
        copies.append(copy)
    weights = [numpy_helper.from_array(numpy_helper.to_array(one), f"{one.name}/again") for one in graph.initializer]
    _rename(graph, output, "il_once")
    _constants(graph, il_zero=np.array(0, dtype=np.int32), il_half=np.array(0.5, dtype=np.float32))
    graph.initializer.extend(weights)
    nothing = [
        helper.make_node("Mul", [given, "il_zero"], ["il_nothing"]),
        helper.make_node("Add", [given, "il_nothing"], ["il_same"]),
    ]
    mean = [
        helper.make_node("Add", ["il_once", f"{output}/again"], ["il_sum"]),
        helper.make_node("Mul", ["il_sum", "il_half"], [output]),
    ]
    graph.node.extend([*nothing, *copies, *mean])
    onnx.save(model, str(target))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _constants(graph: onnx.GraphProto, **values: np.ndarray) -> None:
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
