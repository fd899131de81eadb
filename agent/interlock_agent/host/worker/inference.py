"""One inference request of the Open Inference Protocol v2, from bytes to bytes.

Rules of the file:
- What the client got wrong is a `BadRequest`; nothing reaches the runtime that does not fit the model.
- The body's JSON part and binary parts are told apart by the length that the front passes on.
- The check for NaN and Inf is one pass over each float output; what it finds is told beside the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from interlock_agent.host.wire import NO_HEADER
from interlock_agent.host.worker import tensors
from interlock_agent.host.worker.errors import BadRequest

MAX_TENSORS = 256
MAX_ID_BYTES = 1024


class Backend(Protocol):
    """What runs a model. Shapes have -1 for a dynamic axis; dtypes are the protocol's names; an input that is
    `optional` has a default."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs named. Raises BadRequest when the runtime refuses the input, any other on failure."""


@dataclass(frozen=True)
class Answer:
    """`header`: length of the JSON part, NO_HEADER when that is all."""

    status: int
    header: int
    body: list[bytes | memoryview]
    non_finite: bool = False


@dataclass(frozen=True)
class Model:
    """What requests are checked against."""

    name: str
    version: str
    backend: Backend
    non_finite_allowed: frozenset[str]

    def metadata(self, platform: str) -> dict[str, Any]:
        """The protocol's model metadata."""

        def described(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{"name": e["name"], "datatype": e["dtype"], "shape": e["shape"]} for e in entries]

        return {
            "name": self.name,
            "versions": [self.version],
            "platform": platform,
            "inputs": described(self.backend.inputs),
            "outputs": described(self.backend.outputs),
        }


def error(failure: BadRequest) -> Answer:
    """The JSON answer for a refused request."""
    body = json.dumps({"error": failure.message, "code": failure.code}).encode()
    return Answer(failure.status, NO_HEADER, [body])


def infer(model: Model, body: bytearray, header: int) -> Answer:
    """Answer one request. Raises BadRequest."""
    size = len(body) if header == NO_HEADER else header
    document = _parse(bytes(memoryview(body)[:size]))
    identity = document.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > MAX_ID_BYTES):
        raise BadRequest(400, "bad_request", "id is not a (short) string")
    feeds = _inputs(model, document, memoryview(body)[size:])
    wanted = _outputs(model, document)
    arrays = model.backend.run([name for name, _ in wanted], feeds)
    return _answer(model, identity, wanted, arrays)


def _constant(name: str) -> Any:
    raise BadRequest(400, "bad_json", f"{name} is no JSON")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        document = json.loads(text, parse_constant=_constant)
    except RecursionError:
        raise BadRequest(400, "bad_json", "the JSON is nested too deeply") from None
    except (ValueError, UnicodeDecodeError) as malformed:
        raise BadRequest(400, "bad_json", f"the body is no JSON: {malformed}"[:300]) from None
    if not isinstance(document, dict):
        raise BadRequest(400, "bad_request", "the body is not a JSON object")
    return document


def _parameters(holder: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest(400, "bad_request", f"{where}: parameters is not an object")
    for name in ("shared_memory_region", "classification"):
        if parameters.get(name):
            raise BadRequest(400, "unsupported_parameter", f"{where}: {name} is not supported")
    return parameters


def _inputs(model: Model, document: dict[str, Any], binary: memoryview) -> dict[str, Any]:
    listed = document.get("inputs")
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise BadRequest(400, "bad_request", "inputs is not a list of tensors")
    expected = {entry["name"]: entry for entry in model.backend.inputs}
    feeds: dict[str, Any] = {}
    offset = 0
    for tensor in listed:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise BadRequest(400, "bad_request", "an input is not an object with a name")
        name = tensor["name"]
        if name not in expected:
            raise BadRequest(400, "unknown_input", f"no input {name[:100]!r}; the model takes {sorted(expected)}")
        if name in feeds:
            raise BadRequest(400, "duplicate_input", f"input {name!r} is there twice")
        size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
        feeds[name], used = _input(tensor, expected[name], size, binary[offset:])
        offset += used
    missing = [name for name, entry in expected.items() if name not in feeds and not entry.get("optional")]
    if missing:
        raise BadRequest(400, "missing_input", f"missing: {', '.join(missing)}")
    if offset != len(binary):
        raise BadRequest(400, "wrong_data_length", f"{len(binary) - offset} bytes of binary data belong to no input")
    return feeds


def _input(tensor: dict[str, Any], expected: dict[str, Any], size: Any, binary: memoryview) -> tuple[Any, int]:
    name, dtype = expected["name"], expected["dtype"]
    if tensor.get("datatype") != dtype:
        raise BadRequest(400, "wrong_dtype", f"input {name!r}: datatype {tensor.get('datatype')!r}, it takes {dtype}")
    if dtype not in tensors.DTYPES:
        raise BadRequest(400, "unsupported_dtype", f"input {name!r}: {dtype} cannot be passed")
    shape = tensors.check_shape(name, tensor.get("shape"), expected["shape"])
    if size is None:
        if "data" not in tensor:
            raise BadRequest(400, "missing_data", f"input {name!r} has no data")
        return tensors.from_json(name, tensor["data"], dtype, shape), 0
    if "data" in tensor:
        raise BadRequest(400, "bad_request", f"input {name!r} has data and binary data")
    if type(size) is not int or size < 0 or size > len(binary):
        raise BadRequest(400, "wrong_data_length", f"input {name!r}: binary_data_size is not within the body")
    return tensors.from_bytes(name, binary[:size], dtype, shape), size


def _outputs(model: Model, document: dict[str, Any]) -> list[tuple[str, bool]]:
    """Names that are wanted, and whether in binary."""
    all_binary = bool(_parameters(document, "the request").get("binary_data_output", False))
    listed = document.get("outputs")
    known = [entry["name"] for entry in model.backend.outputs]
    if not listed and listed in (None, []):
        return [(name, all_binary) for name in known]
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise BadRequest(400, "bad_request", "outputs is not a list")
    wanted: dict[str, bool] = {}
    for output in listed:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise BadRequest(400, "bad_request", "an output is not an object with a name")
        name = output["name"]
        if name not in known:
            raise BadRequest(400, "unknown_output", f"no output {name[:100]!r}; the model has {known}")
        if name in wanted:
            raise BadRequest(400, "duplicate_output", f"output {name!r} is asked for twice")
        wanted[name] = bool(_parameters(output, f"output {name!r}").get("binary_data", all_binary))
    return list(wanted.items())


def _answer(model: Model, identity: str | None, wanted: list[tuple[str, bool]], arrays: list[Any]) -> Answer:
    dtypes = {entry["name"]: entry["dtype"] for entry in model.backend.outputs}
    outputs: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    for (name, as_bytes), array in zip(wanted, arrays):  # noqa: B905 - strict is 3.10's, and both have one length
        if array.dtype.kind == "f" and name not in model.non_finite_allowed and not np.isfinite(array).all():
            return Answer(500, NO_HEADER, [b"{}"], non_finite=True)
        described: dict[str, Any] = {"name": name, "datatype": dtypes[name], "shape": list(array.shape)}
        if as_bytes:
            data = tensors.to_bytes(array)
            described["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            described["data"] = tensors.to_json(array)
        outputs.append(described)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if identity is not None:
        document["id"] = identity
    head = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return Answer(200, len(head) if binary else NO_HEADER, [head, *binary])
