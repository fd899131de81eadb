"""The worker's socket: a thread a connection, a request at a time a connection.

Rules of the file:
- Threads and blocking sockets: inference releases the interpreter lock, and one thread does a request from its first
  byte to its last without handing it over.
- A failing request is an answer; the end of the worker is what it cannot get over (fatal.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import traceback

from interlock_agent.host.wire import (
    ANSWER,
    FLAG_NON_FINITE,
    MAX_BODY_BYTES,
    NO_HEADER,
    OP_DROP,
    OP_HOLD,
    OP_INFER,
    OP_METADATA,
    OP_READY,
    REGION,
    REQUEST,
    WRITE,
    read_exactly,
)
from interlock_agent.host.worker import fatal, inference
from interlock_agent.host.worker.errors import BadRequest
from interlock_agent.host.worker.inference import Answer, Asker, Model
from interlock_agent.host.worker.memory import Region, Regions

BACKLOG = 128


class Serving:
    """Answers requests for one model."""

    def __init__(self, model: Model, platform: str) -> None:
        self._model = model
        self._metadata = json.dumps(model.metadata(platform)).encode()
        self._ready = json.dumps({"name": model.name, "ready": True}).encode()
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
        with connection, contextlib.suppress(EOFError, OSError):
            while True:
                op, user, length, header, size = REQUEST.unpack(read_exactly(connection, REQUEST.size))
                if size > 4 * MAX_BODY_BYTES:  # the front has a limit of its own; this one only bounds nonsense
                    return
                version = read_exactly(connection, length)
                body = read_exactly(connection, size)
                if op in (OP_HOLD, OP_DROP):
                    self._share(connection, op, user, body)
                    continue
                _send(connection, self.answer(op, bytes(version), header, body, user))

    def _share(self, connection: socket.socket, op: int, user: int, body: bytearray) -> None:
        """The front gives a region, or takes it away; answered, so that it knows when that holds."""
        number, start, size = REGION.unpack_from(body)
        name = body[REGION.size :].decode()
        if op == OP_HOLD:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            self._regions.hold(user, Region(number, name, start, size, descriptors[0]))
        else:
            self._regions.drop(user, name, number)
        connection.sendall(ANSWER.pack(200, 0, 0, NO_HEADER, 0))

    def answer(self, op: int, version: bytes, header: int, body: bytearray, user: int) -> Answer:
        """The answer to one request; never raises."""
        try:
            if version and version != self._model.version.encode():
                name = version[:100].decode("utf-8", "replace")
                message = f"version {name!r} is not served; {self._model.version} is"
                raise BadRequest(404, "unknown_version", message)
            if op == OP_INFER:
                return inference.infer(self._model, body, header, Asker(user, self._regions))
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


def _send(connection: socket.socket, answer: Answer) -> None:
    table = b"".join(WRITE.pack(number, offset, len(data)) for number, offset, data in answer.writes)
    parts = [table, *(data for _, _, data in answer.writes), *answer.body]
    total = sum(map(len, parts))
    flags = FLAG_NON_FINITE if answer.non_finite else 0
    head = ANSWER.pack(answer.status, flags, len(answer.writes), answer.header, total)
    if total <= 16384:
        connection.sendall(b"".join((head, *parts)))
        return
    for part in (head, *parts):
        connection.sendall(part)
