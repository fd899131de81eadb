"""Answers that nobody reads: so much of them is kept, and no more."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any

import pytest

from interlock_agent.host.front import client as fronts_client
from interlock_agent.host.front.client import Client
from tests.host.rig import until
from tests.host.test_drain import Front

ASKED = b"GET /v2/models/m HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"x" * (8 << 20)


def settled(client: Client) -> bool:
    return bool(client._unread) or client._transport is None


class Answering(Front):
    """Gives a large answer at once."""

    def route(self, request: Any) -> Any:
        return 200, {"large": BODY.decode()}, b""


async def test_clients_that_do_not_read_are_cut_before_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts_client, "MAX_UNREAD_BYTES", 2 * len(BODY))
    loop, pair = asyncio.get_running_loop(), socket.socketpair()
    front = Answering(pair)
    made: list[socket.socket] = []
    clients: list[Client] = []
    for _ in range(3):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        _, client = await loop.connect_accepted_socket(lambda: Client(front), theirs)
        await loop.sock_sendall(ours, ASKED)
        made.append(ours)
        clients.append(client)
        await until(partial(settled, client), "it was answered, or cut")
    assert [client._transport is None for client in clients] == [False, False, True], "no room for a third"
    assert front.unread > len(BODY)
    got = 0
    while got < len(BODY):
        got += len(await loop.sock_recv(made[0], 1 << 20))
    await until(lambda: not clients[0]._unread, "what was read is kept no longer")
    for one in made:
        one.close()
    await until(lambda: not any(client._transport for client in clients), "all are gone")
    assert front.unread == 0
    for one in pair:
        one.close()
