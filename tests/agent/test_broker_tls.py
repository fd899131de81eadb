"""The agent's side of MQTT over TLS, with the server's embedded broker: whom it believes, what it shows."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from interlock_agent.adapters.broker import Broker
from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.embedded_broker import EmbeddedBroker
from interlock_server.core.mqtt_rules import SERVER
from interlock_shared import topics
from interlock_shared.errors import Invalid
from tests.rig.broker_tls import tls_context
from tests.server.raw_mqtt import CONNECTED, Card, connect, dial, publish, subscribe

DESIRED = topics.device_topic("desired", "edge-1")


class Clock:
    """Waits shortly; `failed`: after each session that ended."""

    def __init__(self) -> None:
        self.failed, self.signed = asyncio.Event(), 0.0

    async def sleep(self, seconds: float) -> None:
        self.failed.set()
        await asyncio.sleep(min(seconds, 0.05))

    def dice(self) -> float:
        return 0.5

    def floor(self) -> float:
        return self.signed


class Rig:
    """A broker and its authorities."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, DeviceCA.open(folder / "ca")
        self.known: dict[str, str] = {}
        self.cards = [Card(self.ca, folder, "edge-1")]
        self.trusted = self.ca.tls_ca

    async def knows(self, device: str, serial: str) -> bool:
        return self.known.get(device) == serial

    def context(self) -> ssl.SSLContext:
        """The device's: what its files say now."""
        return self.cards[-1].context(self.trusted)

    def device(self, port: int) -> tuple[Broker, Clock]:
        """The agent's side."""
        clock = Clock()
        url = f"mqtts://localhost:{port}"
        return Broker(url, "edge-1", clock, tls=self.context), clock  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def broker(self, host: str = "localhost") -> AsyncIterator[int]:
        files = await asyncio.to_thread(lambda: tls_context(*self.ca.server_files([host]), self.ca.device_ca))
        broker = EmbeddedBroker(self.knows, files)
        port = (await broker.start("localhost", 0))[1]
        self.embedded, self.server = broker, await dial(broker.private[1], None)
        filters = [topics.any_device(kind) for kind in topics.DEVICE_MAY_PUBLISH]
        self.server.say(connect(SERVER, broker.password), subscribe(*filters))
        assert await self.server.hear() == CONNECTED
        try:
            yield port
        finally:
            self.server.close()
            await broker.stop()


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return await asyncio.to_thread(Rig, tmp_path)


@contextlib.asynccontextmanager
async def running(broker: Broker) -> AsyncIterator[asyncio.Queue[tuple[str, bytes]]]:
    inbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def received(kind: str, payload: bytes) -> None:
        inbox.put_nowait((kind, payload))

    broker.on_message = received
    task = asyncio.create_task(broker.run())
    try:
        yield inbox
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_trouble(broker: Broker, clock: Clock, *words: str) -> None:
    async with asyncio.timeout(20):
        while not any(word in broker.trouble for word in words):
            await clock.failed.wait()
            clock.failed.clear()
    assert not broker.connected


async def test_a_renewed_certificate_is_shown_at_the_next_connect(rig: Rig) -> None:
    rig.known["edge-1"] = rig.cards[0].serial
    async with rig.broker() as port:
        broker, clock = rig.device(port)
        async with running(broker) as inbox:
            rig.server.say(publish(DESIRED, b"one", retain=True))
            assert await asyncio.wait_for(inbox.get(), 20) == ("desired", b"one")
            rig.cards.append(await asyncio.to_thread(Card, rig.ca, rig.folder, "edge-1"))
            rig.known["edge-1"] = rig.cards[-1].serial
            await rig.embedded.cut("edge-1")
            assert await asyncio.wait_for(inbox.get(), 20) == ("desired", b"one")
            rig.known.clear()
            await rig.embedded.cut("edge-1")
            await until_trouble(broker, clock, "does not let this device in: was it revoked?")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # paho leaves a failed handshake's socket to the garbage
async def test_a_broker_is_believed_by_the_root_and_by_its_name(rig: Rig, tmp_path: Path) -> None:
    rig.known["edge-1"] = rig.cards[0].serial
    async with rig.broker("elsewhere.example") as port:
        broker, clock = rig.device(port)
        async with running(broker):
            await until_trouble(broker, clock, "Hostname mismatch", "hostname")
    rig.trusted = (await asyncio.to_thread(DeviceCA.open, tmp_path / "other")).tls_ca
    async with rig.broker() as port:
        broker, clock = rig.device(port)
        async with running(broker):
            await until_trouble(
                broker, clock, "self-signed", "unable to get", "CERTIFICATE_VERIFY_FAILED", "certificate"
            )
    del broker
    gc.collect()
    assert rig.embedded.figures["refused"] == 0  # neither of them heard a CONNECT


async def test_a_broker_s_certificate_that_ended_below_the_floor_is_not_believed(rig: Rig) -> None:
    rig.known["edge-1"] = rig.cards[0].serial
    async with rig.broker() as port:
        broker, clock = rig.device(port)
        clock.signed = 4_102_444_800.0  # 2100
        async with running(broker):
            await until_trouble(broker, clock, "certificate expired at")
        clock.signed = 0.0
        async with running(broker) as inbox:
            rig.server.say(publish(DESIRED, b"one", retain=True))
            assert await asyncio.wait_for(inbox.get(), 20) == ("desired", b"one")


async def test_a_broker_that_announces_too_much_is_left(rig: Rig, free_port: Callable[[], int]) -> None:
    """Room for a packet is made at once: 200 MiB would be the end of a small device's agent."""
    port, left = free_port(), asyncio.Event()

    async def lies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(b"\x20\x02\x00\x00")  # let in
        await reader.readuntil(b"presence")
        writer.write(b"\x90\x03\x00\x01\x01" + b"\x30\x80\x80\x80\x64" + b"x" * 1000)
        while await reader.read(4096):
            pass
        left.set()
        writer.close()

    context = await asyncio.to_thread(lambda: tls_context(*rig.ca.server_files(["localhost"]), rig.ca.device_ca))
    server = await asyncio.start_server(lies, "localhost", port, ssl=context)
    broker, _ = rig.device(port)
    async with running(broker):
        await asyncio.wait_for(left.wait(), 20)
    server.close()


async def test_without_readable_files_it_says_so_and_tries_again(rig: Rig) -> None:
    rig.known["edge-1"] = rig.cards[0].serial
    kept = rig.cards[0].file.read_bytes()
    rig.cards[0].file.write_bytes(b"torn")
    async with rig.broker() as port:
        broker, clock = rig.device(port)
        async with running(broker) as inbox:
            await until_trouble(broker, clock, "cannot be read")
            rig.cards[0].file.write_bytes(kept)
            rig.server.say(publish(DESIRED, b"one", retain=True))
            assert await asyncio.wait_for(inbox.get(), 20) == ("desired", b"one")


def test_mqtts_without_a_certificate_is_refused() -> None:
    with pytest.raises(Invalid):
        Broker("mqtts://localhost", "edge-1", None)  # type: ignore[arg-type]
