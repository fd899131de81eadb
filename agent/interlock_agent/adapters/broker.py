"""The MQTT broker, through aiomqtt: reconnects with full jitter, says who is there by its last will.

MQTT 3.1.1 is the floor; QoS 1; a persistent session, so that the broker keeps what comes while the device is away.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import aiomqtt

from interlock_agent.core.retry import backoff
from interlock_agent.ports import Clock
from interlock_shared import tasks, topics
from interlock_shared.documents import PRESENCE_SCHEMA
from interlock_shared.errors import Invalid, Unreachable

log = logging.getLogger("interlock.broker")

PUBLISH_TIMEOUT_S = 30.0


def _presence(online: bool) -> bytes:
    return json.dumps({"schema": PRESENCE_SCHEMA, "online": online}).encode()


class Broker:
    """A connection that is there again whenever it can be. `on_message(kind, payload)`, `on_connect()`."""

    def __init__(
        self, url: str, device: str, password: str, clock: Clock, *, keepalive_s: int = 30, cap_s: float = 60.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise Invalid(f"not an address of a broker: {url}", field="broker")
        self._host, self._port = parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        self._tls = aiomqtt.TLSParameters() if parts.scheme == "mqtts" else None
        self._device, self._password, self._clock = device, password, clock
        self._keepalive_s, self._cap_s = keepalive_s, cap_s
        self._client: aiomqtt.Client | None = None
        self.failures = 0
        self.trouble = ""
        self.on_message: Callable[[str, bytes], Awaitable[None]] | None = None
        self.on_connect: Callable[[], Coroutine[Any, Any, None]] | None = None

    @property
    def connected(self) -> bool:
        """Whether a session is open."""
        return self._client is not None

    async def run(self) -> None:
        """Keep a session until cancelled."""
        while True:
            try:
                await self._session()
            except (aiomqtt.MqttError, OSError) as broken:
                self.failures += 1
                if str(broken) != self.trouble:
                    log.warning("broker: %s", broken)
                self.trouble = str(broken)
            finally:
                self._client = None
            await self._clock.sleep(backoff(max(self.failures, 1), self._clock.dice(), cap=self._cap_s))

    async def _session(self) -> None:
        presence = topics.device_topic("presence", self._device)
        client = aiomqtt.Client(
            self._host,
            self._port,
            identifier=f"interlock-{self._device}",
            username=self._device,
            password=self._password,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=False,
            keepalive=self._keepalive_s,
            tls_params=self._tls,
            will=aiomqtt.Will(presence, _presence(online=False), qos=1, retain=True),
        )
        async with client:
            for kind in topics.DEVICE_MAY_SUBSCRIBE:
                await client.subscribe(topics.device_topic(kind, self._device), qos=1)
            await client.subscribe(topics.NOTICE, qos=1)
            await client.publish(presence, _presence(online=True), qos=1, retain=True)
            self._client, self.failures, self.trouble = client, 0, ""
            log.info("broker: connected")
            greeting = asyncio.create_task(self.on_connect()) if self.on_connect else None
            try:
                async for message in client.messages:
                    await self._received(str(message.topic), message.payload)
            finally:
                self._client = None
                if greeting is not None:
                    await tasks.ended([greeting])

    async def _received(self, topic: str, payload: object) -> None:
        if self.on_message is None or not isinstance(payload, bytes | bytearray):
            return
        if topic == topics.NOTICE:
            await self.on_message("notice", bytes(payload))
            return
        parsed = topics.parse_device_topic(topic)
        if parsed is not None and parsed[0] == self._device:
            await self.on_message(parsed[1], bytes(payload))

    async def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish under the device's own topic; returns when the broker has acknowledged. Raises Unreachable."""
        client = self._client
        if client is None:
            raise Unreachable("not connected to the broker")
        try:
            topic = topics.device_topic(kind, self._device)
            await client.publish(topic, payload, qos=1, retain=retain, timeout=PUBLISH_TIMEOUT_S)
        except aiomqtt.MqttError as broken:
            raise Unreachable(f"broker: {broken}") from None

    async def goodbye(self) -> None:
        """Say that the device goes away on purpose."""
        try:
            await self.publish("presence", _presence(online=False), retain=True)
        except Unreachable:
            return
