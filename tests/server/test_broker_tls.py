"""The embedded broker behind TLS: whose certificate is let in, what hostile packets get, who is cut, who starves."""

from __future__ import annotations

import asyncio
import logging
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from interlock_server.adapters import embedded_broker
from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.embedded_broker import EmbeddedBroker, TakeOver
from interlock_server.core import mqtt, mqtt_rules
from interlock_server.core.mqtt_rules import SERVER
from interlock_server.mqtt_stream import tls_context
from interlock_shared import topics
from interlock_shared.errors import Busy
from tests.server.raw_mqtt import CONNECTED, Card, Peer, connect, dial, packet, publish, subscribe, text

EVENT, ACK, PRESENCE = (topics.device_topic(kind, "edge-1") for kind in ("event", "ack", "presence"))
ALL = tuple(topics.any_device(kind) for kind in topics.DEVICE_MAY_PUBLISH)


@dataclass
class Rig:
    """A broker, its authorities, and who is known."""

    broker: EmbeddedBroker
    ca: DeviceCA
    folder: Path
    port: int = 0
    known: dict[str, str] = field(default_factory=dict)  # device -> serial
    peers: list[Peer] = field(default_factory=list)

    async def dial(self, port: int, context: ssl.SSLContext | None) -> Peer:
        """A connection, closed with the test."""
        self.peers.append(await dial(port, context))
        return self.peers[-1]

    def card(self, name: str, *, known: bool = True, **more: object) -> Card:
        """A certificate of the device CA."""
        made = Card(self.ca, self.folder, name, **more)  # type: ignore[arg-type]
        if known:
            self.known[name] = made.serial
        return made

    async def peer(self, card: Card, first: bytes = b"") -> Peer:
        """A connection with that certificate; CONNECT is sent, and its answer not read."""
        peer = await self.dial(self.port, card.context(self.ca.tls_ca))
        peer.say(first or connect())
        return peer

    async def online(self, card: Card, first: bytes = b"") -> Peer:
        """Let in."""
        peer = await self.peer(card, first)
        assert await peer.hear() == CONNECTED
        return peer

    async def server(self, *filters: str) -> Peer:
        """The server, through its private door."""
        peer = await self.dial(self.broker.private[1], None)
        peer.say(connect(SERVER, self.broker.password), subscribe(*(filters or ALL)))
        assert await peer.hear() == CONNECTED
        assert (await peer.hear())[0] == 0x90
        return peer


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    ca = await asyncio.to_thread(DeviceCA.open, tmp_path / "ca")

    async def knows(device: str, serial: str) -> bool:
        return made.known.get(device) == serial

    def context() -> ssl.SSLContext:
        return tls_context(*ca.server_files(["localhost"]), ca.device_ca)

    made = Rig(EmbeddedBroker(knows, await asyncio.to_thread(context)), ca, tmp_path)
    made.port = (await made.broker.start("localhost", 0))[1]
    yield made
    for peer in made.peers:
        peer.close()
    await made.broker.stop()


def told(topic: str, payload: bytes, retain: bool = False) -> tuple[str, bytes, bool]:
    return topic, payload, retain


def heard(packet_: bytes) -> tuple[str, bytes, bool]:
    """(topic, payload, retain) of a PUBLISH of QoS 1."""
    assert packet_[0] >> 4 == mqtt.PUBLISH, packet_
    size = int.from_bytes(packet_[1:3], "big")
    return packet_[3 : 3 + size].decode(), packet_[5 + size :], bool(packet_[0] & 1)


async def next_publish(peer: Peer) -> tuple[str, bytes, bool]:
    """The next message, acknowledged."""
    while (found := await peer.hear()) and found[0] >> 4 != mqtt.PUBLISH:
        pass
    size = int.from_bytes(found[1:3], "big")
    peer.say(b"\x40\x02" + found[3 + size : 5 + size])
    return heard(found)


# --- who is let in ---------------------------------------------------------------------------------------------------


async def test_the_certificate_says_who_it_is(rig: Rig) -> None:
    server, device = await rig.server(), await rig.online(rig.card("edge-1"), connect(client_id=""))
    device.say(publish(EVENT, b"1"))
    assert await next_publish(server) == told(EVENT, b"1")
    assert await device.hear() == b"\x40\x00\x01"
    server.say(publish(ACK, b"2"))
    device.say(subscribe(ACK, number=7))
    assert await device.hear() == b"\x90\x00\x07\x01"
    server.say(publish(ACK, b"3"))
    assert (await next_publish(device))[0] == ACK
    for username, code in (("", 0), ("edge-1", 0), ("edge-2", 5), (SERVER, 5), ("+", 5)):
        peer = await rig.peer(rig.card("edge-1"), connect(username, "whatever"))
        assert await peer.hear() == bytes((0x20, 0, code)), username


