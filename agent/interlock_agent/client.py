"""For applications in Python: ask the model on this device, whichever release serves it.

    from interlock_agent.client import Model

    with Model("unix:/run/interlock/detector.sock", "detector") as detector:
        answer = detector.infer({"images": images})
        boxes = answer["boxes"]
        print(answer.release)  # detector/1.4.0

The standard library and numpy, nothing of ours: the file may be copied. A request lives through swaps, reverts and a
restart of the host: inference has no side effects, so what was lost on the way is asked again until the deadline.
It speaks the Open Inference Protocol v2 with its binary tensors.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEADLINE_S = 30.0
CONNECT_S = 5.0
PAUSE_S = 0.05  # before the second new attempt; doubled, with jitter, up to PAUSE_MAX_S
PAUSE_MAX_S = 1.0

_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}
_LENGTH = struct.Struct("<I")


class ModelError(Exception):
    """Of this module. `code`: as the host names it, e.g. `wrong_shape`; `status`: of HTTP, 0 where there was none."""

    def __init__(self, message: str, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class RefusedError(ModelError):
    """The request is at fault (4xx): asked again, it would be refused again."""


class FailedError(ModelError):
    """The model could not answer this request (5xx): it failed, or answered NaN or Inf where it may not."""


class UnavailableError(ModelError):
    """No answer within the deadline: no host, or no model that serves."""


@dataclass(frozen=True)
class Answer:
    """Arrays by output, and who gave them: `release` as `detector/1.4.0`, `generation` of its switch."""

    outputs: dict[str, Any] = field(repr=False)
    release: str
    generation: int

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name]


class _Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Model:
    """One model on one address: `unix:/path` or `HOST:PORT`, as `interlock-agent status` shows it. Threads may share
    it; each has a connection of its own, made when it first asks."""

    def __init__(self, address: str, name: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._address, self._name, self._deadline_s = address, name, deadline_s
        self._local = threading.local()
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection. A thread that asks again opens a new one."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
        self._local = threading.local()

    def metadata(self) -> dict[str, Any]:
        """What the model that serves now takes and gives. Raises ModelError."""
        status, headers, body = self._ask("GET", f"/v2/models/{self._name}", b"", {}, self._deadline_s)
        del status, headers
        return dict(json.loads(body))

    def infer(
        self, inputs: Mapping[str, Any], *, outputs: Sequence[str] = (), deadline_s: float | None = None
    ) -> Answer:
        """Answers to these arrays; `outputs`: the names wanted, all where none is given. Raises RefusedError,
        FailedError, UnavailableError."""
        head, parts = _request(inputs, outputs)
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        limit = self._deadline_s if deadline_s is None else deadline_s
        path = f"/v2/models/{self._name}/infer"
        _, said, body = self._ask("POST", path, b"".join((head, *parts)), headers, limit)
        length = said.get("inference-header-content-length")
        return Answer(
            _outputs(memoryview(body), int(length) if length else len(body)),
            said.get("interlock-release", ""),
            int(said.get("interlock-generation") or 0),
        )

    # --- the way there ----------------------------------------------------------------------------------------------

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            limit = max(0.001, min(timeout, CONNECT_S))
            if self._address.startswith("unix:"):
                connection = _Unix(self._address[5:], limit)
            else:
                host, _, port = self._address.rpartition(":")
                connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=limit)
            self._local.connection = connection
            with self._lock:
                self._open.add(connection)
        return connection

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None
            with self._lock:
                self._open.discard(connection)

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str], deadline_s: float
    ) -> tuple[int, dict[str, str], bytes]:
        """A request until it is answered, whatever happens to connections meanwhile."""
        until, pause, last = time.monotonic() + deadline_s, 0.0, "no time was given"
        while (left := until - time.monotonic()) > 0:
            wait = pause * (0.5 + random.random())
            try:
                status, said, answer = self._once(method, path, body, headers, left)
            except (OSError, http.client.HTTPException) as lost:
                self._drop()
                last = str(lost) or type(lost).__name__
            else:
                if status < 300:
                    return status, said, answer
                error = _error(status, answer)
                if status != 503:
                    raise error
                last = str(error)
                with contextlib.suppress(ValueError):
                    wait = max(wait, min(PAUSE_MAX_S, float(said.get("retry-after", "0"))))
            time.sleep(max(0.0, min(wait, until - time.monotonic())))
            pause = min(2 * pause, PAUSE_MAX_S) or PAUSE_S  # a connection that was only old is made anew at once
        raise UnavailableError(f"{self._name} at {self._address}: no answer within {deadline_s:g} s: {last}")

    def _once(
        self, method: str, path: str, body: bytes, headers: dict[str, str], left: float
    ) -> tuple[int, dict[str, str], bytes]:
        connection = self._connection(left)
        if connection.sock is None:
            connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(left)
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        answer = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


# --- bytes ----------------------------------------------------------------------------------------------------------


def _request(inputs: Mapping[str, Any], outputs: Sequence[str]) -> tuple[bytes, list[bytes]]:
    """Header and tensors. Raises RefusedError for what the protocol has no type for."""
    tensors, parts = [], []
    for name, value in inputs.items():
        array = np.asarray(value)
        if array.dtype.kind in "SUO":
            data, kind = _strings(array), "BYTES"
        else:
            little = array.dtype.newbyteorder("<")
            found = _NAMES.get(little)
            if found is None:
                raise RefusedError(f"input {name!r}: the protocol has no type for {array.dtype}", "unsupported_dtype")
            data, kind = np.ascontiguousarray(array, little).tobytes(), found
        parameters = {"binary_data_size": len(data)}
        tensors.append({"name": name, "datatype": kind, "shape": list(array.shape), "parameters": parameters})
        parts.append(data)
    document: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if outputs:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    return json.dumps(document, separators=(",", ":")).encode(), parts


def _strings(array: Any) -> bytes:
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1).tolist()]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _outputs(body: memoryview, head: int) -> dict[str, Any]:
    """Arrays over the body, not copies of it. Raises FailedError."""
    try:
        document = json.loads(bytes(body[:head]))
        found, at = {}, head
        for tensor in document["outputs"]:
            size, shape = int(tensor["parameters"]["binary_data_size"]), tensor["shape"]
            found[tensor["name"]] = _array(body[at : at + size], tensor["datatype"], shape)
            at += size
    except (KeyError, TypeError, ValueError, struct.error) as strange:
        raise FailedError(f"an answer that is none: {strange!r}", "bad_answer") from None
    return found


def _array(data: memoryview, kind: str, shape: list[int]) -> Any:
    if kind != "BYTES":
        return np.frombuffer(data, _DTYPES[kind]).reshape(shape)
    texts, at = [], 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        texts.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def _error(status: int, body: bytes) -> ModelError:
    try:
        document = json.loads(body)
        message, code = str(document["error"]), str(document.get("code", ""))
    except (KeyError, TypeError, ValueError):
        message, code = body[:200].decode(errors="replace"), ""
    kind = RefusedError if status < 500 else UnavailableError if status == 503 else FailedError
    return kind(f"{status} {code}: {message}", code, status)
