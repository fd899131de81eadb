"""The worker's socket: a thread a connection, a request at a time a connection.

Rules of the file:
- Threads and blocking sockets: inference releases the interpreter lock, and one thread does a request from its first
  byte to its last without handing it over.
- A failing request is an answer; the end of the worker is what it cannot get over (fatal.py).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import sys
import threading
import traceback

from interlock_agent.host.wire import (
    ANSWER,
    FLAG_IN_MEMORY,
    FLAG_NON_FINITE,
    LARGE_BYTES,
    MAX_BODY_BYTES,
    NO_HEADER,
    OP_DROP,
    OP_HOLD,
    OP_INFER,
    OP_METADATA,
    OP_READY,
    OP_RPC_INFER,
    OP_RPC_METADATA,
    OP_RPC_READY,
    REGION,
    REQUEST,
    TAKES_MEMORY,
    WRITE,
    close_all,
    make_memory,
    map_memory,
    read_exactly,
    read_with_descriptors,
)
from interlock_agent.host.worker import fatal, inference, rpc
from interlock_agent.host.worker.errors import BadRequest
from interlock_agent.host.worker.inference import Answer, Asker, Model
from interlock_agent.host.worker.memory import Region, Regions

BACKLOG = 128
SMALL_BYTES = 16 * 1024  # below it parts are joined: one call instead of several
KEEP_BYTES = 8 * 1024 * 1024  # of memory for answers, for each connection; larger is given back when it is not needed


class Serving:
    """Answers requests for one model."""

    def __init__(self, model: Model, platform: str) -> None:
        self._model = model
        self._metadata = json.dumps(model.metadata(platform)).encode()
        self._ready = json.dumps({"name": model.name, "ready": True}).encode()
        self._rpc_metadata = rpc.metadata(model, platform)
        self._regions = Regions()

    def listen(self, path: str) -> None:
        """Begin to serve on a Unix socket."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(BACKLOG)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        to, numbers = _Sender(connection), set[int]()
        with connection, contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                start, descriptors = read_with_descriptors(connection, REQUEST.size)
                op, user, length, header, size = REQUEST.unpack(start)
                if size > 4 * MAX_BODY_BYTES:  # the front has a limit of its own; this one only bounds nonsense
                    close_all(descriptors)
                    return
                version = read_exactly(connection, length)
                kind = op & ~TAKES_MEMORY
                if kind in (OP_HOLD, OP_DROP):
                    numbers.add(self._share(kind, user, read_exactly(connection, size), descriptors))
                    answer = Answer(200, NO_HEADER, [])
                elif descriptors:
                    body = memoryview(map_memory(descriptors[0]))[:size]
                    answer = self.answer(kind, bytes(version), header, body, user)
                    del body  # and with it the mapping: nothing of the answer refers to it
                else:
                    answer = self.answer(kind, bytes(version), header, read_exactly(connection, size), user)
                to.send(answer, bool(op & TAKES_MEMORY))
        if numbers:
            self._regions.drop_all(numbers)

    def _share(self, op: int, user: int, body: bytearray, descriptors: list[int]) -> int:
        """The front gives a region, or takes it away, and is answered when that holds. The number."""
        number, start, size = REGION.unpack_from(body)
        name = body[REGION.size :].decode()
        if op == OP_HOLD:
            self._regions.hold(user, Region(number, name, start, size, descriptors[0]))
        else:
            self._regions.drop(user, name, number)
        return int(number)

    def answer(self, op: int, version: bytes, header: int, body: bytearray | memoryview, user: int) -> Answer:
        """The answer to one request; never raises."""
        try:
            if version and version != self._model.version.encode():
                name = version[:100].decode("utf-8", "replace")
                message = f"version {name!r} is not served; {self._model.version} is"
                raise BadRequest(404, "unknown_version", message)
            if op == OP_INFER:
                return inference.infer(self._model, body, header, Asker(user, self._regions))
            if op == OP_RPC_INFER:
                return rpc.infer(self._model, body, Asker(user, self._regions))
            if op in (OP_RPC_METADATA, OP_RPC_READY):
                return self._about(op, body)
            known = {OP_METADATA: self._metadata, OP_READY: self._ready}
            return Answer(200, NO_HEADER, [known[op]])
        except BadRequest as refused:
            return inference.error(refused)
        except Exception as failure:  # noqa: BLE001 - whatever the runtime throws, the client gets an answer
            traceback.print_exc(file=sys.stderr)
            end = fatal.why(failure)
            if end:
                sys.stderr.write(f"{end}\n")
                sys.stderr.flush()
                os._exit(fatal.EXIT)  # the request inside is asked again, elsewhere
            text = f"{type(failure).__name__}: {failure}"[:500]
            return inference.error(BadRequest(500, "inference_failed", text))

    def _about(self, op: int, body: bytearray | memoryview) -> Answer:
        """Raises BadRequest; a model that is not here is not ready, and that is no error."""
        name, version = rpc.named(body)
        if op == OP_RPC_METADATA:
            rpc.check(self._model, name, version)
            return Answer(200, NO_HEADER, [self._rpc_metadata])
        here = name == self._model.name and version in ("", self._model.version)
        return Answer(200, NO_HEADER, [rpc.ready(here)])


class _Sender:
    """Answers on one connection; large ones in memory that is used again for the next."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._memory: mmap.mmap | None = None

    def send(self, answer: Answer, in_memory: bool) -> None:
        """Raises OSError."""
        table = b"".join(WRITE.pack(number, offset, len(data)) for number, offset, data in answer.writes)
        parts = [table, *(data for _, _, data in answer.writes), *answer.body]
        total = sum(map(len, parts))
        flags = FLAG_NON_FINITE if answer.non_finite else 0
        if in_memory and total >= LARGE_BYTES:
            head = ANSWER.pack(answer.status, flags | FLAG_IN_MEMORY, len(answer.writes), answer.header, total)
            self._send_in_memory(head, parts, total)
            return
        head = ANSWER.pack(answer.status, flags, len(answer.writes), answer.header, total)
        if total <= SMALL_BYTES:
            self._connection.sendall(b"".join((head, *parts)))
            return
        for part in (head, *parts):
            self._connection.sendall(part)

    def _send_in_memory(self, head: bytes, parts: list[bytes | memoryview], total: int) -> None:
        descriptors = []
        if self._memory is None or not total <= len(self._memory) <= max(KEEP_BYTES, 4 * total):
            descriptor, self._memory = make_memory(1 << (total - 1).bit_length())
            descriptors.append(descriptor)
        at = 0
        for part in parts:
            self._memory[at : at + len(part)] = part
            at += len(part)
        try:
            socket.send_fds(self._connection, [head], descriptors)
        finally:
            close_all(descriptors)
