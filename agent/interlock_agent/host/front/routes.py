"""Which path means what: the Open Inference Protocol v2 over HTTP, for one model.

Rules of the file:
- Pure. The front answers what needs no worker; the rest is an operation, a version and a body.
- What depends on the release (its version, its tensors) is the worker's to check: only it knows what it serves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from interlock_agent.host.front.http import Request
from interlock_agent.host.wire import NO_HEADER, OP_INFER, OP_METADATA, OP_READY

MAX_VERSION_BYTES = 256
MAX_SHARING_BYTES = 16 * 1024  # of the JSON that registers a region
MAX_TIMEOUT_DIGITS = 9  # eleven days
EXTENSIONS = ["binary_tensor_data", "system_shared_memory"]


@dataclass(frozen=True)
class Operation:
    """Something for a worker."""

    op: int
    version: bytes  # "" when the client named none
    header_length: int
    timeout_s: float = 0.0  # the client wants no answer later than that after its request, 0: it has not said


@dataclass(frozen=True)
class Sharing:
    """Something about memory that is shared: `status`, `register` or `unregister`, of one region or (None) of all."""

    verb: bytes
    name: str | None
    document: dict[str, Any]


Reply = tuple[int, dict[str, Any], bytes]  # status, document, extra headers


def _error(status: int, code: str, message: str, extra: bytes = b"") -> Reply:
    return status, {"error": message, "code": code}, extra


# Path below the model (and its version) -> method, operation.
_MODEL: dict[tuple[bytes, ...], tuple[bytes, int]] = {
    (): (b"GET", OP_METADATA),
    (b"ready",): (b"GET", OP_READY),
    (b"infer",): (b"POST", OP_INFER),
}


def route(request: Request, model: str, version: str, ready: bool, retry_s: int = 1) -> Operation | Sharing | Reply:
    """What a request asks for. `ready`: a worker is live; if none is, one may be in `retry_s`. `version`: of this
    program."""
    later = b"Retry-After: %d\r\n" % retry_s
    path = request.target.split(b"?", 1)[0]
    parts = tuple(unquote_to_bytes(part) for part in path.strip(b"/").split(b"/"))
    if parts[0] != b"v2" or (len(parts) == 2 and parts[1] not in (b"health", b"models")):
        return _error(404, "not_found", "no such path; the API begins at /v2")
    server: dict[tuple[bytes, ...], Reply] = {
        (b"v2",): (200, {"name": "interlock", "version": version, "extensions": EXTENSIONS}, b""),
        (b"v2", b"health", b"live"): (200, {"live": True}, b""),
        (b"v2", b"health", b"ready"): (
            200 if ready else 503,
            {"ready": ready},
            b"" if ready else later,
        ),
    }
    if parts in server:
        return server[parts] if request.method == b"GET" else _not_allowed(b"GET")
    if parts[1:2] == (b"systemsharedmemory",):
        return _sharing(request, parts[2:])
    if len(parts) < 3 or parts[1] != b"models":
        return _error(404, "not_found", "no such path")
    if parts[2] != model.encode():
        name = parts[2][:100].decode("utf-8", "replace")
        return _error(404, "unknown_model", f"no model {name!r} here; this is {model!r}")
    rest, asked = parts[3:], b""
    if rest[:1] == (b"versions",) and len(rest) >= 2:
        asked, rest = rest[1], rest[2:]
        if not asked or len(asked) > MAX_VERSION_BYTES:
            return _error(404, "unknown_version", "no such version")
    if rest not in _MODEL:
        return _error(404, "not_found", "no such path")
    method, op = _MODEL[rest]
    if request.method != method:
        return _not_allowed(method)
    if op == OP_READY and not ready:
        return 503, {"name": model, "ready": False}, later
    return _operation(request, op, asked)


def _sharing(request: Request, parts: tuple[bytes, ...]) -> Sharing | Reply:
    name: str | None = None
    if len(parts) == 3 and parts[0] == b"region":
        try:
            name = parts[1].decode()
        except UnicodeDecodeError:
            return _error(400, "bad_region", "a region's name is UTF-8")
        parts = parts[2:]
    methods = {b"status": b"GET", b"unregister": b"POST", **({} if name is None else {b"register": b"POST"})}
    if len(parts) != 1 or parts[0] not in methods:
        return _error(404, "not_found", "no such path")
    if request.method != methods[parts[0]]:
        return _not_allowed(methods[parts[0]])
    document: Any = {}
    if parts[0] == b"register":
        if len(request.body) > MAX_SHARING_BYTES:
            return _error(413, "body_too_large", f"what registers a region has {MAX_SHARING_BYTES} bytes at most")
        try:
            document = json.loads(bytes(request.body))
        except (ValueError, RecursionError):
            return _error(400, "bad_json", "the body is no JSON")
        if not isinstance(document, dict):
            return _error(400, "bad_request", "the body is not a JSON object")
    return Sharing(parts[0], name, document)


def _not_allowed(method: bytes) -> Reply:
    return _error(405, "method_not_allowed", f"use {method.decode()}", b"Allow: %b\r\n" % method)


def _operation(request: Request, op: int, version: bytes) -> Operation | Reply:
    asked = request.headers.get(b"interlock-timeout-ms", b"0")
    if not asked.isdigit() or len(asked) > MAX_TIMEOUT_DIGITS:
        return _error(400, "bad_timeout", "Interlock-Timeout-Ms is not a number of milliseconds")
    timeout_s = int(asked) / 1000
    if op != OP_INFER:
        request.body = b""
        return Operation(op, version, NO_HEADER, timeout_s)
    if request.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return _error(415, "unsupported_encoding", "bodies are taken as they are; send them without Content-Encoding")
    length = request.headers.get(b"inference-header-content-length")
    if length is None:
        return Operation(op, version, NO_HEADER, timeout_s)
    if not length.isdigit() or len(length) > 18 or int(length) > len(request.body):
        return _error(400, "bad_header_length", "Inference-Header-Content-Length is not a length within the body")
    return Operation(op, version, int(length), timeout_s)
