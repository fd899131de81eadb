"""The link: what is wanted is believed once, what happened is told until it is acknowledged."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from datetime import datetime, timezone
from typing import Any, cast

from securesystemslib.signer import CryptoSigner

from interlock_agent import link as links
from interlock_agent.core import time_floor
from interlock_agent.core.times import rfc3339
from interlock_agent.ports import Ports, Stored
from interlock_shared import canonical, trust
from interlock_shared.documents import Ack, Assignment, Desired
from interlock_shared.errors import Unreachable
from tests.agent.material import NEW
from tests.fakes.journal import FakeJournal, Memory
from tests.fakes.loop import EPOCH, VirtualClock, VirtualLoop

DEVICE = "press-7"
KEY, OTHER_KEY = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()


def at(seconds: float) -> str:
    return datetime.fromtimestamp(EPOCH + seconds, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017


def desired(counter: int, *, epoch: int = 1, device: str = DEVICE, key: CryptoSigner = KEY, ends: float = 900) -> bytes:
    wish = Assignment(version="1.1.0", manifest_sha256=NEW, assignment=f"w{counter}", rollout="r1")
    document = Desired(
        device=device, epoch=epoch, counter=counter, issued_at=at(0), expires_at=at(ends), units={"detector": wish}
    )
    return trust.seal(document, trust.DESIRED_TYPE, key)


class Broker:
    def __init__(self) -> None:
        self.connected = True
        self.breaks = False
        self.sent: list[tuple[str, dict[str, Any]]] = []

    async def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        if self.breaks:
            raise Unreachable("gone")
        self.sent.append((kind, {**json.loads(payload), "retain": retain}))

    def numbers(self) -> list[int]:
        return [document["number"] for kind, document in self.sent if kind == "event"]


class Fetcher:
    """Knows one director, and how often it was asked."""

    def __init__(self) -> None:
        self.key, self.epoch, self.refreshes, self.polled = KEY, 1, 0, 0
        self.document: bytes | None = None
        self.away = False
        self.meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def refresh(self) -> dict[str, Any]:
        self.refreshes += 1
        if self.away:
            raise Unreachable("away")
        public = self.key.public_key
        return {"director": {"epoch": self.epoch, "keys": {public.keyid: public.to_dict()}}}

    async def poll(self) -> bytes | None:
        self.polled += 1
        answer = self.document
        if self.meanwhile is not None:
            await self.meanwhile()
        return answer


class Engine:
    """What the link needs of one."""

    def __init__(self, journal: FakeJournal) -> None:
        self.device, self.stored, self.journal = DEVICE, Stored(), journal
        self.shared = self
        self.orders: list[dict[str, Assignment]] = []

    async def trust_moved(self, facts: dict[str, Any] | None) -> None:
        self.stored.meta.update(facts or {})

    async def desire(self, wanted: dict[str, Assignment], spread_s: float) -> None:
        del spread_s
        self.orders.append(wanted)


class World:
    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.journal = FakeJournal(Memory(), DEVICE)
        self.broker, self.fetcher, self.engine = Broker(), Fetcher(), Engine(self.journal)
        clock = VirtualClock(self.loop, random.Random("link"))
        ports = cast(Ports, type("P", (), {"clock": clock, "journal": self.journal, "fetcher": self.fetcher}))
        self.link = links.Link(ports, cast(Any, self.engine), self.broker, self.describe, 900.0)

    async def describe(self, number: int) -> dict[str, Any]:
        return {"number": number}

    def knows(self, key: CryptoSigner = KEY, epoch: int = 1) -> None:
        public = key.public_key
        self.engine.stored.meta["director"] = {"epoch": epoch, "keys": {public.keyid: public.to_dict()}}
        self.engine.stored.meta["signed_until"] = at(86_400)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.loop.run_until_complete(work)
        finally:
            self.loop.close()

    def refused(self) -> list[str]:
        entries = [json.loads(text) for _, text in self.journal.memory.outbox]
        return [entry["reason"] for entry in entries if entry["kind"] == "refused"]


def test_a_wish_is_believed_journaled_and_then_acted_upon() -> None:
    world = World()
    world.knows()

    async def story() -> None:
        await world.link.message("desired", desired(5))
        assert world.journal.memory.meta["desired_at"] == [1, 5]
        assert world.journal.memory.meta["clock_floor"] == [0, rfc3339(EPOCH)]
        assert [order["detector"].assignment for order in world.engine.orders] == ["w5"]
        for counter in (5, 4, 1):  # repeated, replayed, reordered
            await world.link.message("desired", desired(counter))
        assert len(world.engine.orders) == 1
        assert world.refused() == ["older"]
        await world.link.message("desired", desired(6))
        assert [order["detector"].assignment for order in world.engine.orders] == ["w5", "w6"]
        again = World()
        again.engine.stored.meta.update(world.journal.memory.meta)
        await again.link.resume()
        assert again.engine.orders[0]["detector"].assignment == "w6"
        again.loop.close()

    world.run(story())


def test_a_refusal_is_told_once_for_each_reason() -> None:
    world = World()
    world.knows()
    world.engine.stored.meta["desired_at"] = [1, 1]

    async def story() -> None:
        for _ in range(3):
            await world.link.message("desired", desired(5, device="press-8"))
            await world.link.message("desired", b"{")
            await world.link.message("desired", desired(5, ends=-1))
            await world.link.message("desired", desired(2**40))
            await world.link.message("ack", b"[]")
        assert sum(world.link.refusals.values()) == 15
        assert world.link.refusals["desired:other_device"] == 3
        assert world.engine.orders == []

    world.run(story())
    assert sorted(world.refused()) == ["counter_jump", "expired", "invalid", "invalid", "other_device"]


def test_after_a_lost_journal_the_newest_document_is_heard_again_and_nothing_older() -> None:
    world = World()
    world.knows()
    world.engine.stored.meta["desired_at"] = [1, 7]  # from the ledger, without what it said

    async def story() -> None:
        await world.link.message("desired", desired(5))
        assert world.engine.orders == []
        await world.link.message("desired", desired(7))
        assert [order["detector"].assignment for order in world.engine.orders] == ["w7"]

    world.run(story())
    assert world.refused() == ["older"]


def test_a_signed_time_raises_the_floor_only_as_far_as_the_metadata_vouches() -> None:
    for until, floor in ((at(86_400), rfc3339(EPOCH)), (at(-50), rfc3339(EPOCH - 50)), (None, None)):
        world = World()
        world.knows()
        world.engine.stored.meta["signed_until"] = until
        world.run(world.link.message("desired", desired(1)))
        assert time_floor.told(world.journal.memory.meta) == floor


def test_a_new_director_epoch_is_looked_up_and_an_old_one_is_not_believed() -> None:
    world = World()
    world.knows()

    async def story() -> None:
        world.fetcher.epoch = 2
        await world.link.message("desired", desired(1, epoch=2))
        assert world.journal.memory.meta["desired_at"] == [2, 1]
        await world.link.message("desired", desired(99, epoch=1))
        assert len(world.engine.orders) == 1

    world.run(story())
    assert world.refused() == ["wrong_epoch"]


def test_trust_that_cannot_be_refreshed_is_no_refusal() -> None:
    world = World()
    world.fetcher.away = True

    async def story() -> None:
        await world.link.message("desired", desired(5))

    world.run(story())
    assert (world.link.refusals, world.refused()) == ({"desired:unreachable": 1}, [])


def acked(epoch: str, upto: int, key: CryptoSigner = KEY, device: str = DEVICE) -> bytes:
    return trust.seal(Ack(device=device, epoch=epoch, upto=upto), trust.ACK_TYPE, key)


def happened(kind: str) -> dict[str, Any]:
    return {"kind": kind, "at": at(0)}


def test_what_happened_is_sent_until_it_is_acknowledged() -> None:
    world = World()
    world.knows()

    async def story() -> None:
        running = asyncio.create_task(world.link.run())
        await world.journal.put_meta({}, tuple(happened("staged") for _ in range(45)))
        await world.link.connected()
        await asyncio.sleep(1)
        assert world.broker.numbers() == list(range(1, 46))
        epoch = world.journal.memory.epoch
        await world.link.message("ack", acked("another-epoch", 45))
        assert len(world.journal.memory.outbox) == 45
        await world.link.message("ack", acked(epoch, 40))
        assert [number for number, _ in world.journal.memory.outbox] == list(range(41, 46))
        world.broker.sent.clear()
        await asyncio.sleep(links.RESEND_S + 1)
        assert world.broker.numbers() == list(range(41, 46)), "not acknowledged in time"
        world.broker.sent.clear()
        await world.link.connected()
        await asyncio.sleep(1)
        assert world.broker.numbers() == list(range(41, 46)), "a new session begins again"
        await world.link.message("ack", acked(epoch, 45))
        world.broker.sent.clear()
        await asyncio.sleep(2 * links.RESEND_S)
        assert world.broker.numbers() == []
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    world.run(story())


def test_only_the_server_makes_the_outbox_forget() -> None:
    """A broker that lies acknowledges what nobody has: unsigned, signed by another, for another device, too much."""
    world = World()
    world.knows()

    async def story() -> None:
        await world.journal.put_meta({}, tuple(happened("staged") for _ in range(5)))
        epoch = world.journal.memory.epoch
        forged = (
            canonical.encode({"schema": "interlock.ack/1", "device": DEVICE, "epoch": epoch, "upto": 5}),
            acked(epoch, 5, OTHER_KEY),
            acked(epoch, 5, device="press-8"),
            acked(epoch, 900),
            desired(5),
        )
        for ack in forged * 2:
            await world.link.message("ack", ack)
        kept = [json.loads(text)["kind"] for _, text in world.journal.memory.outbox]
        assert kept.count("staged") == 5
        await world.link.message("ack", acked(epoch, 4))
        await world.link.message("ack", acked(epoch, 2))  # replayed: a no-op
        assert world.journal.memory.outbox[0][0] == 5
        assert world.fetcher.refreshes == 1  # the key might be a new one; not again for each message

    world.run(story())
    assert sorted(world.refused()) == ["ack_beyond", "bad_signature", "invalid", "other_device", "wrong_type"]


def test_a_session_that_breaks_loses_nothing() -> None:
    world = World()
    world.knows()

    async def story() -> None:
        running = asyncio.create_task(world.link.run())
        world.broker.connected = False
        await world.journal.put_meta({}, (happened("accepted"), happened("staged")))
        world.link.changed("detector")
        await asyncio.sleep(5)
        assert world.broker.sent == []
        world.broker.connected, world.broker.breaks = True, True
        await world.link.connected()
        await asyncio.sleep(5)
        world.broker.breaks = False
        await world.link.connected()
        await asyncio.sleep(5)
        assert world.broker.numbers() == [1, 2]
        reports = [document for kind, document in world.broker.sent if kind == "reported"]
        assert reports
        assert all(document["retain"] for document in reports)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    world.run(story())


def test_many_changes_are_few_reports_and_their_numbers_grow() -> None:
    world = World()
    world.knows()

    async def story() -> None:
        running = asyncio.create_task(world.link.run())
        for _ in range(50):
            world.link.changed("detector")
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        numbers = [document["number"] for kind, document in world.broker.sent if kind == "reported"]
        assert numbers == sorted(set(numbers))
        assert 2 <= len(numbers) <= 5
        assert world.journal.memory.meta["report"] == numbers[-1]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    world.run(story())


def test_where_the_broker_is_silent_the_wish_is_asked_for() -> None:
    world = World()
    world.fetcher.document = desired(7)

    async def story() -> None:
        world.fetcher.away = True
        running = asyncio.create_task(world.link.run())
        await asyncio.sleep(120)
        assert (world.fetcher.polled, world.engine.orders) == (0, [])
        world.fetcher.away = False
        await asyncio.sleep(120)
        assert [order["detector"].assignment for order in world.engine.orders] == ["w7"]
        await asyncio.sleep(3 * 1350)
        assert world.fetcher.polled >= 3
        assert len(world.engine.orders) == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    world.run(story())


def test_an_answer_that_a_message_has_overtaken_is_no_replay() -> None:
    world = World()
    world.knows()
    world.fetcher.document = desired(5)
    world.fetcher.meanwhile = lambda: world.link.message("desired", desired(6))

    async def story() -> None:
        asking = asyncio.create_task(world.link.run())
        await asyncio.sleep(1)
        assert world.journal.memory.meta["desired_at"] == [1, 6]
        assert (world.fetcher.polled, world.refused(), world.link.refusals) == (1, [], {})
        await asyncio.sleep(2000)  # and now it is one: the server answers with what is older than what it said before
        assert (world.refused(), set(world.link.refusals)) == (["older"], {"desired:older"})
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    world.run(story())
