"""HTTP/1.1 requests out of a stream of bytes, strictly (RFC 9112); bodies are bytes and nothing more.

Rules of the file:
- Pure: bytes in, requests out; the same requests however the stream is split. No I/O, no clock.
- What is ambiguous is refused (both lengths, two lengths, a folded header, a bare line feed, a space before the
  colon): a message that two parties read differently is how requests are smuggled.
- A large body of known length has memory made for it at once, into which the stream can be read directly (`space`).
- Every size has a limit, and is checked before memory is spent. A large body that comes in chunks counts as one of
  known length does.
- After `Malformed` the stream cannot be trusted: answer, close.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlock_agent.host.wire import LARGE_BYTES

MAX_HEAD_BYTES = 32 * 1024  # request line and headers; clients of inference send a few hundred bytes
MAX_HEADERS = 100
MAX_LINE_BYTES = 256  # a chunk's size line with its extensions
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class Malformed(Exception):
    """The stream is no HTTP that we take. `status` and `code` are for the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Request:
    """One request. `headers` has lower-case names; equal names are joined by a comma."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool
    old: bool  # HTTP/1.0
    body: Any = b""  # bytes, a bytearray, or what was made for a large one


class Parser:
    """Feed it bytes, then take requests with `next` until there is none. `make(length)` gives something with a `view`
    of that many bytes, for large bodies; `admit` sees a request before its body is taken. Their errors are `next`'s."""

    def __init__(
        self,
        max_body: int,
        make: Callable[[int], Any] | None = None,
        admit: Callable[[Request], None] | None = None,
    ) -> None:
        self._max_body, self._make, self._admit = max_body, make, admit
        self._made: Any = None
        self._room: Any = None  # memory for a chunked body, whose length nobody knows: counted, not used
        self._view = memoryview(b"")  # what is still to be filled of it
        self._buffer = bytearray()
        self._request: Request | None = None  # its head is complete, its body is not
        self._body = bytearray()
        self._left = 0  # bytes of the body, or of the chunk, to come
        self._state = self._head
        self._scanned = 0  # of the buffer, without finding the end of the head
        self._trailers = 0
        self.wants_continue = False  # the client waits for "100 Continue" before it sends the body

    @property
    def idle(self) -> bool:
        """Nothing has been begun: no byte of a next request is here."""
        return self._request is None and not self._buffer

    @property
    def in_body(self) -> bool:
        """The head is complete and the body is awaited."""
        return self._request is not None

    @property
    def pending(self) -> int:
        """Bytes that wait in the buffer."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """More of the stream."""
        self._buffer += data

    @property
    def space(self) -> memoryview | None:
        """Where the next bytes of the stream may go instead of into `feed`; then `filled` says how many have."""
        return self._view if self._view and not self._buffer else None

    def forget(self) -> None:
        """The stream has ended: what was begun needs no memory any more."""
        self._made, self._view, self._room = None, memoryview(b""), None
        self._buffer, self._body = bytearray(), bytearray()

    def filled(self, size: int) -> None:
        """So many bytes of the stream are in `space`."""
        self._view, self.wants_continue = self._view[size:], False

    def next(self) -> Request | None:
        """The next whole request, None when more bytes are needed. Raises Malformed."""
        while True:
            done = self._state()
            if done is None:
                return None
            if done:
                request, self._request = self._request, None
                assert request is not None
                request.body, self._body = self._body if self._made is None else self._made, bytearray()
                self._made = self._room = None
                self._state, self._trailers, self.wants_continue = self._head, 0, False
                return request

    # A state returns None (more bytes are needed), False (go on), True (a request is complete).

    def _head(self) -> bool | None:
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # RFC 9112, 2.2: empty lines before a request are ignored
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end < 0:
            self._scanned = len(buffer)
            if len(buffer) > MAX_HEAD_BYTES:
                raise Malformed(431, "headers_too_large", f"request line and headers exceed {MAX_HEAD_BYTES} bytes")
            return None
        self._scanned = 0
        if end > MAX_HEAD_BYTES:
            raise Malformed(431, "headers_too_large", f"request line and headers exceed {MAX_HEAD_BYTES} bytes")
        head = bytes(buffer[:end])
        del buffer[: end + 4]
        self._request = _parse_head(head)
        if self._admit is not None:
            self._admit(self._request)
        return self._begin_body(self._request)

    def _begin_body(self, request: Request) -> bool:
        headers = request.headers
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if coding is not None and length is not None:
            raise Malformed(400, "bad_framing", "both Transfer-Encoding and Content-Length")
        if coding is not None:
            if coding.lower() != b"chunked":
                raise Malformed(501, "bad_framing", "the only transfer coding taken is chunked")
            self._state = self._chunk_size
        elif length is not None:
            if not _DIGITS.fullmatch(length):
                raise Malformed(400, "bad_framing", "Content-Length is not one number")
            self._left, self._state = int(length), self._whole
            self._limit(self._left)
            if not self._left:
                return True
            if self._make is not None and self._left >= LARGE_BYTES:
                self._made = self._make(self._left)
                self._view, self._state = self._made.view, self._direct
        else:
            return True
        expect = headers.get(b"expect")
        if expect is not None:
            if expect.lower() != b"100-continue":
                raise Malformed(417, "bad_expectation", "the only expectation met is 100-continue")
            self.wants_continue = not self._buffer
        return False

    def _limit(self, size: int) -> None:
        if size > self._max_body:
            raise Malformed(413, "body_too_large", f"a body of {size} bytes exceeds {self._max_body}")

    def _take(self) -> bool:
        """Move what is there of the `_left` bytes into the body; whether all of them are."""
        buffer, here = self._buffer, len(self._buffer)
        if not here:
            return not self._left
        self.wants_continue = False
        if here > self._left:
            self._body += memoryview(buffer)[: self._left]
            del buffer[: self._left]
            self._left = 0
        elif self._body:
            self._body += buffer
            buffer.clear()
            self._left -= here
        else:  # the usual case: no copy
            self._body, self._buffer = buffer, self._body
            self._left -= here
        return not self._left

    def _whole(self) -> bool | None:
        return True if self._take() else None

    def _direct(self) -> bool | None:
        buffer = self._buffer
        if buffer and self._view:
            self.wants_continue = False
            start = buffer[: len(self._view)]
            self._view[: len(start)] = start
            self._view = self._view[len(start) :]
            del buffer[: len(start)]
        return None if self._view else True

    def _line(self, limit: int) -> bytes | None:
        end = self._buffer.find(b"\r\n")
        if end > limit or (end < 0 and len(self._buffer) > limit + 1):
            raise Malformed(400, "bad_framing", "a line of the chunked body is too long")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _chunk_size(self) -> bool | None:
        line = self._line(MAX_LINE_BYTES)
        if line is None:
            return None
        self.wants_continue = False
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise Malformed(400, "bad_framing", "a chunk does not begin with its size")
        self._left = int(match[1], 16)
        self._grow(len(self._body) + self._left)
        self._state = self._chunk_data if self._left else self._trailer
        return False

    def _grow(self, size: int) -> None:
        self._limit(size)
        if self._make is not None and size >= max(LARGE_BYTES, 0 if self._room is None else len(self._room) + 1):
            self._room = None
            self._room = self._make(min(2 * size, self._max_body))

    def _chunk_data(self) -> bool | None:
        if not self._take():
            return None
        self._state = self._chunk_end
        return False

    def _chunk_end(self) -> bool | None:
        if len(self._buffer) < 2:
            return None
        if self._buffer[:2] != b"\r\n":
            raise Malformed(400, "bad_framing", "a chunk is longer than its size")
        del self._buffer[:2]
        self._state = self._chunk_size
        return False

    def _trailer(self) -> bool | None:
        line = self._line(MAX_HEAD_BYTES)
        if line is None:
            return None
        if not line:
            return True
        self._trailers += 1
        if self._trailers > MAX_HEADERS or not _HEADER.fullmatch(line):
            raise Malformed(400, "bad_framing", "a trailer is malformed")
        return False


def _parse_head(head: bytes) -> Request:
    first, *lines = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        if re.fullmatch(rb"[^ ]+ [^ ]+ HTTP/(?!1\.[01]$)[0-9.]+", first):
            raise Malformed(505, "bad_version", "only HTTP/1.0 and HTTP/1.1 are spoken")
        raise Malformed(400, "bad_request_line", "the request line is malformed")
    if len(lines) > MAX_HEADERS:
        raise Malformed(431, "headers_too_large", f"more than {MAX_HEADERS} headers")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise Malformed(400, "bad_header", "a header is malformed")
        name = field[1].lower()
        if name in headers:
            if name in (b"content-length", b"transfer-encoding", b"host"):
                raise Malformed(400, "bad_framing", f"{name.decode()} is there twice")
            headers[name] += b", " + field[2]
        else:
            headers[name] = field[2]
    new = match[3] == b"1"
    if new and b"host" not in headers:
        raise Malformed(400, "bad_header", "HTTP/1.1 demands a Host header")
    if not new and b"transfer-encoding" in headers:
        raise Malformed(400, "bad_framing", "HTTP/1.0 knows no transfer coding")
    options = {option.strip() for option in headers.get(b"connection", b"").lower().split(b",")}
    keep_alive = b"close" not in options if new else b"keep-alive" in options
    return Request(match[1], match[2], headers, keep_alive, not new)
