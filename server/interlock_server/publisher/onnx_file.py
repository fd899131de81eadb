"""What an ONNX file says of itself: inputs, outputs, external data; and what must not be in a bundle.

Weights are left out before the parser sees the file: a protobuf is walked on a memory map, and only the graph is
copied. So memory stays flat, and a model of two gibibytes is as quick to look at as a small one. Wire format:
https://protobuf.dev/programming-guides/encoding/, fields: onnx/onnx.proto.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from interlock_shared.errors import Incompatible, Invalid
from interlock_shared.limits import MIB
from interlock_shared.manifest import Dtype

DTYPES = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64", "INT8": "INT8",
    "INT16": "INT16", "INT32": "INT32", "INT64": "INT64", "FLOAT16": "FP16", "FLOAT": "FP32", "DOUBLE": "FP64",
    "BFLOAT16": "BF16", "STRING": "BYTES",
}  # fmt: skip
OIP_DTYPES = tuple(name for part in get_args(Dtype) for name in get_args(part))

# Operators that the runtime brings along. Anything else needs a library of its own, and a bundle brings no code.
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

GRAPH_MAX_BYTES = 256 * MIB  # of a graph without its weights; the largest real ones have a few MiB
NESTING_MAX = 64  # subgraphs in subgraphs
SMALL_TENSOR = 1024  # bytes: shapes and axes that the graph keeps as constants

# Message → field → message. A field that is not named is copied as it is.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_INSIDE: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE},
    _TENSOR: {},
}
_TENSOR_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})


@dataclass(frozen=True)
class TensorInfo:
    """One input or output. `shape` None: the file does not even say how many axes there are."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class OnnxFile:
    """Inputs and outputs in the file's order, and names of files that hold its weights."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    external: tuple[str, ...]


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number runs over its end")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field number, wire type, start of the tag, start and end of the content)."""
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == 0:
            _, stop = _varint(data, at, end)
        elif wire == 1:
            stop = at + 8
        elif wire == 5:
            stop = at + 4
        elif wire == 2:
            length, at = _varint(data, at, end)
            stop = at + length
        else:
            raise ValueError(f"wire type {wire}")
        if stop > end or tag >> 3 == 0:
            raise ValueError("a field runs over its end")
        yield tag >> 3, wire, start, at, stop
        at = stop


def _without_weights(data: Any, at: int, end: int, kind: int, depth: int = 0) -> bytes:
    if depth > NESTING_MAX:
        raise ValueError("nested too deep")
    out = bytearray()
    for number, wire, start, begin, stop in _fields(data, at, end):
        inner = _INSIDE[kind].get(number) if wire == 2 else None
        if inner is not None:
            content = _without_weights(data, begin, stop, inner, depth + 1)
            out += _encoded(number << 3 | 2) + _encoded(len(content)) + content
        elif kind != _TENSOR or number not in _TENSOR_DATA or stop - begin <= SMALL_TENSOR:
            out += data[start:stop]
        if len(out) > GRAPH_MAX_BYTES:
            raise ValueError(f"the graph alone has more than {GRAPH_MAX_BYTES} bytes")
    return bytes(out)


def graph_bytes(path: Path) -> bytes:
    """The model's protobuf without weights. Raises ValueError, OSError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _without_weights(data, 0, len(data), _MODEL)


def read(path: Path, *, compiled_context: bool = False, custom_ops: Collection[str] = ()) -> OnnxFile:
    """Look at a model; what is declared of it is not refused. Raises Invalid (`not_onnx`), Incompatible
    (`compiled_context`, `custom_operator`, …)."""
    import onnx  # here: the help of a command must not wait for it

    try:
        model = onnx.load_model_from_string(graph_bytes(path))
    except OSError as bad:
        raise Invalid(f"{path.name}: {bad.strerror}", code="unreadable_file", field=path.name) from None
    except Exception as bad:  # noqa: BLE001 - protobuf's own errors are of the extension in use
        raise Invalid(f"{path.name}: not an ONNX model: {bad}", code="not_onnx", field=path.name) from None
    if not model.graph.output:
        raise Invalid(f"{path.name}: not an ONNX model: it has no outputs", code="not_onnx", field=path.name)
    external: list[str] = []
    own = {function.domain for function in model.functions} | set(custom_ops)
    for part in (model.graph, *model.functions):
        _check_nodes(path.name, part, own, external, compiled_context)
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not inputs:
        raise Invalid(f"{path.name}: it has no inputs", code="not_onnx", field=path.name)
    return OnnxFile(
        tuple(_tensor(path.name, value) for value in inputs),
        tuple(_tensor(path.name, value) for value in model.graph.output),
        tuple(dict.fromkeys(external)),
    )


def _tensor(file: str, value: Any) -> TensorInfo:
    import onnx

    if value.type.WhichOneof("value") != "tensor_type":
        raise Incompatible(f"{file}: {value.name} is no tensor", code="unsupported_type", field=value.name)
    tensor = value.type.tensor_type
    values = onnx.TensorProto.DataType
    name = values.Name(tensor.elem_type) if tensor.elem_type in values.values() else str(tensor.elem_type)
    if name not in DTYPES:
        raise Incompatible(
            f"{file}: {value.name} has type {name}, which the protocol has no word for",
            code="unsupported_type",
            field=value.name,
        )
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)
    return TensorInfo(value.name, DTYPES[name], shape)


def _check_nodes(file: str, graph: Any, own: set[str], external: list[str], compiled: bool) -> None:
    """Every node of a graph or function and below; names of external data go to `external`."""
    tensors = [*getattr(graph, "initializer", ())]
    for one in getattr(graph, "sparse_initializer", ()):
        tensors += [one.values, one.indices]
    for node in graph.node:
        if node.op_type == "EPContext" and not compiled:
            raise Incompatible(
                f"{file}: node {node.name or node.op_type!r} is a compiled context (EPContext): engines are made on "
                "the device, bundle the original model",
                code="compiled_context",
            )
        if node.domain not in DOMAINS | own:
            raise Incompatible(
                f"{file}: operator {node.domain}.{node.op_type} needs a library of its own: a bundle brings no code",
                code="custom_operator",
                domain=node.domain,
            )
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors, attribute.sparse_tensor.values]
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _check_nodes(file, inner, own, external, compiled)
    for tensor in tensors:
        if tensor.data_location == tensor.EXTERNAL:
            external += [entry.value for entry in tensor.external_data if entry.key == "location"] or [""]
