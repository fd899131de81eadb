"""Who may say and hear what at the embedded broker: topics, wills, credentials, sizes, take-over."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiomqtt
import pytest

from interlock_server.core import mqtt, mqtt_rules
from interlock_server.core.mqtt import Connect, Message, RefusedConnection, parse_connect
from interlock_server.core.mqtt_rules import SERVER
from interlock_shared import topics
from interlock_shared.errors import Invalid
from tests.server.fleet_fixture import Device, Fleet
from tests.server.raw_mqtt import connect, dial

PUBLISHES = [
    ("edge-1", "interlock/v1/device/edge-1/event", True),
    ("edge-1", "interlock/v1/device/edge-1/reported", True),
    ("edge-1", "interlock/v1/device/edge-1/presence", True),
    ("edge-1", "interlock/v1/device/edge-1/desired", False),
    ("edge-1", "interlock/v1/device/edge-1/ack", False),
    ("edge-1", "interlock/v1/device/edge-2/event", False),
    ("edge-1", "interlock/v1/device/edge-2/presence", False),
    ("edge-1", "interlock/v1/device/edge-1/event/more", False),
    ("edge-1", "interlock/v1/device//event", False),
    ("edge-1", "interlock/v1/fleet/notice", False),
    ("edge-1", "interlock/v1/blob/" + "0" * 64 + "/0", False),
    ("edge-1", "$SYS/broker/version", False),
    ("edge-1", "$share/g/interlock/v1/device/edge-1/event", False),
    ("edge-1", "anything", False),
    (SERVER, "interlock/v1/device/edge-1/desired", True),
]
SUBSCRIBES = [
    ("edge-1", "interlock/v1/device/edge-1/desired", True),
    ("edge-1", "interlock/v1/device/edge-1/ack", True),
    ("edge-1", "interlock/v1/fleet/notice", True),
    ("edge-1", "interlock/v1/blob/#", True),
    ("edge-1", "interlock/v1/blob/" + "0" * 64 + "/#", True),
    ("edge-1", "interlock/v1/blob/" + "0" * 64 + "/7", True),
    ("edge-1", "interlock/v1/blob/+/0", False),
    ("edge-1", "interlock/v1/blob", False),
    ("edge-1", "interlock/v1/device/edge-1/event", False),
    ("edge-1", "interlock/v1/device/edge-1/#", False),
    ("edge-1", "interlock/v1/device/edge-1/+", False),
    ("edge-1", "interlock/v1/device/+/desired", False),
    ("edge-1", "interlock/v1/device/edge-2/desired", False),
    ("edge-1", "interlock/v1/+/edge-1/desired", False),
    ("edge-1", "interlock/v1/fleet/+", False),
    ("edge-1", "interlock/#", False),
    ("edge-1", "+/+/+/+/+", False),
    ("edge-1", "#", False),
    ("edge-1", "$SYS/#", False),
    ("edge-1", "$share/g/interlock/v1/device/edge-1/desired", False),
    ("edge-1", "$share/g/#", False),
    ("+", "interlock/v1/device/edge-2/desired", False),
    ("", "interlock/v1/device//desired", True),  # nobody has no name: it is refused at CONNECT
    (SERVER, "interlock/v1/device/+/event", True),
]


@pytest.mark.parametrize(("who", "topic", "may"), PUBLISHES)
def test_a_device_publishes_under_its_own_id_alone(who: str, topic: str, may: bool) -> None:
    assert mqtt_rules.may_publish(who, topic) == may


@pytest.mark.parametrize(("who", "topic", "may"), SUBSCRIBES)
def test_a_device_subscribes_to_its_own_topics_alone(who: str, topic: str, may: bool) -> None:
    assert mqtt_rules.may_subscribe(who, topic) == may


async def refused(device: Device, **more: Any) -> bool:
    try:
        async with device.connection(**more):
            return False
    except aiomqtt.MqttError:
        return True


async def test_strangers_are_refused(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    assert not await refused(device)
    assert await refused(device, username="edge-2")
    assert await refused(device, username=SERVER)
    for context in (None, ssl.create_default_context(cadata=device.ca)):  # no TLS; TLS without a certificate
        peer = await dial(fleet.broker[1], context)
        peer.say(connect(client_id=device.id))
        assert await peer.hear() == b""
        peer.close()


@pytest.mark.parametrize(
    ("topic", "may"),
    [
        ("interlock/v1/device/edge-1/presence", True),
        ("interlock/v1/device/edge-1/event", False),
        ("interlock/v1/device/edge-2/presence", False),
        ("interlock/v1/device/edge-2/desired", False),
        ("interlock/v1/fleet/notice", False),
    ],
)
async def test_a_will_is_the_own_presence(fleet: Fleet, topic: str, may: bool) -> None:
    device = await fleet.enrol("edge-1")
    assert await refused(device, will=aiomqtt.Will(topic, b"{}", 1, True)) is not may


async def test_what_a_device_may_not_publish_reaches_nobody(fleet: Fleet) -> None:
    device, neighbour = await fleet.enrol("edge-1"), await fleet.enrol("edge-2")
    async with neighbour.online() as victim, device.online() as link:
        for topic in (victim.device.topic("desired"), victim.device.topic("ack"), topics.NOTICE):
            for retain in (False, True):
                await link.client.publish(topic, b'{"epoch":"forged","upto":99}', qos=1, retain=retain)
        await link.send("event", device.event("accepted"))
        await link.acked(1)
        await victim.send("event", neighbour.event("accepted"))
        await victim.acked(1)
        assert victim.acks == [(neighbour.epoch, 1)]
        assert victim.desired == []


async def test_a_newcomer_sees_nothing_that_is_retained_for_others(fleet: Fleet) -> None:
    device, curious = await fleet.enrol("edge-1"), await fleet.enrol("edge-2")
    async with device.online() as link:
        await link.send("reported", device.reported(1))
        await link.send("event", device.event("accepted"))
        await link.acked(1)
        async with curious.connection() as client:
            for wide in ("#", "interlock/v1/device/+/reported", device.topic("reported")):
                assert tuple(await client.subscribe(wide, qos=1)) == (128,)
            await client.subscribe(curious.topic("ack"), qos=1)
            await client.publish(curious.topic("event"), curious.event("accepted"), qos=1)
            message = await asyncio.wait_for(anext(aiter(client.messages)), 5)
            assert str(message.topic) == curious.topic("ack")


async def test_the_will_is_delivered_and_a_returning_client_replaces_its_older_self(fleet: Fleet) -> None:
    """The older connection's "offline" comes before the newer one's "online", never after."""
    device = await fleet.enrol("edge-1")
    will = aiomqtt.Will(device.topic("presence"), b'{"schema":"interlock.presence/1","online":false}', 1, True)
    online = b'{"schema":"interlock.presence/1","online":true}'

    async def shown(wanted: bool) -> None:
        async with asyncio.timeout(10):
            while (await fleet.admin.get(f"/v1/devices/{device.id}"))["online"] is not wanted:
                pass  # each request lets the others run

    older = device.connection(will=will)
    await older.__aenter__()
    await older.publish(device.topic("presence"), online, qos=1, retain=True)
    await shown(True)
    async with device.online(will=will) as newer:
        with pytest.raises(aiomqtt.MqttError):
            await anext(aiter(older.messages))
        await newer.send("presence", online)
        await newer.send("event", device.event("accepted"))
        await newer.acked(1)
        await shown(True)
        reader, writer = await asyncio.open_connection(*fleet.broker, ssl=device.tls())
        writer.write(connect(device.id, ""))
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        await shown(False)  # the will of the one before
        writer.close()
        with pytest.raises(aiomqtt.MqttError):
            await anext(aiter(newer.client.messages))


async def test_a_newcomer_without_the_certificate_takes_nothing_over(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    async with device.online() as link:
        peer = await dial(fleet.broker[1], ssl.create_default_context(cadata=device.ca))
        peer.say(connect(device.id, client_id=device.id))
        assert await peer.hear() == b""
        peer.close()
        await link.send("event", device.event("accepted"))
        await link.acked(1)


async def test_a_packet_that_is_too_large_ends_the_connection(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    with pytest.raises(aiomqtt.MqttError):
        async with device.online(timeout=1) as link:
            await link.send("event", b"x" * (mqtt.PACKET_MAX_BYTES + 1))
    async with device.online() as link:
        await link.send("event", device.event("accepted"))
        await link.acked(1)


async def test_a_client_that_fell_silent_is_let_go(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    reader, writer = await asyncio.open_connection(*fleet.broker, ssl=device.tls())
    writer.write(connect(device.id, "", keepalive=1))
    assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x10\xff\xff\xff\xff\xff",
    b"\x10\xff\xff\xff\x7f",
    b"\x10\x00",
    b"\x10\x04\x00\x04MQ",
    b"\x30\x05hello",
    connect("edge-1", "wrong"),
    connect("edge-1", "wrong", level=5),
]


async def test_garbage_is_answered_by_the_end(fleet: Fleet) -> None:
    for packet in GARBAGE:
        reader, writer = await asyncio.open_connection(*fleet.broker)
        writer.write(packet)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 15)
        assert answer == b"" or (answer[:3] == b"\x20\x02\x00" and answer[3] > 0), packet
        writer.close()


def test_a_connect_packet_is_read() -> None:
    packet = connect("edge-1", "secret", keepalive=30, will="t")
    parsed = parse_connect(packet[2:])
    assert parsed == Connect("some-id", 30, "edge-1", "secret", Message("t", b"bye", 1, True))
    for end in range(len(packet) - 2):
        with pytest.raises((Invalid, RefusedConnection)):
            parse_connect(packet[2 : 2 + end])
