"""For applications in Python: ask the model on this device, whichever release serves it.

    from interlock_agent.client import Model

    with Model("unix:/run/interlock/detector.sock", "detector") as detector:
        answer = detector.infer({"images": images})
        boxes = answer["boxes"]
        print(answer.release)  # detector/1.4.0

The standard library and numpy, nothing of ours: the file may be copied. A request lives through swaps, reverts and a
restart of the host: inference has no side effects, so what was lost on the way is asked again until the deadline.
It speaks the Open Inference Protocol v2 with its binary tensors. Large ones go through shared memory where the host is
on this machine and lets us: a connection has a file in /dev/shm to itself, which has no name any more once the host
knows it, and ends with the connection; so nothing is left behind, however an application ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import mmap
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEADLINE_S = 30.0
CONNECT_S = 5.0
PAUSE_S = 0.05  # before the second new attempt; doubled, with jitter, up to PAUSE_MAX_S
PAUSE_MAX_S = 1.0
SHARED_MIN_BYTES = 64 * 1024  # smaller tensors travel as fast within the request
SHARED_MAX_BYTES = 256 * 1024 * 1024  # of inputs and outputs of one request; a host takes no more
SHARED_AGAIN_S = 60.0  # a host that does not share memory is asked again, but not for each request
SIZES_MAX = 256  # kinds of requests whose outputs' sizes are remembered
_SHARED = "/dev/shm"  # noqa: S108 - where shared memory is
_ALIGN = 64  # bytes: of a cache line

_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}
_LENGTH = struct.Struct("<I")
# What is wrong between the host and our memory, and not with the request: it is sent without.
_NOT_SHARED = {
    "unknown_region", "outside_region", "truncated_region", "region_too_small", "region_not_written",
    "read_only_region", "unknown_output",
}  # fmt: skip


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


@dataclass(frozen=True)
class BF16:
    """An input of that type, which numpy has not: the 16 bits of each element as uint16. An answer has it so too."""

    bits: Any


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
    """HTTP over TCP or a Unix socket, within a time; and the memory that the host knows by it."""

    memory: _Memory | None = None

    def __init__(self, address: str, tls: ssl.SSLContext | None, always: dict[str, str]) -> None:
        self._path, self._until, self._tls = address[5:] if address.startswith("unix:") else "", 0.0, tls
        self._always = always  # headers
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
            if self._tls is not None:
                self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
                return
            made = _Socket(fileno=plain.detach())
        made.until = self._until
        self.sock = made

    def close(self) -> None:
        self.memory = None
        super().close()

    def ask(
        self, method: str, path: str, parts: Sequence[Any], headers: dict[str, str], until: float
    ) -> tuple[int, dict[str, str], bytes]:
        """One request. Raises OSError, HTTPException."""
        self._until = until
        headers = {**headers, **self._always}
        if isinstance(self.sock, _Socket):
            self.sock.until = until
        elif self.sock is not None:
            self.sock.settimeout(max(0.001, until - time.monotonic()))
        if parts:
            headers = {**headers, "Content-Length": str(sum(map(len, parts)))}
        if self.sock is None:
            self.connect()  # here, since a reset while it connects leaves nobody to hear an answer from
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.request(method, path, parts or None, headers)  # cut off where it is too large: the answer says so
        response = self.getresponse()
        answer = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, answer


class _Memory:
    """A file in shared memory, mapped. Raises OSError: also where the memory is not there, so that using it cannot."""

    def __init__(self, size: int) -> None:
        self.name, self.size = f"interlock-{os.getpid()}-{os.urandom(8).hex()}", size
        descriptor = os.open(f"{_SHARED}/{self.name}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            self.map = mmap.mmap(descriptor, size)
        except BaseException:
            self.unlink()
            raise
        finally:
            os.close(descriptor)

    def unlink(self) -> None:
        """Take its name away; whoever has it keeps it."""
        os.unlink(f"{_SHARED}/{self.name}")


class Model:
    """One model on one address: `unix:/path` or `HOST:PORT`, as `interlock-agent status` shows it. Threads may share
    it: a request has a connection to itself, which is kept for the next. `shared_memory`: large tensors go through it
    where the host is on this machine; else, and where that does not work, through HTTP. `token`, `tls`: where the
    owner of the device limits who may ask."""

    def __init__(
        self,
        address: str,
        name: str,
        *,
        deadline_s: float = DEADLINE_S,
        shared_memory: bool = True,
        token: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls, self._always = tls, {"Authorization": f"Bearer {token}"} if token else {}
        self._address, self._name, self._deadline_s = address, name, deadline_s
        host = address.rpartition(":")[0].strip("[]")
        local = address.startswith("unix:") or host in ("localhost", "::1") or host.startswith("127.")
        self._share_from = 0.0 if shared_memory and local else float("inf")  # of time.monotonic()
        self._sizes: dict[Any, tuple[str, dict[str, int]]] = {}  # of such a request's outputs, in bytes, by release
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
        path = f"/v2/models/{self._name}"
        _, _, body = self._ask(lambda connection, until: connection.ask("GET", path, (), {}, until), self._deadline_s)
        return dict(json.loads(body))

    def infer(
        self, inputs: Mapping[str, Any], *, outputs: Sequence[str] = (), deadline_s: float | None = None
    ) -> Answer:
        """Answers to these arrays; `outputs`: the names wanted, all where none is given. Raises RefusedError,
        FailedError, UnavailableError."""
        tensors, answers = [_Tensor.of(name, value) for name, value in inputs.items()], list[Answer]()

        def ask(connection: _Connection, until: float) -> tuple[int, dict[str, str], bytes]:
            return self._infer(connection, until, tensors, tuple(outputs), answers)

        self._ask(ask, self._deadline_s if deadline_s is None else deadline_s)
        return answers[0]

    def _infer(
        self,
        connection: _Connection,
        until: float,
        tensors: list[_Tensor],
        outputs: tuple[str, ...],
        answers: list[Answer],
        share: bool = True,
    ) -> tuple[int, dict[str, str], bytes]:
        kind = (tuple((tensor.name, tensor.kind, *tensor.array.shape) for tensor in tensors), outputs)
        release, sizes = self._sizes.get(kind, ("", {})) if share else ("", {})
        size = sum(_aligned(tensor.size) for tensor in tensors) + sum(map(_aligned, sizes.values()))
        memory = self._memory(connection, size, until) if share else None
        if memory is None:
            sizes = {}
        head, parts = _request(tensors, outputs, memory, sizes)
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        path = f"/v2/models/{self._name}/infer"
        status, said, body = connection.ask("POST", path, (head, *parts), headers, until)
        if status == 200:
            length = said.get("inference-header-content-length")
            found = _outputs(memoryview(body), int(length) if length else len(body), memory)
            answer = Answer(found, said.get("interlock-release", ""), int(said.get("interlock-generation") or 0))
            if not sizes or outputs or answer.release == release:
                answers.append(answer)
                self._learn(kind, answer)
                return status, said, body
            self._sizes.pop(kind, None)  # another release may have more outputs than were asked for
        else:
            code = _error(status, body).code
            if memory is None or code not in _NOT_SHARED:
                return status, said, body
            if code == "region_too_small":  # they vary: the next ones come by HTTP
                self._sizes[kind] = "", {}
            elif code == "unknown_output":
                self._sizes.pop(kind, None)
            else:
                connection.memory = None
        return self._infer(connection, until, tensors, outputs, answers, share=False)

    def _learn(self, kind: Any, answer: Answer) -> None:
        """How large outputs are: the next time there is room for them in shared memory."""
        sizes = {name: array.nbytes for name, array in answer.outputs.items() if array.dtype != object}
        if kind not in self._sizes and sum(sizes.values()) >= SHARED_MIN_BYTES and len(sizes) == len(answer.outputs):
            if len(self._sizes) >= SIZES_MAX:
                self._sizes.clear()
            self._sizes[kind] = answer.release, sizes

    def _memory(self, connection: _Connection, size: int, until: float) -> _Memory | None:
        """That of the connection, made and registered where it is none yet or too small. None where it does not pay,
        or is not to be had."""
        if not SHARED_MIN_BYTES <= size <= SHARED_MAX_BYTES or time.monotonic() < self._share_from:
            return None
        if connection.memory and connection.memory.size >= size:
            return connection.memory
        former, connection.memory = connection.memory, None
        try:
            memory = _Memory(1 << (size - 1).bit_length())
        except OSError:
            self._share_from = time.monotonic() + SHARED_AGAIN_S
            return None
        try:
            document = {"key": f"/{memory.name}", "offset": 0, "byte_size": memory.size, "lifetime": "connection"}
            region = "/v2/systemsharedmemory/region/"
            body = (json.dumps(document).encode(),)
            status, _, _ = connection.ask("POST", f"{region}{memory.name}/register", body, {}, until)
        finally:
            memory.unlink()
        if status != 200:
            self._share_from = time.monotonic() + SHARED_AGAIN_S
            return None
        if former:
            connection.ask("POST", f"{region}{former.name}/unregister", (), {}, until)
        connection.memory = memory
        return memory

    # --- the way there ----------------------------------------------------------------------------------------------

    def _take(self) -> tuple[_Connection, tuple[int, int]]:
        with self._lock:
            if self._epoch[0] != os.getpid():
                for connection in self._idle:
                    connection.close()  # here alone: the process that was forked has it still
                self._idle, self._epoch = [], (os.getpid(), self._epoch[1])
            return (
                self._idle.pop() if self._idle else _Connection(self._address, self._tls, self._always)
            ), self._epoch

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
        self, ask: Callable[[_Connection, float], tuple[int, dict[str, str], bytes]], deadline_s: float
    ) -> tuple[int, dict[str, str], bytes]:
        """A request until it is answered, whatever happens to connections meanwhile."""
        until, pause, last = time.monotonic() + deadline_s, 0.0, "no time was given"
        while time.monotonic() < until:
            wait = pause * (0.5 + random.random())
            connection, epoch = self._take()
            try:
                status, said, answer = ask(connection, until)
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


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


@dataclass(frozen=True)
class _Tensor:
    """An input: of BYTES the bytes, else an array of the protocol's type, in any order."""

    name: str
    kind: str
    array: Any
    size: int
    texts: bytes = b""

    @classmethod
    def of(cls, name: str, value: Any) -> _Tensor:
        """Raises RefusedError for what the protocol has no type for."""
        array = np.asarray(value.bits if isinstance(value, BF16) else value)
        if array.dtype.kind in "SUO":
            texts = _strings(array)
            return cls(name, "BYTES", array, len(texts), texts)
        kind = _NAMES.get(array.dtype.newbyteorder("<"))
        if isinstance(value, BF16):
            kind = "BF16" if kind == "UINT16" else None
        if kind is None:
            raise RefusedError(f"input {name!r}: the protocol has no type for {array.dtype}", "unsupported_dtype")
        return cls(name, kind, array, array.nbytes)

    def data(self) -> Any:
        """Its bytes, one after the other."""
        if self.kind == "BYTES":
            return self.texts
        little: Any = np.ascontiguousarray(self.array, self.array.dtype.newbyteorder("<"))
        return memoryview(little.reshape(-1).view(np.uint8))

    def put(self, memory: mmap.mmap, at: int) -> None:
        """Its bytes, into memory."""
        if self.kind == "BYTES":
            memory[at : at + self.size] = self.texts
        else:
            np.ndarray(self.array.shape, self.array.dtype.newbyteorder("<"), memory, at)[...] = self.array


