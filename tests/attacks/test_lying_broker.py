"""The broker is somebody else's: it withholds, repeats, reorders and invents. It can delay, and command nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from interlock_shared import canonical, trust
from interlock_shared.documents import Ack
from interlock_shared.limits import DOCUMENT_MAX_BYTES
from tests.attacks.lying_broker import LyingBroker
from tests.attacks.scene import DEVICE, Attack, Scene, broker_tls, desired_of, rows_of, scene
from tests.attacks.thief import DAYS
from tests.e2e.world import MODEL, rows
from tests.rig.damages import misshapen, of_signatures, unreadable
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e

FLOOD = 2_000
AT_A_TIME = 16  # below what an agent keeps waiting


@dataclass
class Liar(Scene):
    """A scene whose device talks to the liar."""

    broker: LyingBroker = None  # type: ignore[assignment]  # set by the fixture

    def desired(self) -> bytes:
        """What the server wants of the device, as it has signed it: what passes through its broker."""
        return desired_of(self.world, DEVICE)

    def wanted(self, version: str) -> tuple[bytes, str]:
        """The envelope after a rollout of that release, and its assignment."""
        before = self.desired()
        rollout = self.one.wish(version)
        envelope = bytes(until(lambda: (now := self.desired()) != before and now, "a new desired document"))
        return envelope, str(self.world.assignment(rollout)["assignment"])

    def say(self, payload: bytes) -> None:
        """As the desired document."""
        self.broker.say(DEVICE, "desired", payload)

    def signed(
        self, ahead: int, units: dict[str, Any] | None = None, *, later: int = 0, life: timedelta = DAYS
    ) -> bytes:
        """A document by the stolen key of the director. `ahead`: of the counter that the device has heard last."""
        payload = json.loads(base64.b64decode(json.loads(self.desired())["payload"]))
        heard = self.status()["desired"] or (payload["epoch"], 0)
        counter = (heard[1] if heard[0] == payload["epoch"] else 0) + ahead
        return self.thief.desired(DEVICE, payload["epoch"] + later, counter, units or {}, life=life)

    def listens(self) -> None:
        """All that was said before has been looked at: an honest wish that comes after it is done, and refused by the
        gate for its contract."""
        version = self.world.release(width=8)
        envelope, assignment = self.wanted(version)
        self.say(envelope)
        unit = self.one.rests(version, assignment=assignment)
        assert unit["phase"] == "rejected", unit

    def refused(self, reason: str) -> int:
        """How many documents were ignored for that reason, by the agent's word."""
        return int(self.status()["refused"].get(f"desired:{reason}", 0))

    def told(self, reason: str) -> int:
        """How often that was reported: events in the device's journal."""
        found = rows(self.one.device, "SELECT document FROM outbox")
        events = [json.loads(row[0]) for row in found]
        return sum(
            (one["kind"], one["reason"]) == ("refused", reason)
            for one in events
            if one["data"].get("document") == "desired"
        )

    def outbox(self) -> tuple[str, list[int]]:
        """Its epoch, and the numbers of the events that wait."""
        found = rows(self.one.device, "SELECT number FROM outbox")
        epoch = rows(self.one.device, "SELECT value FROM fact WHERE name = 'outbox_epoch'")
        return str(json.loads(epoch[0][0])), [number for (number,) in found]

    def ignores(self, payload: bytes, reason: str, times: int = 1) -> None:
        """The document is refused for that reason each time, told once, and changes nothing."""
        before, serves = self.refused(reason), self.serves()
        for _ in range(times):
            self.say(payload)
        self.listens()
        assert (self.refused(reason) - before, self.told(reason)) == (times, 1)
        assert self.serves() == serves


@pytest.fixture(scope="module")
def stage() -> Iterator[Liar]:
    with scene() as made, LyingBroker(broker_tls(made.world)) as broker:
        made.one.broker.target = broker.address
        made.one.broker.cut()
        broker.hears(lambda topic, _: topic.endswith(f"/{DEVICE}/presence"))
        yield Liar(made.one, made.impostor, made.traffic, broker)


def _again(s: Liar, payload: bytes, times: int = 1) -> None:
    """A document that is true and late comes so often; nothing is begun by it."""
    s.listens()
    generation = s.unit()["generation"]
    for _ in range(times):
        s.say(payload)
    s.listens()
    assert s.unit()["generation"] == generation + 1, "that of `listens` alone"


def _replayed(s: Liar) -> None:
    old, _ = s.wanted(s.world.release())
    newer, _ = s.wanted(s.world.release(width=8))
    s.say(newer)
    _again(s, old)


def _reordered(s: Liar) -> None:
    (first, _), (second, _) = (s.wanted(s.world.release(width=8)) for _ in range(2))
    s.say(second)
    _again(s, first)


def _repeated(s: Liar) -> None:
    _again(s, s.desired(), times=50)


def _of_another(s: Liar) -> None:
    s.world.device("press-8")
    s.world.roll_out(s.world.release(width=8), {"device": "press-8"})
    other = until(lambda: desired_of(s.world, "press-8"), "the other's document")
    s.ignores(other, "other_device", times=3)


def _forged(s: Liar) -> None:
    document = json.loads(s.desired())
    signature = document["signatures"][0]["sig"]
    document["signatures"][0]["sig"] = ("B" if signature[0] == "A" else "A") + signature[1:]
    s.ignores(canonical.encode(document), "bad_signature", times=3)


def _acknowledged(s: Liar) -> None:
    """Acknowledged before the server has it, an event would be lost."""
    epoch, held = s.outbox()
    assert held
    ack = Ack(device=DEVICE, epoch=epoch, upto=10**6).model_dump(mode="json", by_alias=True)
    s.broker.say(DEVICE, "ack", canonical.encode(ack))
    s.listens()
    assert set(s.outbox()[1]) >= set(held)


