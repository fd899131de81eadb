"""One inference request of the Open Inference Protocol v2, from bytes to bytes; in JSON here, see `rpc` for gRPC.

Rules of the file:
- What the client got wrong is a `BadRequest`; nothing reaches the runtime that does not fit the model.
- The body's JSON part and binary parts are told apart by the length that the front passes on.
- The check for NaN and Inf is one pass over each float output; what it finds is told beside the answer.
- Memory that is shared is read here, and written by the front: see `wire`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from interlock_agent.host.wire import MAX_ANSWER_BYTES, NO_HEADER, NO_USER
from interlock_agent.host.worker import tensors
from interlock_agent.host.worker.errors import BadRequest
from interlock_agent.host.worker.memory import Region, Regions

MAX_TENSORS = 256
MAX_ID_BYTES = 1024
MAX_SHARED_BYTES = MAX_ANSWER_BYTES  # that one request may read out of shared memory: it is copied


class Backend(Protocol):
    """What runs a model. Shapes have -1 for a dynamic axis; dtypes are the protocol's names; an input that is
    `optional` has a default."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """The outputs named. Raises BadRequest when the runtime refuses the input, any other on failure."""


@dataclass(frozen=True)
class Answer:
    """`header`: length of the JSON part, NO_HEADER when that is all. `writes`: a region's number, offset, data."""

    status: int
    header: int
    body: list[bytes | memoryview]
    non_finite: bool = False
    writes: list[tuple[int, int, bytes | memoryview]] = field(default_factory=list)


@dataclass(frozen=True)
class Asker:
    """Whose request it is, and the memory that may be named in it."""

    user: int = NO_USER
    regions: Regions = field(default_factory=Regions)


@dataclass(frozen=True)
class Wanted:
    """An output, and where it goes: into the JSON, behind it, or into shared memory (from `offset`, `size` bytes)."""

    name: str
    binary: bool
    region: Region | None = None
    offset: int = 0
    size: int = 0


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


class Given(Protocol):
    """The tensors' data in a request, in the order in which they are asked for."""

    def take(self, tensor: dict[str, Any], expected: dict[str, Any]) -> Any:
        """The array of an input that is not in shared memory; it fits `expected`. Raises BadRequest."""

    def end(self) -> None:
        """All inputs were asked for. Raises BadRequest when something is left."""


@dataclass(frozen=True)
class Computed:
    """What a request is answered with, before that is written in one way or the other."""

    identity: str | None
    wanted: list[Wanted]
    arrays: list[Any]


def infer(model: Model, body: bytearray | memoryview, header: int, asker: Asker) -> Answer:
    """Answer one request that is written in JSON. Raises BadRequest."""
    size = len(body) if header == NO_HEADER else header
    document = _parse(bytes(memoryview(body)[:size]))
    computed = compute(model, document, _Behind(memoryview(body)[size:]), asker)
    return _answer(model, computed)


def compute(model: Model, document: dict[str, Any], given: Given, asker: Asker) -> Computed:
    """Check the request against the model, and run it. `document`: as it is in JSON. Raises BadRequest."""
    identity = document.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > MAX_ID_BYTES):
        raise BadRequest(400, "bad_request", "id is not a (short) string")
    wanted = _outputs(model, document, asker)
    feeds = _inputs(model, document, given, asker)
    return Computed(identity, wanted, model.backend.run([output.name for output in wanted], feeds))


def is_finite(model: Model, computed: Computed) -> bool:
    """Whether it may leave: no NaN and no Inf but where the signature allows them."""
    dtypes = {entry["name"]: entry["dtype"] for entry in model.backend.outputs}
    return all(
        output.name in model.non_finite_allowed or tensors.is_finite(array, dtypes[output.name])
        for output, array in zip(computed.wanted, computed.arrays)  # noqa: B905 - strict is 3.10's; one length
    )


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
    if parameters.get("classification"):
        raise BadRequest(400, "unsupported_parameter", f"{where}: classification is not supported")
    return parameters


def _inputs(model: Model, document: dict[str, Any], given: Given, asker: Asker) -> dict[str, Any]:
    listed = document.get("inputs")
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise BadRequest(400, "bad_request", "inputs is not a list of tensors")
    expected = {entry["name"]: entry for entry in model.backend.inputs}
    feeds: dict[str, Any] = {}
    shared = 0
    for tensor in listed:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise BadRequest(400, "bad_request", "an input is not an object with a name")
        name = tensor["name"]
        if name not in expected:
            raise BadRequest(400, "unknown_input", f"no input {name[:100]!r}; the model takes {sorted(expected)}")
        if name in feeds:
            raise BadRequest(400, "duplicate_input", f"input {name!r} is there twice")
        parameters = _parameters(tensor, f"input {name!r}")
        if parameters.get("shared_memory_region") is not None:
            feeds[name], used = _shared(tensor, expected[name], parameters, asker, MAX_SHARED_BYTES - shared)
            shared += used
            continue
        feeds[name] = given.take(tensor, expected[name])
    missing = [name for name, entry in expected.items() if name not in feeds and not entry.get("optional")]
    if missing:
        raise BadRequest(400, "missing_input", f"missing: {', '.join(missing)}")
    given.end()
    return feeds