def _request(
    tensors: list[_Tensor], outputs: Sequence[str], memory: _Memory | None, sizes: dict[str, int]
) -> tuple[bytes, list[Any]]:
    """Header and what follows it; with `memory` nothing does, and outputs of known `sizes` come there too."""
    described, parts, at = [], [], 0
    for tensor in tensors:
        if memory is None:
            data = tensor.data()
            parameters: dict[str, Any] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            tensor.put(memory.map, at)
            parameters = _place(memory, at, tensor.size)
            at += _aligned(tensor.size)
        entry = {"name": tensor.name, "datatype": tensor.kind, "shape": list(tensor.array.shape)}
        described.append({**entry, "parameters": parameters})
    wanted = []
    for name in outputs or sizes:
        parameters = {"binary_data": True}
        if memory is not None and name in sizes:
            parameters = _place(memory, at, sizes[name])
            at += _aligned(sizes[name])
        wanted.append({"name": name, "parameters": parameters})
    document: dict[str, Any] = {"inputs": described, "parameters": {"binary_data_output": True}}
    if wanted:
        document["outputs"] = wanted
    return json.dumps(document, separators=(",", ":")).encode(), [part for part in parts if len(part)]


def _place(memory: _Memory, at: int, size: int) -> dict[str, Any]:
    return {"shared_memory_region": memory.name, "shared_memory_offset": at, "shared_memory_byte_size": size}