async def test_a_certificate_that_is_not_known_is_refused_and_takes_nothing_over(rig: Rig) -> None:
    server, card = await rig.server(), rig.card("edge-1")
    device = await rig.online(card)
    older = rig.card("edge-1", known=False)  # one that was replaced, or revoked
    assert await (await rig.peer(older)).hear() == b"\x20\x00\x04"
    assert await (await rig.peer(rig.card("nobody", known=False))).hear() == b"\x20\x00\x04"
    device.say(publish(EVENT, b"still here"))
    assert (await next_publish(server))[1] == b"still here"
    assert rig.broker.figures["taken_over"] == 0


async def test_who_has_no_certificate_of_ours_does_not_get_as_far_as_mqtt(rig: Rig, tmp_path: Path) -> None:
    await rig.server()
    foreign = await asyncio.to_thread(DeviceCA.open, tmp_path / "foreign")
    bare = ssl.create_default_context(cadata=rig.ca.tls_ca.decode())
    past = datetime.now(UTC) - timedelta(days=9)
    strangers = [
        bare,
        Card(foreign, tmp_path, "edge-1").context(rig.ca.tls_ca),
        rig.card("edge-1", now=past, lifetime=timedelta(days=1)).context(rig.ca.tls_ca),
    ]
    server_side = ssl.create_default_context(cadata=rig.ca.tls_ca.decode())
    await asyncio.to_thread(  # a certificate for servers, not for clients
        lambda: server_side.load_cert_chain(*rig.ca.server_files(["localhost"]))
    )
    for context in [*strangers, server_side]:
        try:
            peer = await rig.dial(rig.port, context)
            peer.say(connect())
            assert await peer.hear() == b""
        except OSError:
            pass  # told in the handshake, or right after it
    plain = await rig.dial(rig.port, None)
    plain.say(connect(SERVER, rig.broker.password))
    assert (await plain.hear())[:1] in (b"", b"\x15")  # a TLS alert
    inside = await rig.dial(rig.broker.private[1], None)
    inside.say(connect(SERVER, "guess"))
    assert await inside.hear() == b"\x20\x00\x04"
    inside = await rig.dial(rig.broker.private[1], None)
    inside.say(connect("edge-1", rig.broker.password))
    assert await inside.hear() == b"\x20\x00\x04"


async def test_the_server_may_come_by_its_certificate(rig: Rig) -> None:
    def mine() -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=rig.ca.tls_ca.decode())
        context.load_cert_chain(*rig.ca.client_files())
        return context

    peer = await rig.dial(rig.port, await asyncio.to_thread(mine))
    peer.say(connect(), subscribe(*ALL))
    assert await peer.hear() == CONNECTED
    assert await peer.hear() == b"\x90\x00\x01\x01\x01\x01"


async def test_a_session_ends_with_its_certificate(rig: Rig) -> None:
    await rig.server()
    card = rig.card("edge-1", lifetime=timedelta(seconds=1.5))
    device = await rig.peer(card)
    await asyncio.wait_for(device.over(), 10)
    again = await rig.online(rig.card("edge-1"))  # renewed: picked up at the next connect
    again.close()


# --- cut and take-over -----------------------------------------------------------------------------------------------


async def test_a_device_that_is_cut_goes_at_once_and_stays_out(rig: Rig) -> None:
    server, card = await rig.server(), rig.card("edge-1")
    device = await rig.online(card, connect(will=PRESENCE))
    del rig.known["edge-1"]
    await rig.broker.cut("edge-1")
    assert rig.broker.connections == 1
    await device.over()
    assert await next_publish(server) == told(PRESENCE, b"bye")  # it is shown as gone
    assert await (await rig.peer(card)).hear() == b"\x20\x00\x04"
    await rig.broker.cut("edge-1")
    await rig.broker.cut("never-seen")


