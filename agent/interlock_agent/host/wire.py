"""What passes between front and worker, and between the host and both: the whole of it.

Rules of the file:
- Standard library only, no asyncio: a worker on a foreign Python imports it.
- Front -> worker, over a Unix stream socket, one request at a time a connection: `REQUEST` header, version (UTF-8),
  body. Worker -> front: `ANSWER` header, body. Integers are big-endian. Bodies pass as they came: the front does not
  parse them. As many connections as the worker has threads; the front queues the rest.
- Memory that applications share: `OP_HOLD` gives the worker a region, with its descriptor beside one more byte,
  `OP_DROP` takes it away. A worker reads regions, and never writes into one: what belongs there comes with the answer
  (`writes` times `WRITE`, their data, then the body), and the front writes it. So nothing of a worker that was given
  up, and computes on, ever reaches an application's memory.
- Host <-> front and host <-> worker, over a socket pair that the child inherits: JSON frames, 4-byte length and a
  UTF-8 object, as on the control socket. The end of that stream is the end of the child.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

# op, user who asks (NO_USER: not known), length of the version, length of the JSON part (NO_HEADER: all of the body),
# length of the body
REQUEST = struct.Struct(">BIHIQ")
# HTTP status, flags, writes, length of the JSON part (NO_HEADER: all of the body), length of all that follows
ANSWER = struct.Struct(">HBHIQ")
WRITE = struct.Struct(">QQQ")  # a region's number, offset within it, length
REGION = struct.Struct(">QQQ")  # number, offset within the file, length; the body of OP_HOLD, then the name (UTF-8)
NO_HEADER = 0xFFFFFFFF
NO_USER = 0xFFFFFFFF  # (uid_t) -1, nobody's

OP_INFER = 1
OP_METADATA = 2
OP_READY = 3
OP_HOLD = 4
OP_DROP = 5

FLAG_NON_FINITE = 1  # the answer holds NaN or Inf where the signature does not allow it

MAX_BODY_BYTES = 64 * 1024 * 1024  # of a request: a dozen uncompressed 1080p frames
MAX_ANSWER_BYTES = 256 * 1024 * 1024

MAX_DOCUMENT_BYTES = 16 * 1024 * 1024  # raw samples of a long gate are the largest thing that passes
LENGTH = struct.Struct(">I")


def encode(document: dict[str, Any]) -> bytes:
    """One JSON frame. Raises ValueError above MAX_DOCUMENT_BYTES."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"frame of {len(body)} bytes is above {MAX_DOCUMENT_BYTES}")
    return LENGTH.pack(len(body)) + body


def decode(body: bytes | bytearray) -> dict[str, Any]:
    """The object of a frame. Raises ValueError."""
    document = json.loads(bytes(body))
    if not isinstance(document, dict):
        raise ValueError("a frame holds one JSON object")
    return document


def read_exactly(connection: socket.socket, size: int) -> bytearray:
    """That many bytes. Raises EOFError at the end of the stream."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if not got:
            raise EOFError("end of stream")
        view = view[got:]
    return data


def send_document(connection: socket.socket, document: dict[str, Any]) -> None:
    """One JSON frame, blocking."""
    connection.sendall(encode(document))


def read_document(connection: socket.socket) -> dict[str, Any]:
    """The next JSON frame, blocking. Raises EOFError at the end of the stream, ValueError on a bad frame."""
    (length,) = LENGTH.unpack(read_exactly(connection, LENGTH.size))
    if length > MAX_DOCUMENT_BYTES:
        raise ValueError(f"frame of {length} bytes is above {MAX_DOCUMENT_BYTES}")
    return decode(read_exactly(connection, length))
