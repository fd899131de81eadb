"""The server's side of the link: one MQTT connection (aiomqtt), made again whenever it is lost.

Reconnects wait with exponential backoff and full jitter, so that the servers and devices of a broker that comes back do
not arrive together. Messages out of a lost connection are lost: the engine sends again what matters.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiomqtt

from interlock_shared import topics
from interlock_shared.errors import Invalid, Unreachable
from interlock_shared.limits import BACKOFF_CAP_S, BACKOFF_FIRST_S

log = logging.getLogger(__name__)

KEEPALIVE_S = 30
PUBLISH_S = 5.0  # an unanswered publish: the connection is dead, and aiomqtt does not end what waits in it


@dataclass(frozen=True)
class Address:
    """A broker's `mqtts://host[:port]`. One with a user name is the embedded one's private door, without TLS."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises Invalid."""
        parts = urlsplit(url)
        try:
            port = 8883 if parts.port is None else parts.port
        except ValueError:
            port = 0
        if parts.scheme != "mqtts" or not parts.hostname or not port or parts.path.strip("/") or "@" in parts.netloc:
            raise Invalid(f"broker: {url!r} is not mqtts://host[:port], without user and password", field="broker")
        return cls(parts.hostname, port)

    @property
    def public(self) -> str:
        """The URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtts://{host}:{self.port}"


class Broker:
    """The Link of ports.py. `run` until cancelled. `tls` makes the context of one connection; called in a thread."""

    def __init__(
        self,
        address: Address,
        identifier: str,
        sleep: Callable[[float], Awaitable[None]],
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._address, self._identifier, self._sleep, self._tls = address, identifier, sleep, tls
        self._client: aiomqtt.Client | None = None
        self.ready = asyncio.Event()

    async def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Send, QoS 1; returns when the broker has it. Raises Unreachable."""
        client = self._client
        if client is None:
            raise Unreachable("the broker is not connected")
        try:
            await client.publish(topic, payload, qos=1, retain=retain, timeout=PUBLISH_S)
        except (aiomqtt.MqttError, ValueError) as bad:
            raise Unreachable(f"the broker did not take a message: {bad}") from None

    async def run(self, received: Callable[[str, bytes], None], connected: Callable[[], None]) -> None:
        """Connect, listen, and again."""
        attempt = 0
        while True:
            try:
                context = await asyncio.to_thread(self._tls) if self._tls and not self._address.username else None
                async with self._connection(context) as client:
                    for kind in topics.DEVICE_MAY_PUBLISH:
                        await client.subscribe(topics.any_device(kind), qos=1)
                    self._client, attempt = client, 0
                    log.info("connected to the broker at %s", self._address.public)
                    connected()
                    self.ready.set()
                    async for message in client.messages:
                        if isinstance(message.payload, bytes):
                            received(str(message.topic), message.payload)
            except (aiomqtt.MqttError, OSError) as lost:
                log.warning("the broker at %s: %s", self._address.public, lost)
            finally:
                self._client = None
                self.ready.clear()
            wait = random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2**attempt))
            attempt = min(attempt + 1, 10)
            await self._sleep(wait)

    def _connection(self, context: ssl.SSLContext | None) -> aiomqtt.Client:
        return aiomqtt.Client(
            self._address.host,
            self._address.port,
            username=self._address.username,
            password=self._address.password,
            identifier=self._identifier,
            keepalive=KEEPALIVE_S,
            clean_session=bool(self._address.username),  # an external broker keeps what devices say while we are away
            tls_context=context,
            protocol=aiomqtt.ProtocolVersion.V311,
            max_queued_incoming_messages=10_000,
            logger=logging.getLogger("interlock_server.mqtt"),
        )
