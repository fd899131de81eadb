"""The MQTT broker, through aiomqtt: reconnects with full jitter, says who is there by its last will.

MQTT 3.1.1 is the floor; QoS 1; a persistent session, so that the broker keeps what comes while the device is away.
`mqtts`: the device shows its certificate, and the broker's is checked against the TLS authority of the trusted root,
its name included. Both are read anew for each connection, so that what was renewed is used from the next one on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import aiomqtt

from interlock_agent.core.retry import backoff
from interlock_agent.ports import Clock
from interlock_shared import tasks, topics
from interlock_shared.documents import PRESENCE_SCHEMA
from interlock_shared.errors import Invalid, Unreachable
from interlock_shared.limits import DOCUMENT_MAX_BYTES

log = logging.getLogger("interlock.broker")

PUBLISH_TIMEOUT_S = 30.0
WAITING_MAX = 64  # messages that are not looked at yet; more are dropped, and asked for or sent again
PACKET_MAX_BYTES = DOCUMENT_MAX_BYTES + 4096  # the largest document, and its topic
NOT_LET_IN = (134, 135)  # as paho names CONNACK 4 (bad credentials) and 5 (not authorised) of MQTT 3.1.1


def _words(broken: Exception) -> str:
    """Of a connection that failed. A broker has few codes for a certificate that it does not take."""
    code = getattr(getattr(broken, "rc", None), "value", None)
    return "it does not let this device in: was it revoked?" if code in NOT_LET_IN else str(broken)


def _presence(online: bool) -> bytes:
    return json.dumps({"schema": PRESENCE_SCHEMA, "online": online}).encode()


def _bound(client: aiomqtt.Client) -> None:
    """A packet may be 256 MiB, and paho makes room for all of it at once: who announces more than a document ends the
    connection. No other place of paho's knows the size before; a test fails when this one moves.
    """
    paho = client._client  # noqa: SLF001
    receive = paho._sock_recv  # noqa: SLF001

    def bounded(size: int) -> bytes:
        if size > PACKET_MAX_BYTES:
            raise ConnectionError(f"the broker announces a packet of {size} bytes")
        return receive(size)

    paho._sock_recv = bounded  # type: ignore[assignment, method-assign]  # noqa: SLF001


class Broker:
    """A connection that is there again whenever it can be. `on_message(kind, payload)`, `on_connect()`."""

    def __init__(
        self,
        url: str,
        device: str,
        clock: Clock,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        keepalive_s: int = 30,
        cap_s: float = 60.0,
    ) -> None:
        """`tls` makes the context of one `mqtts` connection; it reads files, and is called in a thread."""
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise Invalid(f"not an address of a broker: {url}", field="broker")
        self._host, self._port = parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 1883)
        if parts.scheme == "mqtts" and tls is None:
            raise Invalid(f"{url} needs a certificate, and this device has none", field="broker")
        self._tls = tls if parts.scheme == "mqtts" else None
        self._device, self._clock = device, clock
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
            except (aiomqtt.MqttError, OSError, Unreachable) as broken:
                self.failures += 1
                why = _words(broken)
                if why != self.trouble:
                    log.warning("broker: %s", why)
                self.trouble = why
            finally:
                self._client = None
            await self._clock.sleep(backoff(max(self.failures, 1), self._clock.dice(), cap=self._cap_s))

    async def _session(self) -> None:
        context = await self._context()
        presence = topics.device_topic("presence", self._device)
        client = aiomqtt.Client(
            self._host,
            self._port,
            identifier=f"interlock-{self._device}",
            username=self._device,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=False,
            keepalive=self._keepalive_s,
            tls_context=context,
            will=aiomqtt.Will(presence, _presence(online=False), qos=1, retain=True),
            max_queued_incoming_messages=WAITING_MAX,
        )
        _bound(client)
        async with client:
            self._check_dates(client)
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

    def _check_dates(self, client: aiomqtt.Client) -> None:
        """OpenSSL was told not to (fetcher/credentials.py): the floor decides, as over HTTPS. Raises Unreachable."""
        sock = client._client.socket()  # noqa: SLF001
        ends = (sock.getpeercert() or {}).get("notAfter") if isinstance(sock, ssl.SSLSocket) else None
        if ends and ssl.cert_time_to_seconds(str(ends)) < self._clock.floor():
            raise Unreachable(f"the broker's certificate expired at {ends}")

    async def _context(self) -> ssl.SSLContext | None:
        try:
            return await asyncio.to_thread(self._tls) if self._tls else None
        except (OSError, ValueError) as bad:
            raise Unreachable(f"the device's certificate or the TLS authority cannot be read: {bad}") from None

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
