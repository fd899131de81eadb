"""A switch that comes while another one still waits for the requests inside the former worker."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.host.front.router import Limits, Router
from interlock_agent.host.front.service import Service
from interlock_agent.host.front.upstream import Exchange
from interlock_agent.host.wire import ANSWER, NO_HEADER, OP_READY, REQUEST
from tests.host.rig import until


class Client:
    """Who asked."""

    def __init__(self) -> None:
        self.got: list[int] = []

    def answer(self, exchange: Exchange, status: int, head: bytes, header: int, body: Any) -> None:
        self.got.append(status)

    def fail(self, exchange: Exchange, status: int, code: str, message: str, retry_after: int = 0) -> None:
        self.got.append(status)


class Front(Service):
    """A front without a host: its orders are given here."""

    def __init__(self, pair: tuple[socket.socket, socket.socket]) -> None:
        super().__init__(*pair)
        self.said: list[dict[str, Any]] = []
        self.router = Router(self._report, Limits())

    def _send(self, document: dict[str, Any]) -> None:
        self.said.append(document)

    async def switch(self, number: int, worker: str, path: Path, drain_s: float = 0.0) -> None:
        live = {"worker": worker, "release": f"m/{worker}", "generation": 1, "path": str(path), "connections": 1}
        await self._serve(number, {"live": live if worker else None, "standby": None, "drain_s": drain_s})

    def drained(self, number: int) -> bool:
        return any(said.get("re") == number and "drained" in said for said in self.said)


class Worker:
    """Answers when it may."""

    def __init__(self) -> None:
        self.inside, self.may = 0, asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readexactly(REQUEST.size)
                self.inside += 1
                await self.may.wait()
                writer.write(ANSWER.pack(200, 0, 0, NO_HEADER, 0))
        except asyncio.IncompleteReadError:
            writer.close()


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    pair = socket.socketpair()
    yield Front(pair)
    for one in pair:
        one.close()


@pytest.mark.parametrize("ends", ["in time", "never"])
async def test_what_is_inside_outlives_the_next_switch(front: Front, short_path: Path, ends: str) -> None:
    short_path.mkdir(parents=True, exist_ok=True)
    slow, quick = Worker(), Worker()
    quick.may.set()
    servers = [
        await asyncio.start_unix_server(worker.talk, str(short_path / name))
        for name, worker in (("slow", slow), ("quick", quick))
    ]
    client = Client()
    await front.switch(1, "slow", short_path / "slow")
    front.router.submit(Exchange(client, OP_READY, b"", NO_HEADER, b"", front.now()))  # type: ignore[arg-type]
    await until(lambda: slow.inside, "it is inside")
    await front.switch(2, "", short_path, drain_s=0.2 if ends == "never" else 30.0)  # makes room
    await front.switch(3, "", short_path)  # and the gap is over at once
    if ends == "in time":
        slow.may.set()
        await until(lambda: client.got, "answered by the worker that it was inside of")
    await until(lambda: front.drained(2), "nothing is left inside")
    await front.switch(4, "quick", short_path / "quick")
    await until(lambda: client.got, "answered, by whomever")
    assert client.got == [200]
    assert list(front._known) == ["quick"], "who has left is forgotten"
    slow.may.set()
    front._known["quick"].close()
    for server in servers:
        server.close()


class Upstream:
    """A worker that is not busy."""

    def __init__(self) -> None:
        self.worker, self.release = "w1", "m/1"
        self.idle, self.counters, self.sent = [1], {"refused": 0}, list[Exchange]()

    def send(self, exchange: Exchange, now: float) -> None:
        self.sent.append(exchange)


async def test_a_queue_that_moves_while_it_is_tidied_is_tidied_to_its_end(front: Front) -> None:
    router, live, clients = front.router, Upstream(), [Client() for _ in range(3)]
    now = front.now()
    first, second, third = (
        Exchange(one, OP_READY, b"", NO_HEADER, b"", now - 100.0)  # type: ignore[arg-type]
        for one in clients
    )
    for suspect in (first, second):  # they wait for their turn, beside a worker that has room
        suspect.deaths = 1
        router.submit(suspect)
    second.deadline = now - 1.0
    router.live, router._since = live, 0.0  # type: ignore[assignment]
    router._suspects = {third}
    refused = clients[0].fail

    def fail(*arguments: Any, **more: Any) -> None:
        refused(*arguments, **more)
        router.submit(third)  # the next one on that connection

    clients[0].fail = fail  # type: ignore[method-assign]
    router._ring()
    assert [one.got for one in clients] == [[503], [504], []]
    assert live.sent == [third]