async def test_a_cut_also_holds_for_who_is_just_coming_in(rig: Rig) -> None:
    """Between the look into the table and the entry there is time: here the server does not listen yet."""
    card = rig.card("edge-1")
    coming = await rig.peer(card)
    asked = asyncio.Event()
    knows = rig.broker._knows

    async def watched(device: str, serial: str) -> bool:
        found = await knows(device, serial)
        asked.set()
        return found

    rig.broker._knows = watched
    second = await rig.peer(card)
    await asked.wait()
    del rig.known["edge-1"]
    await rig.broker.cut("edge-1")
    await rig.server()
    assert await coming.hear() == b"\x20\x00\x04"
    assert await second.hear() == b"\x20\x00\x04"


async def test_take_overs_are_counted_and_told(rig: Rig) -> None:
    await rig.server()
    card, seen = rig.card("edge-1"), list[TakeOver]()
    rig.broker.on_take_over = seen.append
    for _ in range(4):
        await rig.online(card)
    assert [one.count for one in seen] == [1, 2, 3] == list(range(1, rig.broker.take_overs("edge-1") + 1))
    assert seen[0].device == "edge-1"
    assert seen[0].silent_s < 10
    assert {seen[0].older, seen[0].newer} <= {"127.0.0.1", "::1"}
    assert rig.broker.take_overs("edge-2") == 0


# --- hostile packets -------------------------------------------------------------------------------------------------

ENDS = {
    "a second CONNECT": connect(),
    "QoS 2": publish(EVENT, qos=2),
    "QoS 3": publish(EVENT, qos=3),
    "packet id 0": publish(EVENT, number=0),
    "a duplicate at QoS 0": packet(0x38, text(EVENT)),
    "no topic": publish(""),
    "a long topic": publish("interlock/v1/device/edge-1/" + "x" * 60_000),
    "a wildcard in a topic": publish("interlock/v1/device/+/event"),
    "a zero in a topic": publish("interlock/v1/device/edge-1/event\0"),
    "a topic that is not UTF-8": publish(b"\xff\xfe"),
    "a surrogate": publish(b"\xed\xa0\x80"),
    "a topic longer than its packet": packet(0x32, struct.pack("!H", 500) + b"abc"),
    "an empty PUBLISH": packet(0x32, b""),
    "a length without end": b"\x30\xff\xff\xff\xff\x01",
    "more than is read": b"\x32\xff\xff\xff\x7f",
    "SUBSCRIBE without topics": packet(0x82, b"\x00\x01"),
    "SUBSCRIBE with reserved bits": packet(0x80, b"\x00\x01" + text(ACK) + b"\x01"),
    "SUBSCRIBE of QoS 3": subscribe(ACK, qos=3),
    "SUBSCRIBE to everything there is": subscribe(*[f"a/{n}" for n in range(99)]),
    "SUBSCRIBE to a long topic": subscribe("x" * 60_000),
    "UNSUBSCRIBE without topics": packet(0xA2, b"\x00\x01"),
    "PUBACK cut short": packet(0x40, b"\x00"),
    "PINGREQ with a body": packet(0xC0, b"\x00"),
    "the server's words": b"\x20\x02\x00\x00",
    "PUBREL": packet(0x62, b"\x00\x01"),
    "reserved types": b"\x00\x00",
    "reserved type 15": b"\xf0\x00",
}


async def test_a_malformed_packet_ends_its_connection_and_no_other(rig: Rig) -> None:
    server, card = await rig.server(), rig.card("edge-1")
    neighbour = await rig.online(rig.card("edge-2"))
    for name, bad in ENDS.items():
        device = await rig.online(card)
        device.say(bad, publish(EVENT, b"after it"))
        await device.over()
        assert rig.broker.connections <= 3, name
    theirs = topics.device_topic("event", "edge-2")
    neighbour.say(publish(theirs, b"here"))
    assert await next_publish(server) == told(theirs, b"here")  # nothing of what came after a malformed packet


FIRST = {
    "no CONNECT": publish(EVENT),
    "a large one": packet(0x10, b"\0" * 20_000),
    "reserved bits": b"\x11" + connect()[1:],
    "reserved flag": connect().replace(b"MQTT\x04\x02", b"MQTT\x04\x03"),
    "a password without a name": connect().replace(b"MQTT\x04\x02", b"MQTT\x04\x42"),
    "a will's QoS without a will": connect().replace(b"MQTT\x04\x02", b"MQTT\x04\x0a"),
    "more than its fields": packet(0x10, connect()[2:] + b"x"),
    "a will of QoS 2": connect(will=PRESENCE).replace(b"MQTT\x04\x2e", b"MQTT\x04\x36"),
    "a will of QoS 3": connect(will=PRESENCE).replace(b"MQTT\x04\x2e", b"MQTT\x04\x3e"),
    "a will without a topic": connect(will=""),
}