def _flood(s: Liar) -> None:
    before, asked, serves = s.refused("invalid"), len(s.impostor.asked), s.serves()
    for number in range(FLOOD):
        s.broker.shout(DEVICE, "desired", b"%d" % number)
    s.listens()
    assert s.refused("invalid") > before
    assert s.told("invalid") == 1
    assert len(s.impostor.asked) - asked < 50, "the server is not asked once a message"
    assert s.serves() == serves


def _misshapen(s: Liar) -> None:
    """Every wrong form of the two documents that a device is sent, with the director's signature and around it."""
    wish = json.loads(base64.b64decode(json.loads(s.signed(1))["payload"]))
    ack = Ack(device=DEVICE, epoch=s.outbox()[0], upto=1).model_dump(mode="json", by_alias=True)
    serves, held, before = s.serves(), s.outbox()[1], sum(s.status()["refused"].values())
    wanted, sent = s.status()["desired"], 0

    def refused(count: int) -> None:
        until(lambda: sum(s.status()["refused"].values()) - before >= count, f"{count} to be refused")

    def tell(kind: str, *documents: bytes) -> None:
        """A few at a time: a device that has more to look at than it wants to keep drops some."""
        nonlocal sent
        for document in documents:
            s.broker.say(DEVICE, kind, document)
            sent += 1
            if sent % AT_A_TIME == 0:
                refused(sent)

    for kind, good, seal, needed in (
        ("desired", wish, trust.DESIRED_TYPE, ("device", "epoch", "counter", "issued_at", "expires_at", "units")),
        ("ack", ack, trust.ACK_TYPE, ("device", "epoch", "upto")),
    ):
        envelope = json.loads(s.thief.sealed(canonical.encode(good), seal))
        fields = ("payload", "payloadType", "signatures")
        around = (*unreadable(envelope), *misshapen(envelope, fields, closed=False), *of_signatures(envelope))
        tell(kind, *(damage.data for damage in around))
        inside = (*unreadable(good), *misshapen(good, needed))
        tell(kind, *(s.thief.sealed(damage.data, seal) for damage in inside))
        tell(kind, b" " * (DOCUMENT_MAX_BYTES + 1))
    refused(sent)
    assert (s.status()["desired"], s.serves()) == (wanted, serves)
    assert set(s.outbox()[1]) >= set(held)
    assert s.told("invalid") == 1
    s.listens()
    assert sum(s.status()["refused"].values()) - before == sent


def _expired(s: Liar) -> None:
    s.ignores(s.signed(1, life=-timedelta(hours=1)), "expired")


def _far_ahead(s: Liar) -> None:
    s.ignores(s.signed(2**33), "counter_jump")


def _of_a_later_epoch(s: Liar) -> None:
    s.ignores(s.signed(1, later=1), "wrong_epoch")


def _never_released(s: Liar) -> None:
    """The director's key is worth the choice among what the release roles have signed, and no more."""
    wish = {"version": "6.6.6", "manifest_sha256": "0" * 64, "assignment": "a-thief", "rollout": "r-thief"}
    serves = s.serves()
    s.say(s.signed(1, {MODEL: wish}))
    unit = s.one.rests("6.6.6", assignment="a-thief")
    assert (unit["phase"], unit["reason"], s.serves()) == ("failed", "not_signed", serves)
    s.wanted(s.world.release(width=8))  # the server's counter passes his


def director(s: Liar) -> dict[str, Any]:
    """Whom the device obeys."""
    return dict(json.loads(rows(s.one.device, "SELECT value FROM fact WHERE name = 'director'")[0][0]))


def _taken_away(s: Liar) -> None:
    """Counters far ahead strand the device, until the director's key is another one, under the next epoch."""
    s.say(s.signed(2**31))
    stolen = s.signed(2**31 + 1)
    before = s.desired()
    s.world.cli("root", "propose", "--rotate", "director")
    until(lambda: s.desired() != before, "documents of the new director")
    s.broker.notice()
    until(lambda: director(s)["epoch"] == 2, "the new director")
    s.listens()
    s.ignores(stolen, "bad_signature")


BROKER = (
    Attack("replay of an older desired document", _replayed, "ignored"),
    Attack("desired documents in another order", _reordered, "the newest counts, the older is ignored"),
    Attack("a desired document again and again", _repeated, "carried out once", long=True),
    Attack("a desired document of another device", _of_another, "refused, counted, told once"),
    Attack("a desired document that nobody signed", _forged, "refused, counted, told once"),
    Attack("events acknowledged that never arrived", _acknowledged, "ignored: the server has not signed it"),
    Attack("a flood of malformed documents", _flood, "refused, counted, told once; the server is not asked each time"),
)
DIRECTOR = (
    Attack("director's key: documents of every wrong form", _misshapen, "refused, counted, told once for each reason"),
    Attack("director's key: a document that has expired", _expired, "refused", long=True),
    Attack("director's key: a counter far ahead", _far_ahead, "refused"),
    Attack("director's key: an epoch that was not announced", _of_a_later_epoch, "refused", long=True),
    Attack("director's key: a release that no release key signed", _never_released, "refused"),
    Attack("director's key: counters that strand the device", _taken_away, "heard again once root names another key"),
)
ATTACKS = (*BROKER, *DIRECTOR)


@pytest.mark.parametrize("attack", rows_of(ATTACKS))
def test_a_lying_broker(stage: Liar, attack: Attack[Liar]) -> None:
    attack.case(stage)
