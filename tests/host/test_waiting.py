"""How long requests wait, and how many: to the moment, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from interlock_agent.config import Unit
from interlock_agent.host.adapters.fronts import _of_front
from interlock_agent.host.front.router import Limits, Router
from interlock_agent.host.front.sharing import Channel
from interlock_agent.host.front.upstream import Exchange, Upstream
from interlock_agent.host.wire import NO_HEADER, OP_INFER
from tests.fakes.loop import VirtualLoop


class Asker:
    """Keeps what it was told, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, str]] = []  # loop time, what

    def answer(self, exchange: Exchange, status: int, head: bytes, header: int, body: Any) -> None:
        self.told.append((asyncio.get_running_loop().time(), str(status)))

    def fail(self, exchange: Exchange, status: int, code: str, message: str, retry_after: int = 0) -> None:
        assert (retry_after > 0) == (status == 503)
        self.told.append((asyncio.get_running_loop().time(), f"{status} {code}"))

    def registered(self, name: str, ours: bool) -> None:
        raise AssertionError


class Connection:
    """To a worker that answers when it is told to."""

    def __init__(self) -> None:
        self.sent: list[Exchange] = []

    def send(self, exchange: Exchange) -> None:
        self.sent.append(exchange)

    def close(self) -> None:
        pass


class Bed:
    """A router, and a worker that takes one request at a time."""

    def __init__(self, **limits: Any) -> None:
        self.router = Router(lambda report: None, Limits(**limits))
        self.connection = Connection()
        channel = Channel("", memory=None)  # type: ignore[arg-type]  # nothing is shared
        self.worker = Upstream("w", "m/1", 1, "", 1, self.router, channel, idle=[self.connection])  # type: ignore[list-item]

    def serve(self) -> None:
        self.router.switch(self.worker, None, drain=False)

    def ask(self, timeout_s: float | None = None) -> tuple[Asker, Exchange]:
        now, asker = asyncio.get_running_loop().time(), Asker()
        exchange = Exchange(asker, OP_INFER, b"", NO_HEADER, b"body", now)
        exchange.deadline = 0.0 if timeout_s is None else now + timeout_s
        self.router.submit(exchange)
        return asker, exchange

    def answer(self) -> None:
        """What is inside is answered."""
        (exchange,) = self.worker.busy
        self.worker.idle.append(self.worker.busy.pop(exchange))
        self.router.answered(self.worker, exchange, 200, 0, NO_HEADER, b"{}")


def virtually(story: Callable[[], Awaitable[None]]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.close()


def test_a_deadline_in_the_queue_is_kept_and_no_worker_sees_the_request() -> None:
    async def story() -> None:
        bed = Bed()
        bed.serve()
        first, _ = bed.ask()
        late, exchange = bed.ask(1.25)
        patient, _ = bed.ask(9.0)
        await asyncio.sleep(2.0)
        assert late.told == [(pytest.approx(1.25), "504 deadline_exceeded")]
        bed.answer()
        bed.answer()
        assert exchange not in bed.connection.sent
        assert [told[0][1] for told in (first.told, patient.told)] == ["200", "200"]
        await asyncio.sleep(20.0)  # the deadline of what was answered means nothing
        assert len(patient.told) == 1

    virtually(story)


def test_a_deadline_inside_a_worker_is_kept_and_its_answer_dropped() -> None:
    async def story() -> None:
        bed = Bed()
        bed.serve()
        late, _ = bed.ask(0.5)
        behind, _ = bed.ask()
        await asyncio.sleep(1.0)
        assert late.told == [(pytest.approx(0.5), "504 deadline_exceeded")]
        assert behind.told == [], "the worker computes on"
        bed.answer()
        bed.answer()
        assert len(late.told) == 1
        assert behind.told == [(pytest.approx(1.0), "200")]

    virtually(story)


def test_a_deadline_that_has_passed_is_told_at_once() -> None:
    async def story() -> None:
        bed = Bed()
        bed.serve()
        late, _ = bed.ask(0.0)
        exchange = Exchange(late, OP_INFER, b"", NO_HEADER, b"", asyncio.get_running_loop().time(), deadline=-1.0)
        bed.router.submit(exchange)
        assert [what for _, what in late.told] == ["504 deadline_exceeded"]
        assert len(bed.connection.sent) == 1, "0 seconds from 0 on are no deadline"

    virtually(story)


def test_so_many_wait_and_each_so_long() -> None:
    async def story() -> None:
        bed = Bed(queue_max=2, queue_s=3.0)
        bed.serve()
        bed.ask()
        second, _ = bed.ask()
        await asyncio.sleep(1.0)
        third, _ = bed.ask()
        fourth, _ = bed.ask()
        assert fourth.told == [(1.0, "503 overloaded")]
        await asyncio.sleep(2.5)
        assert second.told == [(pytest.approx(3.0), "503 overloaded")]
        assert third.told == []
        await asyncio.sleep(1.0)
        assert third.told == [(pytest.approx(4.0), "503 overloaded")]
        assert bed.worker.counters["refused"] == 3

    virtually(story)


def test_who_goes_leaves_the_queue() -> None:
    async def story() -> None:
        bed = Bed(queue_max=1)
        bed.serve()
        bed.ask()
        gone, exchange = bed.ask(5.0)
        bed.router.cancel(exchange)
        other, _ = bed.ask()
        bed.answer()
        bed.answer()
        await asyncio.sleep(10.0)
        assert gone.told == []
        assert [what for _, what in other.told] == ["200"]

    virtually(story)


def test_without_a_worker_it_is_the_hosts_limit_and_an_announced_gap_is_longer() -> None:
    async def story() -> None:
        bed = Bed(no_worker_s=10.0, queue_s=2.0)
        alone, _ = bed.ask()
        await asyncio.sleep(11.0)
        assert alone.told == [(pytest.approx(10.0), "503 no_live_worker")]
        bed.router.without_until(20.0, 15.0)  # at 31
        bed.router.switch(None, None, drain=False)
        patient, _ = bed.ask()
        await asyncio.sleep(25.0)
        assert patient.told == [(pytest.approx(31.0), "503 no_live_worker")]

    virtually(story)


def test_who_has_waited_for_a_worker_then_waits_for_its_turn() -> None:
    async def story() -> None:
        bed = Bed(no_worker_s=10.0, queue_s=2.0)
        first, _ = bed.ask()
        second, _ = bed.ask()
        await asyncio.sleep(9.0)
        bed.serve()
        await asyncio.sleep(1.5)
        assert second.told == [], "not at once, after nine seconds"
        await asyncio.sleep(1.0)
        assert second.told == [(pytest.approx(11.0), "503 overloaded")]
        bed.answer()
        assert [what for _, what in first.told] == ["200"]

    virtually(story)


def test_a_queue_of_nobody() -> None:
    async def story() -> None:
        bed = Bed(queue_max=0)
        bed.serve()
        bed.ask()
        other, _ = bed.ask()
        assert [what for _, what in other.told] == ["503 overloaded"]

    virtually(story)


def test_a_unit_without_settings_of_its_own_tells_the_front_nothing() -> None:
    """A front that is told anything new is replaced: the agent of a next version must not do so."""
    assert _of_front(Unit().options()) == {}
    told = _of_front(Unit.model_validate({"queue_max": 5, "queue_s": 2.5}).options())
    assert told == {"queue": {"max": 5, "s": 2.5}}