def _strings(array: Any) -> bytes:
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1).tolist()]
    return b"".join(_LENGTH.pack(len(text)) + text for text in texts)


def _outputs(body: memoryview, head: int, memory: _Memory | None = None) -> dict[str, Any]:
    """Arrays over the body, not copies of it; but of what is in memory that the next request will use. Raises
    FailedError."""
    try:
        document = json.loads(bytes(body[:head]))
        found, at = {}, head
        for tensor in document["outputs"]:
            parameters, shape = tensor["parameters"], tensor["shape"]
            if memory is not None and "shared_memory_region" in parameters:
                start, size = int(parameters["shared_memory_offset"]), int(parameters["shared_memory_byte_size"])
                data = memoryview(memory.map[start : start + size])
            else:
                size = int(parameters["binary_data_size"])
                data = body[at : at + size]
                at += size
            found[tensor["name"]] = _array(data, tensor["datatype"], shape)
    except (KeyError, TypeError, ValueError, struct.error) as strange:
        raise FailedError(f"an answer that is none: {strange!r}", "bad_answer") from None
    return found


def _array(data: memoryview, kind: str, shape: list[int]) -> Any:
    if kind != "BYTES":
        return np.frombuffer(data, "<u2" if kind == "BF16" else _DTYPES[kind]).reshape(shape)
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
