"""The embedded broker behind TLS: whose certificate is let in, who is cut, who is taken over."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.embedded_broker import TakeOver
from interlock_server.core.mqtt_rules import SERVER
from interlock_shared import topics
from tests.server.broker_rig import ALL, Rig, next_publish, told
from tests.server.raw_mqtt import CONNECTED, Card, connect, publish, subscribe

EVENT, ACK, PRESENCE = (topics.device_topic(kind, "edge-1") for kind in ("event", "ack", "presence"))


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


async def test_a_client_id_takes_no_neighbour_s_session(rig: Rig) -> None:
    server, device = await rig.server(), await rig.online(rig.card("edge-1"), connect(client_id="edge-1"))
    for claimed in ("edge-1", "interlock-edge-1", SERVER):
        await rig.online(rig.card("edge-2"), connect(client_id=claimed))
    device.say(publish(EVENT, b"still here"))
    assert await next_publish(server) == told(EVENT, b"still here")


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
