"""What passes between front and worker, and between the host and both: the whole of it.

Rules of the file:
- Standard library only, no asyncio: a worker on a foreign Python imports it.
- Front -> worker, over a Unix stream socket, one request at a time a connection: `REQUEST` header, version (UTF-8),
  body. Worker -> front: `ANSWER` header, body. Integers are big-endian. Bodies pass as they came: the front does not
  parse them. As many connections as the worker has threads; the front queues the rest.
- A large body is not sent but lies in memory of the sender's own (`make_memory`), whose descriptor comes beside the
  header: of a request always, of an answer when it is new. An answer's is used again for the next on that connection:
  the front is done with it, or has a copy, before it asks again. Only who says `TAKES_MEMORY` gets answers so.
- Memory that applications share: `OP_HOLD` gives the worker a region, with its descriptor beside the header,
  `OP_DROP` takes it away. A worker reads regions, and never writes into one: what belongs there comes with the answer
  (`writes` times `WRITE`, their data, then the body), and the front writes it. So nothing of a worker that was given
  up, and computes on, ever reaches an application's memory.
- Host <-> front and host <-> worker, over a socket pair that the child inherits: JSON frames, 4-byte length and a
  UTF-8 object, as on the control socket. The end of that stream is the end of the child.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import resource
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
OP_RPC_INFER = 6  # the same three in protocol buffers: body and answer are messages, an error is JSON all the same
OP_RPC_METADATA = 7
OP_RPC_READY = 8
TAKES_MEMORY = 0x80  # added to the op
INFERENCES = frozenset({OP_INFER, OP_RPC_INFER})

FLAG_NON_FINITE = 1  # the answer holds NaN or Inf where the signature does not allow it
FLAG_IN_MEMORY = 2  # what follows the header lies in memory

LARGE_BYTES = 64 * 1024  # from here on a copy through a socket costs more than memory that both map
DESCRIPTORS = 8192  # 1,024 clients with a large body each, 512 regions, and room
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

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


def read_with_descriptors(connection: socket.socket, size: int) -> tuple[bytearray, list[int]]:
    """That many bytes, and the descriptors that came beside the first of them; they are the caller's. Raises EOFError
    at the end of the stream, OSError when a descriptor was lost."""
    data, descriptors, flags, _ = socket.recv_fds(connection, size, 2)
    try:
        if not data:
            raise EOFError("end of stream")
        check_whole(flags)
        return bytearray(data) + read_exactly(connection, size - len(data)), descriptors
    except BaseException:
        close_all(descriptors)
        raise


def check_whole(flags: int) -> None:
    """Of a `recv_fds`. Raises OSError when descriptors did not fit: this process has as many as it may."""
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def allow_descriptors(number: int = DESCRIPTORS) -> None:
    """As many open files as that, where the system lets us: a connection, a region and a large body have one each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def close_all(descriptors: list[int]) -> None:
    """Close them, whatever they are."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def make_memory(size: int) -> tuple[int, mmap.mmap]:
    """Memory that others may map too: its descriptor, and it. It is sealed: nobody can shorten it under a reader.
    Raises OSError."""
    descriptor = os.memfd_create("interlock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def map_memory(descriptor: int) -> mmap.mmap:
    """What the other side made, to be read; the descriptor is closed. Raises OSError, and ValueError for what is not
    sealed."""
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("memory that is not sealed")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def send_document(connection: socket.socket, document: dict[str, Any]) -> None:
    """One JSON frame, blocking."""
    connection.sendall(encode(document))


def read_document(connection: socket.socket) -> dict[str, Any]:
    """The next JSON frame, blocking. Raises EOFError at the end of the stream, ValueError on a bad frame."""
    (length,) = LENGTH.unpack(read_exactly(connection, LENGTH.size))
    if length > MAX_DOCUMENT_BYTES:
        raise ValueError(f"frame of {length} bytes is above {MAX_DOCUMENT_BYTES}")
    return decode(read_exactly(connection, length))
