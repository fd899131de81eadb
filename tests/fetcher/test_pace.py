"""Endless data and slow-loris, on the metadata and on the payload path: broken off, and told as the network's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from interlock_agent.fetcher import http, pace
from interlock_agent.fetcher.http import Server
from interlock_shared.errors import Unreachable, Untrusted

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
Answer = Callable[[socket.socket, threading.Event], None]


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.recv(65536)
                try:
                    answer(peer, over)
                except OSError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def drip(peer: socket.socket, over: threading.Event, before: bytes = b"") -> None:
    peer.sendall(before)
    while not over.wait(0.01):
        peer.sendall(b"x")


def dripping_head(peer: socket.socket, over: threading.Event) -> None:
    drip(peer, over, b"HTTP/1.1 200 OK\r\nX-")


def dripping_body(peer: socket.socket, over: threading.Event) -> None:
    drip(peer, over, HEAD % 1_000_000)


def endless(peer: socket.socket, over: threading.Event) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not over.is_set():
        peer.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def endless_head(peer: socket.socket, over: threading.Event) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\n")
    while not over.is_set():
        peer.sendall(b"X-A: " + b"a" * 60_000 + b"\r\n")


def metadata(server: Server) -> object:
    return server.metadata("timestamp.json", 16_384)


def payload(server: Server) -> object:
    return server.segment("0" * 64, 1_000_000, lambda piece: None)


@pytest.mark.parametrize("what", [metadata, payload])
@pytest.mark.parametrize("answer", [dripping_head, dripping_body, endless, endless_head])
def test_a_peer_that_never_ends(
    answer: Answer, what: Callable[[Server], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "GRACE_S", 0.15)
    monkeypatch.setattr(http, "RESUMES", 0)
    with answering(answer) as url:
        server = Server(url)
        with pytest.raises((Unreachable, Untrusted)) as refused:
            what(server)
        server.close()
    slow = answer in (dripping_head, dripping_body)
    assert isinstance(refused.value, Unreachable) or not slow, "it is the network's fault, and tried again"
    assert ("too slow" in refused.value.message) is slow


def test_what_is_slow_and_moves_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "GRACE_S", 0.05)
    monkeypatch.setattr(pace, "BYTES_PER_S", 1000.0)

    def steady(peer: socket.socket, over: threading.Event) -> None:
        peer.sendall(HEAD % 2000)
        for _ in range(20):
            over.wait(0.02)
            peer.sendall(b"x" * 100)

    with answering(steady) as url:
        server = Server(url)
        assert server.get("/x", 5000) == b"x" * 2000
        server.close()
