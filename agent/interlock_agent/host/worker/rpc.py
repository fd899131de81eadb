"""The same protocol in protocol buffers, for gRPC: what the messages of `inference.GRPCInferenceService` say
(open-inference-protocol, grpc_predict_v2.proto), to and from what `inference` takes.

Rules of the file:
- A request becomes the document that it would be in JSON; its data stays where it lies. So both are checked alike.
- Data is raw for all inputs, or typed in the tensors; FP16 and BF16 have no typed form. Answers are raw, as Triton's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from interlock_agent.host import protobuf
from interlock_agent.host.protobuf import Malformed
from interlock_agent.host.wire import NO_HEADER
from interlock_agent.host.worker import inference, tensors
from interlock_agent.host.worker.errors import BadRequest
from interlock_agent.host.worker.inference import Answer, Asker, Computed, Model

# InferTensorContents: number of the field -> what its elements are read as. 8 is bytes_contents.
_CONTENTS: dict[int, Any] = {
    1: np.dtype("?"),
    2: np.dtype("<i4"),
    3: np.dtype("<i8"),
    4: np.dtype("<u4"),
    5: np.dtype("<u8"),
    6: np.dtype("<f4"),
    7: np.dtype("<f8"),
}
_BYTES = 8
_FIELD_OF = {
    "BOOL": 1,
    **dict.fromkeys(("INT8", "INT16", "INT32"), 2),
    "INT64": 3,
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), 4),
    "UINT64": 5,
    "FP32": 6,
    "FP64": 7,
    "BYTES": _BYTES,
}

Contents = dict[int, list[memoryview]]  # by field; of what is packed the elements' bytes, in pieces


def infer(model: Model, body: bytearray | memoryview, asker: Asker) -> Answer:
    """Answer one ModelInferRequest. Raises BadRequest."""
    try:
        document, given = _request(memoryview(body))
    except Malformed as malformed:
        raise BadRequest(400, "bad_message", f"no ModelInferRequest: {malformed}") from None
    check(model, document["model_name"], document["model_version"])
    return _answer(model, inference.compute(model, document, given, asker))


def check(model: Model, name: str, version: str) -> None:
    """Whether it is this model that is asked for. Raises BadRequest."""
    if name != model.name:
        raise BadRequest(404, "unknown_model", f"no model {name[:100]!r} here; this is {model.name!r}")
    if version and version != model.version:
        raise BadRequest(404, "unknown_version", f"version {version[:100]!r} is not served; {model.version} is")


def named(body: bytearray | memoryview) -> tuple[str, str]:
    """Name and version in a ModelMetadataRequest or ModelReadyRequest. Raises BadRequest."""
    found = {1: "", 2: ""}
    try:
        for number, kind, _, data in protobuf.fields(memoryview(body)):
            if number in found:
                found[number] = protobuf.text(kind, data)
    except Malformed as malformed:
        raise BadRequest(400, "bad_message", f"no such message: {malformed}") from None
    return found[1], found[2]


def metadata(model: Model, platform: str) -> bytes:
    """A ModelMetadataResponse."""
    parts = [protobuf.of_text(1, model.name), protobuf.of_text(2, model.version), protobuf.of_text(3, platform)]
    for field, entries in ((4, model.backend.inputs), (5, model.backend.outputs)):
        for entry in entries:
            said = protobuf.of_text(1, entry["name"]) + protobuf.of_text(2, entry["dtype"])
            parts.append(protobuf.of_bytes(field, said + protobuf.of_numbers(3, entry["shape"])))
    return b"".join(parts)


def ready(yes: bool) -> bytes:
    """A ModelReadyResponse."""
    return protobuf.of_number(1, yes)


# --- requests ---------------------------------------------------------------------------------------------------------


class _Given:
    """Data of a request: raw, in the order of the inputs, or typed."""

    def __init__(self, raw: list[memoryview], typed: dict[str, Contents]) -> None:
        self._raw, self._typed, self._next = raw, typed, 0

    def take(self, tensor: dict[str, Any], expected: dict[str, Any]) -> Any:
        """As inference.Given's."""
        name, dtype, shape = inference.kind(tensor, expected)
        typed = self._typed.pop(name, {})
        if self._raw:
            if typed:
                raise BadRequest(400, "bad_request", f"input {name!r} has typed data, and there is raw data")
            if self._next == len(self._raw):
                raise BadRequest(400, "missing_data", f"input {name!r} has no raw data")
            self._next += 1
            return tensors.from_bytes(name, self._raw[self._next - 1], dtype, shape)
        return _typed(name, typed, dtype, shape)

    def end(self) -> None:
        """As inference.Given's."""
        if self._typed:
            raise BadRequest(400, "bad_request", f"input {min(self._typed)!r} is in shared memory, and has data beside")
        if self._next < len(self._raw):
            left = len(self._raw) - self._next
            raise BadRequest(400, "wrong_data_length", f"{left} of the raw data belong to no input")


def _typed(name: str, contents: Contents, dtype: str, shape: tuple[int, ...]) -> Any:
    field = _FIELD_OF.get(dtype)
    if field is None:
        raise BadRequest(400, "missing_data", f"input {name!r}: {dtype} is raw data, and there is none")
    wrong = [other for other, pieces in contents.items() if other != field and any(map(len, pieces))]
    if wrong:
        raise BadRequest(400, "wrong_data", f"input {name!r}: contents of another type than {dtype}")
    pieces = contents.get(field, [])
    if field == _BYTES:
        return tensors.from_texts(name, [bytes(piece) for piece in pieces], shape)
    kind, packed = _CONTENTS[field], b"".join(pieces)
    try:
        array = np.frombuffer(packed, kind) if kind.kind == "f" else _varints(packed).astype(kind)
    except ValueError:
        raise BadRequest(400, "bad_message", f"input {name!r}: its contents are not written as their type") from None
    return tensors.from_numbers(name, array, dtype, shape)