def kind(tensor: dict[str, Any], expected: dict[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    """Name, dtype and shape, which fit the model."""
    name, dtype = expected["name"], expected["dtype"]
    if tensor.get("datatype") != dtype:
        raise BadRequest(400, "wrong_dtype", f"input {name!r}: datatype {tensor.get('datatype')!r}, it takes {dtype}")
    return name, dtype, tensors.check_shape(name, tensor.get("shape"), expected["shape"])


def _shared(
    tensor: dict[str, Any], expected: dict[str, Any], parameters: dict[str, Any], asker: Asker, left: int
) -> tuple[Any, int]:
    name, dtype, shape = kind(tensor, expected)
    where = f"input {name!r}"
    if "data" in tensor or "binary_data_size" in parameters:
        raise BadRequest(400, "bad_request", f"{where} is in shared memory, and has data beside")
    region = asker.regions.find(asker.user, parameters["shared_memory_region"], where)
    wanted = parameters.get("shared_memory_offset"), parameters.get("shared_memory_byte_size")
    offset, size = region.within(where, *wanted)
    tensors.check_length(name, size, dtype, shape)
    if size > left:
        raise BadRequest(413, "body_too_large", f"more than {MAX_SHARED_BYTES} bytes of shared memory in one request")
    return tensors.from_bytes(name, region.read(where, offset, size), dtype, shape), size


class _Behind:
    """Data in the JSON, or in binary behind it."""

    def __init__(self, binary: memoryview) -> None:
        self._left = binary

    def take(self, tensor: dict[str, Any], expected: dict[str, Any]) -> Any:
        """As Given's."""
        name, dtype, shape = kind(tensor, expected)
        size = _parameters(tensor, f"input {name!r}").get("binary_data_size")
        if size is None:
            if "data" not in tensor:
                raise BadRequest(400, "missing_data", f"input {name!r} has no data")
            return tensors.from_json(name, tensor["data"], dtype, shape)
        if "data" in tensor:
            raise BadRequest(400, "bad_request", f"input {name!r} has data and binary data")
        if type(size) is not int or size < 0 or size > len(self._left):
            raise BadRequest(400, "wrong_data_length", f"input {name!r}: binary_data_size is not within the body")
        data, self._left = self._left[:size], self._left[size:]
        return tensors.from_bytes(name, data, dtype, shape)

    def end(self) -> None:
        """As Given's."""
        if self._left:
            raise BadRequest(400, "wrong_data_length", f"{len(self._left)} bytes of binary data belong to no input")


def _outputs(model: Model, document: dict[str, Any], asker: Asker) -> list[Wanted]:
    """What is wanted, in the order in which it was asked for."""
    all_binary = bool(_parameters(document, "the request").get("binary_data_output", False))
    listed = document.get("outputs")
    known = [entry["name"] for entry in model.backend.outputs]
    if not listed and listed in (None, []):
        return [Wanted(name, all_binary) for name in known]
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise BadRequest(400, "bad_request", "outputs is not a list")
    wanted: dict[str, Wanted] = {}
    for output in listed:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise BadRequest(400, "bad_request", "an output is not an object with a name")
        name = output["name"]
        if name not in known:
            raise BadRequest(400, "unknown_output", f"no output {name[:100]!r}; the model has {known}")
        if name in wanted:
            raise BadRequest(400, "duplicate_output", f"output {name!r} is asked for twice")
        wanted[name] = _wanted(name, _parameters(output, f"output {name!r}"), all_binary, asker)
    return list(wanted.values())


def _wanted(name: str, parameters: dict[str, Any], all_binary: bool, asker: Asker) -> Wanted:
    if parameters.get("shared_memory_region") is None:
        return Wanted(name, bool(parameters.get("binary_data", all_binary)))
    where = f"output {name!r}"
    region = asker.regions.find(asker.user, parameters["shared_memory_region"], where)
    asked = parameters.get("shared_memory_offset"), parameters.get("shared_memory_byte_size")
    return Wanted(name, True, region, *region.within(where, *asked))


def _answer(model: Model, computed: Computed) -> Answer:
    if not is_finite(model, computed):
        return Answer(500, NO_HEADER, [b"{}"], non_finite=True)
    dtypes = {entry["name"]: entry["dtype"] for entry in model.backend.outputs}
    outputs: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    writes: list[tuple[int, int, bytes | memoryview]] = []
    for output, array in zip(computed.wanted, computed.arrays):  # noqa: B905 - strict is 3.10's; one length
        name = output.name
        described: dict[str, Any] = {"name": name, "datatype": dtypes[name], "shape": list(array.shape)}
        if output.region is not None:
            data = tensors.to_bytes(array)
            described["parameters"] = into(output, output.region, len(data))
            writes.append((output.region.number, output.offset, data))
        elif output.binary:
            data = tensors.to_bytes(array)
            described["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            described["data"] = tensors.to_json(array, dtypes[name])
        outputs.append(described)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if computed.identity is not None:
        document["id"] = computed.identity
    head = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return Answer(200, len(head) if binary else NO_HEADER, [head, *binary], writes=writes)


def into(output: Wanted, region: Region, length: int) -> dict[str, Any]:
    """The parameters of an output in shared memory: where it is."""
    if length > output.size:
        message = f"output {output.name!r} has {length} bytes; {output.size} of region {region.name!r} were given to it"
        raise BadRequest(400, "region_too_small", message)
    return {
        "shared_memory_region": region.name,
        "shared_memory_offset": output.offset,
        "shared_memory_byte_size": length,
    }
