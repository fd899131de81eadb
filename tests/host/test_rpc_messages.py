"""gRPC's messages by an own small codec: whatever a foreign client writes is read as it was meant, and back."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from interlock_agent.host import protobuf
from interlock_agent.host.worker import inference, rpc
from interlock_agent.host.worker.errors import BadRequest

NAME, VERSION = "filetype", "1.0.0"
# dtype -> field of InferTensorContents, numpy's type
TYPES: dict[str, tuple[str, Any]] = {
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int8),
    "INT16": ("int_contents", np.int16),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint8),
    "UINT16": ("uint_contents", np.uint16),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "FP16": ("", np.float16),
    "BF16": ("", np.uint16),
}


class Echo:
    """Gives each input back."""

    def __init__(self, dtypes: dict[str, str]) -> None:
        self.inputs = [{"name": name, "dtype": dtype, "shape": [-1]} for name, dtype in dtypes.items()]
        self.outputs = self.inputs

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        return [feeds[name] for name in names]


def ask(dtypes: dict[str, str], body: bytes) -> Any:
    """A ModelInferResponse. Raises BadRequest."""
    model = inference.Model(NAME, VERSION, Echo(dtypes), frozenset(dtypes))
    answer = rpc.infer(model, bytearray(body), inference.Asker())
    return pb.ModelInferResponse.FromString(b"".join(map(bytes, answer.body)))


def refused(dtypes: dict[str, str], body: bytes) -> tuple[int, str]:
    with pytest.raises(BadRequest) as failure:
        ask(dtypes, body)
    return failure.value.status, failure.value.code


def request(**tensors: Any) -> Any:
    """`tensors`: name -> (dtype, values); typed where the dtype has such contents."""
    message = pb.ModelInferRequest(model_name=NAME)
    for name, (dtype, values) in tensors.items():
        tensor = message.inputs.add(name=name, datatype=dtype, shape=[len(values)])
        getattr(tensor.contents, "bytes_contents" if dtype == "BYTES" else TYPES[dtype][0]).extend(values)
    return message


texts = st.text(max_size=20)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, Any]:
    dtype = draw(st.sampled_from([*TYPES, "BYTES"]))
    if dtype == "BYTES":
        return dtype, draw(st.lists(texts, max_size=6))
    kind = np.dtype(TYPES[dtype][1])
    if kind.kind == "f":
        elements: Any = st.floats(width=8 * kind.itemsize)
    elif kind.kind == "b":
        elements = st.booleans()
    else:
        elements = st.integers(int(np.iinfo(kind).min), int(np.iinfo(kind).max))
    return dtype, np.array(draw(st.lists(elements, max_size=8)), kind)


def raw(dtype: str, values: Any) -> bytes:
    if dtype != "BYTES":
        return bytes(values.tobytes())
    return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in values)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays(), min_size=1, max_size=4), st.booleans(), texts, texts)
def test_what_a_foreign_client_writes_is_what_is_computed(
    tensors: dict[str, tuple[str, Any]], typed: bool, identity: str, extra: str
) -> None:
    message = pb.ModelInferRequest(model_name=NAME, model_version=VERSION, id=identity)
    message.parameters["any"].string_param = extra
    message.parameters["more"].double_param = 0.5
    typed = typed and all(dtype == "BYTES" or TYPES[dtype][0] for dtype, _ in tensors.values())
    for name, (dtype, values) in tensors.items():
        tensor = message.inputs.add(name=name, datatype=dtype, shape=[len(values)])
        tensor.parameters["x"].int64_param = -1
        message.outputs.add(name=name).parameters["y"].bool_param = True
        if not typed:
            message.raw_input_contents.append(raw(dtype, values))
        elif dtype == "BYTES":
            tensor.contents.bytes_contents.extend(text.encode() for text in values)
        else:
            getattr(tensor.contents, TYPES[dtype][0]).extend(values.tolist())
    answer = ask({name: dtype for name, (dtype, _) in tensors.items()}, message.SerializeToString())
    assert (answer.model_name, answer.model_version, answer.id) == (NAME, VERSION, identity)
    assert [output.name for output in answer.outputs] == list(tensors)
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        dtype, values = tensors[output.name]
        assert (output.datatype, list(output.shape)) == (dtype, [len(values)])
        if typed and dtype in ("FP32", "FP64"):  # of NaN there are many
            assert np.array_equal(np.frombuffer(data, values.dtype), values, equal_nan=True)
        else:
            assert data == raw(dtype, values)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 20))
def test_no_bytes_are_too_strange_for_a_refusal(noise: bytes, place: int, cut: int) -> None:
    good = request(x=("FP32", [1.0, 2.0]), n=("INT64", [1, -1])).SerializeToString()
    place = place % len(good)
    for body in (noise, good[:place] + noise + good[place + cut :], good[:place]):
        with contextlib.suppress(BadRequest):
            ask({"x": "FP32", "n": "INT64"}, body)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_numbers_are_written_and_read(values: list[int]) -> None:
    packed = b"".join(map(protobuf.varint, values))
    assert list(protobuf.numbers(protobuf.LENGTH, 0, memoryview(packed))) == values
    assert rpc._varints(packed).tolist() == values
    assert [protobuf.signed(value) for value in values] == np.array(values, np.uint64).astype(np.int64).tolist()


def test_what_is_not_packed_is_read_too() -> None:
    element = protobuf.varint(2 << 3 | protobuf.VARINT)
    contents = element + b"\x05" + element + protobuf.varint(-3)
    shape = protobuf.varint(3 << 3 | protobuf.VARINT) + b"\x02"
    tensor = protobuf.of_text(1, "x") + protobuf.of_text(2, "INT16") + shape + protobuf.of_bytes(5, contents)
    body = protobuf.of_text(1, NAME) + protobuf.of_bytes(5, tensor)
    assert pb.ModelInferRequest.FromString(body).inputs[0].contents.int_contents == [5, -3]
    assert ask({"x": "INT16"}, body).raw_output_contents == [np.array([5, -3], np.int16).tobytes()]


def changed(message: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def raw_too(*pieces: bytes, typed: bool = False) -> Any:
    message = request(x=("FP32", [1.0] if typed else []))
    message.inputs[0].shape[:] = [1]
    message.raw_input_contents.extend(pieces)
    return message


def with_shape(*shape: int) -> Any:
    message = request(x=("FP32", [1.0]))
    message.inputs[0].shape[:] = shape
    return message


REFUSED = {
    "another model": (changed(request(x=("FP32", [1])), model_name="other"), (404, "unknown_model")),
    "another version": (changed(request(x=("FP32", [1])), model_version="9"), (404, "unknown_version")),
    "no input": (request(), (400, "missing_input")),
    "twice": (
        pb.ModelInferRequest(model_name=NAME, inputs=2 * list(request(x=("FP32", [1])).inputs)),
        (400, "duplicate_input"),
    ),
    "unknown input": (request(x=("FP32", [1]), y=("FP32", [1])), (400, "unknown_input")),
    "wrong dtype": (request(x=("FP64", [1])), (400, "wrong_dtype")),
    "no data": (with_shape(0, 1), (400, "wrong_shape")),
    "too few": (with_shape(2), (400, "wrong_data_length")),
    "below zero": (with_shape(-1), (400, "bad_shape")),
    "raw of another length": (raw_too(b"12345678"), (400, "wrong_data_length")),
    "raw and typed": (raw_too(b"1234", typed=True), (400, "bad_request")),
    "raw of nobody": (raw_too(b"1234", b"1234"), (400, "wrong_data_length")),
    "long id": (changed(request(x=("FP32", [1])), id="i" * 2000), (400, "bad_request")),
    "unknown output": (
        pb.ModelInferRequest(model_name=NAME, inputs=request(x=("FP32", [1])).inputs, outputs=[{"name": "z"}]),
        (400, "unknown_output"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    message, expected = REFUSED[case]
    assert refused({"x": "FP32"}, message.SerializeToString()) == expected


def test_numbers_have_to_fit_and_contents_their_type() -> None:
    message = request(x=("INT32", [300]))
    message.inputs[0].datatype = "INT8"
    assert refused({"x": "INT8"}, message.SerializeToString()) == (400, "wrong_data")
    message = request(x=("FP64", [1.0]))
    message.inputs[0].datatype = "FP32"
    assert refused({"x": "FP32"}, message.SerializeToString()) == (400, "wrong_data")
    message = pb.ModelInferRequest(model_name=NAME, inputs=[{"name": "x", "datatype": "FP16", "shape": [1]}])
    assert refused({"x": "FP16"}, message.SerializeToString()) == (400, "missing_data")
    message = request(x=("BYTES", [b"\xff"]))
    assert refused({"x": "BYTES"}, message.SerializeToString()) == (400, "wrong_data")


def test_the_models_description() -> None:
    model = inference.Model(NAME, VERSION, Echo({"x": "FP32", "n": "INT64"}), frozenset())
    said = pb.ModelMetadataResponse.FromString(rpc.metadata(model, "somewhere"))
    assert (said.name, list(said.versions), said.platform) == (NAME, [VERSION], "somewhere")
    assert [(t.name, t.datatype, list(t.shape)) for t in said.inputs] == [("x", "FP32", [-1]), ("n", "INT64", [-1])]
    assert pb.ModelReadyResponse.FromString(rpc.ready(True)).ready
    assert rpc.named(pb.ModelReadyRequest(name="n", version="v").SerializeToString()) == ("n", "v")
    answer = rpc.infer(
        inference.Model(NAME, VERSION, Echo({"x": "FP32"}), frozenset()),
        bytearray(request(x=("FP32", [math.nan])).SerializeToString()),
        inference.Asker(),
    )
    assert answer.non_finite
