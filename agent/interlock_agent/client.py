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
import os
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


class _Socket(socket.socket):
    """One that ends at a time, however little comes at once."""

    until = 0.0  # of time.monotonic()

    def _limit(self) -> None:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)

    def recv_into(self, *args: Any, **options: Any) -> int:
        self._limit()
        return super().recv_into(*args, **options)

    def sendall(self, *args: Any) -> None:
        self._limit()
        super().sendall(*args)


class _Connection(http.client.HTTPConnection):
    """HTTP over TCP or a Unix socket, within a time."""

    def __init__(self, address: str) -> None:
        self._path, self._until = address[5:] if address.startswith("unix:") else "", 0.0
        host, _, port = ("localhost", "", "80") if self._path else address.rpartition(":")
        super().__init__(host.strip("[]"), int(port))

    def connect(self) -> None:
        limit = max(0.001, min(self._until - time.monotonic(), CONNECT_S))
        if self._path:
            made = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.settimeout(limit)
                made.connect(self._path)
            except OSError:
                made.close()
                raise
        else:
            plain = socket.create_connection((self.host, self.port), limit)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made = _Socket(fileno=plain.detach())
        made.until = self._until
        self.sock = made

    def ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str], until: float
    ) -> tuple[int, dict[str, str], bytes]:
        """One request. Raises OSError, HTTPException."""
        self._until = until
        if isinstance(self.sock, _Socket):
            self.sock.until = until
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.request(method, path, body or None, headers)  # cut off where it is too large: the answer says so
        response = self.getresponse()
        answer = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


class Model:
    """One model on one address: `unix:/path` or `HOST:PORT`, as `interlock-agent status` shows it. Threads may share
    it: a request has a connection to itself, which is kept for the next."""

    def __init__(self, address: str, name: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._address, self._name, self._deadline_s = address, name, deadline_s
        self._idle: list[_Connection] = []
        self._epoch = (os.getpid(), 0)  # what was opened before a fork, or before `close`, is not used again
        self._lock = threading.Lock()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; one that is in use, after its answer. Who asks again opens a new one."""
        with self._lock:
            self._epoch = (os.getpid(), self._epoch[1] + 1)
        self._drop_idle()

    def metadata(self) -> dict[str, Any]:
        """What the model that serves now takes and gives. Raises ModelError."""
        _, _, body = self._ask("GET", f"/v2/models/{self._name}", b"", {}, self._deadline_s)
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

    def _take(self) -> tuple[_Connection, tuple[int, int]]:
        with self._lock:
            if self._epoch[0] != os.getpid():
                for connection in self._idle:
                    connection.close()  # here alone: the process that was forked has it still
                self._idle, self._epoch = [], (os.getpid(), self._epoch[1])
            return (self._idle.pop() if self._idle else _Connection(self._address)), self._epoch

    def _give(self, connection: _Connection, epoch: tuple[int, int]) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._idle.append(connection)
                return
        connection.close()

    def _drop_idle(self) -> None:
        with self._lock:
            dropped, self._idle = self._idle, []
        for connection in dropped:
            connection.close()

    def _ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str], deadline_s: float
    ) -> tuple[int, dict[str, str], bytes]:
        """A request until it is answered, whatever happens to connections meanwhile."""
        until, pause, last = time.monotonic() + deadline_s, 0.0, "no time was given"
        while time.monotonic() < until:
            wait = pause * (0.5 + random.random())
            connection, epoch = self._take()
            try:
                status, said, answer = connection.ask(method, path, body, headers, until)
            except (OSError, http.client.HTTPException) as lost:
                connection.close()
                self._drop_idle()  # as old as this one
                last = str(lost) or type(lost).__name__
            except BaseException:
                connection.close()
                raise
            else:
                self._give(connection, epoch)
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
