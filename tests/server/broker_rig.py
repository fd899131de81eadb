"""An embedded broker behind TLS with authorities of its own, and the server's link to it, by hand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.embedded_broker import EmbeddedBroker
from interlock_server.core import mqtt
from interlock_server.core.mqtt_rules import SERVER
from interlock_shared import topics
from tests.rig.broker_tls import tls_context
from tests.server.raw_mqtt import CONNECTED, Card, Peer, connect, dial, subscribe

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


@asynccontextmanager
async def rigged(tmp_path: Path) -> AsyncIterator[Rig]:
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
