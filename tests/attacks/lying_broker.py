"""A broker that somebody else owns: it lets every device in, hears what it says, tells it what it likes, and keeps what
it should pass on. It has the server's own certificate, so that devices come to it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from interlock_server.adapters.embedded_broker import EmbeddedBroker
from interlock_server.core.mqtt_rules import SERVER
from interlock_shared import topics
from tests.rig.fleet import DEADLINE_S, until


async def _anybody(device: str, serial: str) -> bool:
    del device, serial
    return True


class LyingBroker:
    """`say` to a device; `heard`: (topic, payload) of all that devices have said."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._listening = threading.Event()
        self.heard: list[tuple[str, bytes]] = []
        self.address = ""

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    async def _start(self) -> EmbeddedBroker:
        broker = EmbeddedBroker(_anybody, self._tls)
        host, port = await broker.start("127.0.0.1", 0)
        self.address = f"{host}:{port}"
        return broker

    def __enter__(self) -> LyingBroker:
        self._thread.start()
        self._broker: EmbeddedBroker = self._run(self._start())
        self._client.username_pw_set(SERVER, self._broker.password)
        self._client.on_message = lambda _, __, message: self.heard.append((message.topic, bytes(message.payload)))
        self._client.on_subscribe = lambda *_: self._listening.set()
        self._client.connect(*self._broker.private)
        self._client.loop_start()
        self._client.subscribe([(topics.any_device(kind), 1) for kind in topics.DEVICE_MAY_PUBLISH])
        assert self._listening.wait(DEADLINE_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._run(self._broker.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    def say(self, device: str, kind: str, payload: bytes) -> None:
        """Publish to one device, retained; it has been handed on when this returns."""
        self._client.publish(topics.device_topic(kind, device), payload, 1, retain=True).wait_for_publish(DEADLINE_S)

    def notice(self) -> None:
        """The metadata has moved on: the liar may say that, too."""
        self._client.publish(topics.NOTICE, b"{}", 1).wait_for_publish(DEADLINE_S)

    def shout(self, device: str, kind: str, payload: bytes) -> None:
        """Publish without waiting."""
        self._client.publish(topics.device_topic(kind, device), payload, 1)

    def hears(self, what: Callable[[str, bytes], bool]) -> bytes:
        """Wait until a device says such a thing; its payload."""

        def look() -> list[bytes]:
            return [payload for topic, payload in list(self.heard) if what(topic, payload)]

        return bytes(until(look, "a device's word")[0])
