"""What hostile packets and floods get from the embedded broker; the certificate is a good one."""

from __future__ import annotations

import logging
import struct

import pytest

from interlock_server.adapters import embedded_broker
from interlock_server.core import mqtt, mqtt_rules
from interlock_shared import topics
from interlock_shared.errors import Busy
from tests.server.broker_rig import ALL, Rig, next_publish, told
from tests.server.raw_mqtt import CONNECTED, connect, packet, publish, subscribe, text

EVENT, ACK, PRESENCE = (topics.device_topic(kind, "edge-1") for kind in ("event", "ack", "presence"))


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