def _varints(packed: bytes) -> Any:
    """Packed varints, as uint64. Raises ValueError."""
    data: Any = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if not data.size:
        return data.astype(np.uint64)
    if not ends.size or ends[-1] != data.size - 1:
        raise ValueError("a number does not end")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > protobuf.MAX_VARINT_BYTES:
        raise ValueError("a number does not end")
    values = np.zeros(ends.size, np.uint64)
    for place in range(int(lengths.max())):
        there = lengths > place
        part = (data[starts[there] + place] & 0x7F).astype(np.uint64)
        values[there] |= part << np.uint64(7 * place)
    return values


def _request(body: memoryview) -> tuple[dict[str, Any], _Given]:
    """As a document, and the data. Raises Malformed."""
    document: dict[str, Any] = {"model_name": "", "model_version": "", "inputs": [], "outputs": [], "parameters": {}}
    raw: list[memoryview] = []
    typed: dict[str, Contents] = {}
    names = {1: "model_name", 2: "model_version", 3: "id"}
    for number, kind, _, data in protobuf.fields(body):
        if number in names:
            document[names[number]] = protobuf.text(kind, data)
        elif number == 4:
            _parameter(document["parameters"], protobuf.message(kind, data))
        elif number == 5:
            tensor, contents = _tensor(protobuf.message(kind, data))
            document["inputs"].append(tensor)
            if any(map(len, contents.values())):
                typed.setdefault(tensor["name"], contents)
        elif number == 6:
            document["outputs"].append(_wanted(protobuf.message(kind, data)))
        elif number == 7:
            raw.append(protobuf.message(kind, data))
    return document, _Given(raw, typed)


def _tensor(data: memoryview) -> tuple[dict[str, Any], Contents]:
    tensor: dict[str, Any] = {"name": "", "datatype": "", "shape": [], "parameters": {}}
    contents: Contents = {}
    for number, kind, value, part in protobuf.fields(data):
        if number in (1, 2):
            tensor["name" if number == 1 else "datatype"] = protobuf.text(kind, part)
        elif number == 3:
            tensor["shape"] += map(protobuf.signed, protobuf.numbers(kind, value, part))
        elif number == 4:
            _parameter(tensor["parameters"], protobuf.message(kind, part))
        elif number == 5:
            for field, _, _, piece in protobuf.fields(protobuf.message(kind, part)):
                contents.setdefault(field, []).append(piece)  # elements that are not packed are written as packed ones
    return tensor, contents


def _wanted(data: memoryview) -> dict[str, Any]:
    output: dict[str, Any] = {"name": "", "parameters": {}}
    for number, kind, _, part in protobuf.fields(data):
        if number == 1:
            output["name"] = protobuf.text(kind, part)
        elif number == 2:
            _parameter(output["parameters"], protobuf.message(kind, part))
    return output


def _parameter(parameters: dict[str, Any], entry: memoryview) -> None:
    """One entry of map<string, InferParameter>. Of several of one name the last holds."""
    name, said = "", memoryview(b"")
    for number, kind, _, part in protobuf.fields(entry):
        if number == 1:
            name = protobuf.text(kind, part)
        elif number == 2:
            said = protobuf.message(kind, part)
    parameters[name] = None
    for number, kind, value, part in protobuf.fields(said):
        if number in (1, 2, 5):
            whole = protobuf.number(kind, value)
            parameters[name] = {1: bool(whole), 2: protobuf.signed(whole), 5: whole}[number]
        elif number == 3:
            parameters[name] = protobuf.text(kind, part)
        elif number == 4:
            if kind != protobuf.FIXED64:
                raise Malformed("a field has another type")
            parameters[name] = float(np.frombuffer(part, "<f8")[0])


# --- answers ----------------------------------------------------------------------------------------------------------


def _answer(model: Model, computed: Computed) -> Answer:
    """A ModelInferResponse."""
    if not inference.is_finite(model, computed):
        return Answer(500, NO_HEADER, [b"{}"], non_finite=True)
    dtypes = {entry["name"]: entry["dtype"] for entry in model.backend.outputs}
    head = [protobuf.of_text(1, model.name), protobuf.of_text(2, model.version)]
    head.append(protobuf.of_text(3, computed.identity or ""))
    raw: list[bytes | memoryview] = []
    writes: list[tuple[int, int, bytes | memoryview]] = []
    for output, array in zip(computed.wanted, computed.arrays):  # noqa: B905 - strict is 3.10's; one length
        data = tensors.to_bytes(array)
        said = protobuf.of_text(1, output.name) + protobuf.of_text(2, dtypes[output.name])
        said += protobuf.of_numbers(3, array.shape)
        if output.region is not None:
            for name, value in inference.into(output, output.region, len(data)).items():
                said += protobuf.of_bytes(4, _written(name, value))
            writes.append((output.region.number, output.offset, data))
            data = b""  # its place is kept: the raw data is counted
        head.append(protobuf.of_bytes(5, said))
        raw += [protobuf.head(6, len(data)), data]
    return Answer(200, NO_HEADER, [b"".join(head), *raw], writes=writes)


def _written(name: str, value: str | int) -> bytes:
    """An entry of map<string, InferParameter>."""
    if isinstance(value, str):
        said = protobuf.of_bytes(3, value.encode())
    else:  # in a `oneof` zero is written too
        said = protobuf.varint(2 << 3 | protobuf.VARINT) + protobuf.varint(value)
    return protobuf.of_bytes(1, name.encode()) + protobuf.of_bytes(2, said)
