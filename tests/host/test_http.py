"""HTTP requests out of bytes: the same however the bytes are split, and nothing ambiguous is taken."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock_agent.host.front import http
from interlock_agent.host.front.http import MAX_HEAD_BYTES, MAX_HEADERS, Malformed, Parser


def parse(*pieces: bytes, max_body: int = 1 << 20) -> list[tuple[Any, ...]]:
    """Requests, and at the end the refusal if there was one."""
    parser = Parser(max_body)
    found: list[tuple[Any, ...]] = []
    for piece in pieces:
        parser.feed(piece)
        try:
            while (request := parser.next()) is not None:
                found.append((request.method, request.target, bytes(request.body), request.keep_alive))
        except Malformed as malformed:
            found.append((malformed.status, malformed.code))
            return found
    return found


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


STREAM = (
    head("GET /v2 HTTP/1.1", "Host: x")
    + head("POST /a HTTP/1.1", "Host: x", "Content-Length: 5")
    + b"hello"
    + b"\r\n"
    + head("POST /b HTTP/1.1", "host: x", "Transfer-Encoding: chunked")
    + b"3\r\nabc\r\n0a;ext=1\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"
    + head("POST /c HTTP/1.1", "HOST:x", "Content-Length: 0", "Connection: close")
)
REQUESTS = [
    (b"GET", b"/v2", b"", True),
    (b"POST", b"/a", b"hello", True),
    (b"POST", b"/b", b"abc0123456789", True),
    (b"POST", b"/c", b"", False),
]


def test_a_stream_of_requests() -> None:
    assert parse(STREAM) == REQUESTS
    assert parse(*[STREAM[i : i + 1] for i in range(len(STREAM))]) == REQUESTS


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_split_gives_the_same_requests(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parse(*[STREAM[a:b] for a, b in pairwise(edges)]) == REQUESTS


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=5), st.integers(1, 64))
def test_any_bodies_come_out_as_they_went_in(bodies: list[tuple[bytes, bool]], step: int) -> None:
    stream = b""
    for body, chunked in bodies:
        if chunked:
            parts = [body[i : i + 7] for i in range(0, len(body), 7)]
            data = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
            stream += head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: Chunked") + data
        else:
            stream += head("POST / HTTP/1.1", "Host: x", f"Content-Length: {len(body)}") + body
    found = parse(*[stream[i : i + step] for i in range(0, len(stream), step)])
    assert [item[2] for item in found] == [body for body, _ in bodies]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_noise_is_refused_or_awaited_but_never_breaks_the_parser(noise: bytes, step: int) -> None:
    whole = parse(noise)
    assert parse(*[noise[i : i + step] for i in range(0, len(noise), step)]) == whole


H = "Host: x"
MALFORMED = [
    (head("GET /"), 400, "bad_request_line"),
    (head("GET  / HTTP/1.1", H), 400, "bad_request_line"),
    (head("GET /\x7f HTTP/1.1", H), 400, "bad_request_line"),
    (head("G@T / HTTP/1.1", H), 400, "bad_request_line"),
    (head("GET / HTTP/2.0", H), 505, "bad_version"),
    (head("GET / HTTP/1.1"), 400, "bad_header"),
    (head("GET / HTTP/1.1", H, H), 400, "bad_framing"),
    (head("GET / HTTP/1.1", H, "X : y"), 400, "bad_header"),
    (head("GET / HTTP/1.1", H, " folded: y"), 400, "bad_header"),
    (head("GET / HTTP/1.1", H, "X: a\x00b"), 400, "bad_header"),
    (head("GET / HTTP/1.1", H, "X: a\nY: b"), 400, "bad_header"),
    (head("GET / HTTP/1.1", H, "noColon"), 400, "bad_header"),
    (head("POST / HTTP/1.1", H, "Content-Length: 1", "Content-Length: 2"), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Content-Length: 1, 1"), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Content-Length: -1"), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Content-Length: +1"), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Content-Length: 0x1"), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Content-Length: " + "9" * 30), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Content-Length: 1", "Transfer-Encoding: chunked"), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: gzip, chunked"), 501, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked", "Transfer-Encoding: x"), 400, "bad_framing"),
    (head("POST / HTTP/1.0", "Transfer-Encoding: chunked"), 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Content-Length: 2000000"), 413, "body_too_large"),
    (head("POST / HTTP/1.1", H, "Expect: miracles", "Content-Length: 1"), 417, "bad_expectation"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"g\r\n", 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"-1\r\n", 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"2\r\nabc\r\n", 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"fffffff\r\n", 413, "body_too_large"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"1" * 400, 400, "bad_framing"),
    (head("POST / HTTP/1.1", H, "Transfer-Encoding: chunked") + b"0\r\nbad trailer\r\n", 400, "bad_framing"),
    (head("GET / HTTP/1.1", H, "X: " + "y" * MAX_HEAD_BYTES), 431, "headers_too_large"),
    (b"GET /" + b"y" * (MAX_HEAD_BYTES + 1), 431, "headers_too_large"),
    (head("GET / HTTP/1.1", H, *[f"X{n}: y" for n in range(MAX_HEADERS)]), 431, "headers_too_large"),
]


@pytest.mark.parametrize(("stream", "status", "code"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_malformed_is_refused(stream: bytes, status: int, code: str) -> None:
    assert parse(stream) == [(status, code)]
    assert parse(*[stream[i : i + 3] for i in range(0, len(stream), 3)]) == [(status, code)]


def test_versions_and_keep_alive() -> None:
    assert parse(head("GET / HTTP/1.0")) == [(b"GET", b"/", b"", False)]
    assert parse(head("GET / HTTP/1.0", "Connection: Keep-Alive")) == [(b"GET", b"/", b"", True)]
    assert parse(head("GET / HTTP/1.1", H, "Connection: x, Close")) == [(b"GET", b"/", b"", False)]


def test_a_client_that_waits_for_continue_is_seen() -> None:
    parser = Parser(100)
    parser.feed(head("POST / HTTP/1.1", H, "Content-Length: 3", "Expect: 100-continue"))
    assert parser.next() is None
    assert parser.wants_continue
    parser.feed(b"abc")
    request = parser.next()
    assert request is not None
    assert request.body == b"abc"
    assert parser.idle
    assert not vars(parser)["wants_continue"]


class Made:
    """Memory for a large body."""

    def __init__(self, length: int) -> None:
        self.data = bytearray(length)
        self.view = memoryview(self.data)

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def __len__(self) -> int:
        return len(self.data)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30))
def test_large_bodies_are_read_to_where_they_belong(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "LARGE_BYTES", 5)
        parser, stream, found, made = Parser(1 << 20, Made), memoryview(STREAM), [], 0
        steps = iter(sizes)
        while True:
            while (request := parser.next()) is not None:
                found.append((request.method, request.target, bytes(request.body), request.keep_alive))
                made += isinstance(request.body, Made)
            if not stream:
                break
            space, size = parser.space, min(next(steps, 7), len(stream))
            if space is None:
                parser.feed(stream[:size])
            else:
                size = min(size, len(space))
                space[:size] = stream[:size]
                parser.filled(size)
            stream = stream[size:]
    assert (found, made) == (REQUESTS, 1)


def test_what_cannot_be_made_is_told() -> None:
    def full(length: int) -> Any:
        raise OSError(12, "Cannot allocate memory")

    parser = Parser(1 << 20, full)
    parser.feed(head("POST /a HTTP/1.1", "Host: x", "Content-Length: 100000"))
    with pytest.raises(OSError, match="Cannot allocate"):
        parser.next()


def test_what_comes_in_chunks_counts_as_what_has_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LARGE_BYTES", 1000)
    counted: list[int] = []

    def make(length: int) -> Any:
        counted.append(length)
        if length > 20_000:
            raise OSError(12, "Cannot allocate memory")
        return Made(length)

    parser = Parser(1 << 20, make)
    parser.feed(head("POST /a HTTP/1.1", "Host: x", "Transfer-Encoding: chunked"))
    with pytest.raises(OSError, match="Cannot allocate"):  # noqa: PT012 - one of them
        for _ in range(1000):
            parser.feed(b"64\r\n" + b"x" * 100 + b"\r\n")
            assert parser.next() is None
    assert counted == [2000, 4200, 8600, 17400, 35000], "before it is taken"