async def test_a_malformed_first_packet_is_the_last(rig: Rig) -> None:
    await rig.server()
    card = rig.card("edge-1")
    for name, bad in FIRST.items():
        peer = await rig.peer(card, bad)
        assert await peer.hear() == b"", name
    for will in (EVENT, topics.device_topic("presence", "edge-2"), topics.NOTICE, "$SYS/x", PRESENCE + "/x"):
        assert await (await rig.peer(card, connect(will=will))).hear() == b"\x20\x00\x05", will
    assert await (await rig.peer(card, connect(level=5))).hear() == b"\x20\x00\x01"


async def test_what_is_forbidden_is_acknowledged_and_reaches_nobody(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    server = await rig.server("#", *ALL)
    victim, device = await rig.online(rig.card("edge-2")), await rig.online(rig.card("edge-1"))
    theirs = [topics.device_topic(kind, "edge-2") for kind in topics.DEVICE_TOPICS]
    victim.say(subscribe(topics.device_topic("desired", "edge-2"), topics.device_topic("ack", "edge-2"), topics.NOTICE))
    assert await victim.hear() == b"\x90\x00\x01\x01\x01\x01"
    forbidden = [
        *theirs,
        topics.NOTICE,
        "$SYS/broker",
        "interlock/v1/blob/x/0",
        topics.device_topic("desired", "edge-1"),
    ]
    with caplog.at_level(logging.WARNING):
        for number, topic in enumerate(forbidden, 1):
            for retain in (False, True):
                device.say(publish(topic, b"forged", number=number, retain=retain))
                assert await device.hear() == struct.pack("!BH", 0x40, number)
        wide = ("#", "+/#", "interlock/v1/device/+/reported", "$SYS/#", "$share/g/#", *theirs)
        device.say(subscribe(*wide))
        assert await device.hear() == b"\x90\0\1" + b"\x80" * len(wide)
    device.say(publish(EVENT, b"mine", retain=True))
    assert await next_publish(server) == told(EVENT, b"mine")  # and nothing before it
    server.say(publish(topics.NOTICE, b"moved"))
    assert await next_publish(victim) == told(topics.NOTICE, b"moved")
    late = await rig.server("#", *ALL)
    late.say(publish("fence", b"x"))
    assert (await next_publish(late))[0] == "fence"  # no event is retained, nor anything forged
    assert rig.broker.figures["refused"] == 2 * len(forbidden) + 1
    assert len([one for one in caplog.records if "edge-1" in one.getMessage()]) == 1


async def test_a_retained_report_is_told_to_a_server_that_comes_later(rig: Rig) -> None:
    first, device = await rig.server(), await rig.online(rig.card("edge-1"))
    for payload in (b"old", b"new"):
        device.say(publish(PRESENCE, payload, retain=True))
        assert await next_publish(first) == told(PRESENCE, payload)
    second = await rig.server()
    assert await next_publish(second) == told(PRESENCE, b"new", retain=True)
    device.say(publish(PRESENCE, b"", retain=True))
    assert await next_publish(second) == told(PRESENCE, b"")
    third = await rig.server()
    device.say(publish(EVENT, b"fence"))
    assert await next_publish(third) == told(EVENT, b"fence")


# --- flood -----------------------------------------------------------------------------------------------------------


async def test_one_that_floods_does_not_starve_the_others(rig: Rig) -> None:
    """The server takes its time; each time it takes one, whose turn it is comes through: not the flood before it."""
    server = await rig.server()
    flooder, other = await rig.online(rig.card("edge-1")), await rig.online(rig.card("edge-2"))
    flooder.say(*[publish(EVENT, b"flood") for _ in range(1500)])
    window = [await server.hear() for _ in range(mqtt_rules.SERVER_WINDOW)]  # full, and nothing is acknowledged
    theirs = topics.device_topic("event", "edge-2")
    other.say(publish(theirs, b"me too"))
    with pytest.raises(TimeoutError):
        await server.hear(0.1)
    between = 0
    for one in window:
        size = int.from_bytes(one[1:3], "big")
        server.say(b"\x40\x02" + one[3 + size : 5 + size])
    while (await next_publish(server))[0] != theirs:
        between += 1
    assert between <= 2 * mqtt_rules.SERVER_WINDOW
    assert rig.broker._hub.retained == {}


def test_a_client_that_says_too_much_is_read_slower() -> None:
    allowance = mqtt_rules.Allowance(at=100.0)
    assert sum(allowance.spend(100, 100.0) for _ in range(int(mqtt_rules.BURST))) == 0
    assert allowance.spend(100, 100.0) == pytest.approx(1 / mqtt_rules.RATE_PER_S)
    assert allowance.spend(100, 50.0) > 0  # a clock that jumps back gives nothing
    allowance = mqtt_rules.Allowance(at=100.0)
    size = mqtt.PACKET_MAX_BYTES
    waits = [allowance.spend(size, 100.0) for _ in range(20)]
    assert waits[0] == 0
    assert waits[-1] == pytest.approx((20 * size - mqtt_rules.BYTES_BURST) / mqtt_rules.BYTES_PER_S)
    assert allowance.spend(0, 200.0) == 0


async def test_who_does_not_take_what_is_sent_is_cut(rig: Rig) -> None:
    """No acknowledgement, so the window fills, and then the queue behind it."""
    server, device = await rig.server(), await rig.online(rig.card("edge-1"))
    device.say(subscribe(ACK))
    assert await device.hear() == b"\x90\x00\x01\x01"
    for number in range(mqtt_rules.WINDOW + mqtt_rules.QUEUE_MAX + 1):
        server.say(publish(ACK, b"x", number=number + 1))
    await device.over()
    assert rig.broker.figures["slow"] == 1


def test_the_window_and_the_queue_have_an_end_in_bytes_too() -> None:
    outgoing = mqtt_rules.Outgoing(window=1)
    large = mqtt.Message("t", b"x" * (mqtt_rules.QUEUE_MAX_BYTES // 2))
    assert outgoing.offer(large, 1)
    assert outgoing.offer(large, 1) == b""
    assert outgoing.offer(large, 1) == b""
    with pytest.raises(Busy):
        outgoing.offer(large, 1)
    assert outgoing.acknowledged(1)
    assert outgoing.acknowledged(1) == b""  # acknowledged twice: nothing moves


def test_what_devices_retain_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_rules, "RETAINED_MAX_BYTES", 100)
    hub = mqtt_rules.Hub()
    for name in ("a", "b", "c"):
        hub.retain(name, mqtt.Message(name, b"x" * 40))
    assert list(hub.retained) == ["a", "b"]
    hub.retain("a", mqtt.Message("a", b""))
    hub.retain("c", mqtt.Message("c", b"x" * 60))
    assert list(hub.retained) == ["b", "c"]


def test_a_client_has_so_many_subscriptions_and_leaves_nothing_behind() -> None:
    hub = mqtt_rules.Hub()
    filters = [f"{topics.BLOB_PREFIX}/{'0' * 64}/{n}" for n in range(mqtt_rules.SUBSCRIPTIONS_MAX)]
    assert all(hub.subscribe("edge-1", one, 1) == 1 for one in filters)
    assert hub.subscribe("edge-1", topics.NOTICE, 1) == mqtt.NO_SUBSCRIPTION
    assert hub.subscribe("edge-1", filters[0], 0) == 0
    assert hub.hearers(filters[0]) == {"edge-1": 0}
    hub.leave("edge-1")
    assert hub == mqtt_rules.Hub()


async def test_connections_that_say_nothing_do_not_keep_devices_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.server()
    monkeypatch.setattr(embedded_broker, "STRANGERS_MAX", 3)
    silent = [await rig.dial(rig.port, None) for _ in range(3)]
    over = await rig.dial(rig.port, None)
    assert await over.hear() == b""
    silent[0].close()
    card = rig.card("edge-1")
    while True:  # until the broker has seen that one of them is gone
        try:
            device = await rig.peer(card)
        except OSError:
            continue
        if await device.hear() == CONNECTED:
            break


@pytest.mark.parametrize(
    ("topic", "filter_", "hears"),
    [
        ("a/b/c", "a/b/c", True),
        ("a/b/c", "a/+/c", True),
        ("a/b/c", "a/#", True),
        ("a", "a/#", True),
        ("a/b", "a", False),
        ("a/b/c", "a/+", False),
        ("$SYS/a", "#", False),
        ("$SYS/a", "+/a", False),
        ("$SYS/a", "$SYS/#", True),
        ("a/b", "a/#/b", False),
    ],
)
def test_wildcards_are_the_standards(topic: str, filter_: str, hears: bool) -> None:
    assert mqtt_rules.matches(topic, filter_) == hears
