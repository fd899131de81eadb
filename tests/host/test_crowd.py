"""As many connections as may be: who makes place, and who is told to come again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from interlock_agent.host.front import service
from interlock_agent.host.front.client import Client
from tests.host.rig import until
from tests.host.test_drain import Front

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Crowd:
    """Connects clients to a front."""

    def __init__(self, front: Front) -> None:
        self.front, self._open = front, contextlib.ExitStack()

    async def connect(self) -> tuple[socket.socket, Client]:
        ours, theirs = socket.socketpair()
        self._open.enter_context(ours)
        ours.setblocking(False)
        client = Client(self.front)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: client, theirs)
        return ours, client

    async def end(self, clients: list[Client]) -> None:
        self._open.close()
        await until(lambda: not any(client._transport for client in clients))


@pytest.fixture
async def crowd(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crowd]:
    monkeypatch.setattr(service, "MAX_CLIENTS", 2)
    pair = socket.socketpair()
    yield Crowd(Front(pair))
    for one in pair:
        one.close()


async def answer(connection: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 4096), 30)


async def test_one_that_has_asked_nothing_for_long_makes_place(crowd: Crowd) -> None:
    (first, one), (_, two) = await crowd.connect(), await crowd.connect()
    one._progress -= service.IDLE_S + 1
    third, three = await crowd.connect()
    assert await answer(first) == b"", "its connection ended"
    await asyncio.get_running_loop().sock_sendall(third, LIVE)
    assert (await answer(third)).startswith(b"HTTP/1.1 200")
    await crowd.end([one, two, three])


async def test_where_all_have_asked_lately_the_next_is_told_and_the_many_after_it_are_not(crowd: Crowd) -> None:
    clients = []
    for number in range(4):
        connection, client = await crowd.connect()
        clients.append(client)
        if number >= 2:
            assert (await answer(connection)).startswith(b"HTTP/1.1 503")
    connection, client = await crowd.connect()
    assert await answer(connection) == b"", "at once: its descriptor is needed"
    await crowd.end([*clients, client])
