"""Whose process is at the other end: the kernel tells, and what it does not tell is nobody's."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from interlock_agent.host.front import peers
from interlock_agent.host.wire import NO_USER

pytestmark = pytest.mark.known_user

ME = os.getuid()


@pytest.fixture
def pair() -> Iterator[Callable[[int], tuple[socket.socket, socket.socket]]]:
    with contextlib.ExitStack() as stack:

        def connect(family: int) -> tuple[socket.socket, socket.socket]:
            host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
            listener = stack.enter_context(socket.create_server((host, 0), family=family))
            ours = stack.enter_context(socket.socket(family))
            ours.connect(listener.getsockname()[:2])
            theirs, _ = listener.accept()
            stack.enter_context(theirs)
            return ours, theirs

        yield connect


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernel_tells_whose_end_a_tcp_connection_has(pair: Any, family: int) -> None:
    try:
        ours, theirs = pair(family)
    except OSError:
        pytest.skip("no such loopback address here")
    assert peers.user(theirs) == ME
    ours.close()
    assert peers.user(theirs) == NO_USER, "what is left of a closed one is not root's"


def test_the_kernel_tells_whose_end_a_unix_connection_has() -> None:
    one, two = socket.socketpair()
    with one, two:
        assert peers.user(one) == ME


@pytest.mark.skipif(ME != 0, reason="only root may be somebody else")
def test_a_connection_of_another_user_is_theirs(pair: Any) -> None:
    os.seteuid(12345)
    try:
        _, theirs = pair(socket.AF_INET)
    finally:
        os.seteuid(0)
    assert peers.user(theirs) == 12345


def test_one_that_speaks_ipv4_over_a_socket_of_ipv6_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        try:
            ours = socket.socket(socket.AF_INET6)
            ours.connect(("::ffff:127.0.0.1", port))
        except OSError:
            pytest.skip("no IPv6 here")
        with ours:
            theirs, (host, number) = listener.accept()
            with theirs:
                assert peers.user(theirs) == ME
                assert peers.of_call(f"ipv4:{host}:{number}", f"127.0.0.1:{port}") == ME
                assert peers.of_call(f"ipv4:{host}:{number}", f"localhost:{port}") == ME
                assert peers.of_call(f"ipv4:{host}:{number}", "127.0.0.1:1") == NO_USER


def test_a_peer_that_the_kernel_does_not_know_is_nobody() -> None:
    for peer in ("unix:", "ipv4:127.0.0.1:x", "ipv6:%5B::1%5D:1", "ipv4:10.0.0.1:1", ""):
        assert peers.of_call(peer, "127.0.0.1:1") == NO_USER
