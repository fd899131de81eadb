"""The embedded MQTT broker: amqtt behind a gate of our own, so that one command runs everything. MQTT 3.1.1 only.

amqtt checks credentials after it has let a newcomer take over a session, does not check wills, keeps the old connection
of a client that came back (whose will then says "offline"), never notices that a client fell silent, takes packets of
any size, and shows a newcomer what is retained for other people's subscriptions. Hence the gate:

1. The first packet is a CONNECT, small, in time, and MQTT 3.1.1.
2. User name and password are right. Nobody is anonymous.
3. A will goes to the client's own presence and nowhere else.
4. The client id becomes the user name and the session a clean one: nobody takes over a neighbour's, nothing is kept
   for the absent (outbox and retained documents do that).
5. The server itself listens: what nobody hears would be acknowledged, and lost.
6. An older connection of the same client has ended, its will included, before the new one begins.
7. A packet above PACKET_MAX_BYTES or a silence of 1.5 keep-alive periods ends the connection.

After it amqtt asks `allowed` for each publish, subscription and delivery.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from amqtt.adapters import ReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BrokerConfig, ListenerConfig, ListenerType

from interlock_shared import topics
from interlock_shared.errors import Invalid
from interlock_shared.limits import DOCUMENT_MAX_BYTES

log = logging.getLogger(__name__)

SERVER = "@server"  # no device id begins with an @
CONNECT_MAX_BYTES = 16 * 1024  # id, credentials and a will of a few dozen bytes
CONNECT_S = 10.0  # a connection that has not said who it is by then is closed
PACKET_MAX_BYTES = DOCUMENT_MAX_BYTES + 4096  # the largest document, and its topic
PIECE_BYTES = 64 * 1024  # read at once, so that a slow link that still moves is no silence
TAKE_OVER_S = 5.0  # for the older connection's end
CONNECTIONS_MAX = 20_000  # above what one process of this broker serves well; a larger fleet has a broker of its own

OLD_PROTOCOL, UNAVAILABLE, BAD_CREDENTIALS, NOT_AUTHORISED = 1, 3, 4, 5  # CONNACK return codes (MQTT 3.1.1, 3.2.2.3)

Authenticate = Callable[[str, str], Awaitable[bool]]


def allowed(username: str, action: str, topic: str) -> bool:
    """Whether the client may `publish` to, `subscribe` to or `receive` from the topic. A filter with a wildcard is no
    device's own topic, and so refused.
    """
    if username == SERVER:
        return True
    parsed = topics.parse_device_topic(topic)
    if action == Action.PUBLISH:
        return parsed is not None and parsed[0] == username and parsed[1] in topics.DEVICE_MAY_PUBLISH
    if topic == topics.NOTICE:
        return True
    return parsed is not None and parsed[0] == username and parsed[1] in topics.DEVICE_MAY_SUBSCRIBE


class Refused(Exception):
    """CONNACK with this code, then the end."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True)
class Connect:
    """A CONNECT packet (MQTT 3.1.1, 3.1)."""

    keepalive: int
    username: str
    password: str
    will: tuple[str, bytes, int] | None  # topic, payload, will flags (QoS and retain bits)

    def checked_packet(self) -> bytes:
        """The packet as amqtt gets it: clean session, client id = user name, no password, and no keep-alive: amqtt's
        own timer changes nothing but that it may lose its place in the stream.
        """
        flags = 0x80 | 0x02 | (self.will[2] | 0x04 if self.will else 0)
        body = _text(b"MQTT") + struct.pack("!BBH", 4, flags, 0) + _text(self.username.encode())
        if self.will:
            body += _text(self.will[0].encode()) + _text(self.will[1])
        body += _text(self.username.encode())
        return b"\x10" + _length(len(body)) + body


def _text(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


def _length(value: int) -> bytes:
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (0x80 if value else 0))
        if not value:
            return bytes(out)


class _Fields:
    """Reads a packet's body. Raises Invalid beyond its end."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def take(self, size: int) -> bytes:
        part = self._body[self._at : self._at + size]
        if len(part) != size:
            raise Invalid("CONNECT: cut short")
        self._at += size
        return part

    def data(self) -> bytes:
        return self.take(int.from_bytes(self.take(2), "big"))

    def text(self) -> str:
        try:
            return self.data().decode()
        except UnicodeDecodeError:
            raise Invalid("CONNECT: not UTF-8") from None


def parse_connect(body: bytes) -> Connect:
    """A CONNECT packet's body (step 1). Raises Invalid, Refused."""
    fields = _Fields(body)
    if fields.data() != b"MQTT" or fields.take(1) != b"\x04":
        raise Refused(OLD_PROTOCOL, "speaks another protocol than MQTT 3.1.1")
    flags = fields.take(1)[0]
    keepalive = int.from_bytes(fields.take(2), "big")
    fields.text()  # the client id: the user name stands for it
    will = (fields.text(), fields.data(), flags & 0x38) if flags & 0x04 else None
    if not flags & 0x80 or not flags & 0x40:
        raise Refused(BAD_CREDENTIALS, "is anonymous")
    return Connect(keepalive, fields.text(), fields.text(), will)


class _Reader(ReaderAdapter):  # type: ignore[misc]
    """What amqtt reads: the checked CONNECT, then the connection, bounded in size and silence (step 7)."""

    def __init__(self, first: bytes, reader: asyncio.StreamReader, silence: float | None) -> None:
        self._first, self._reader, self._silence = first, reader, silence
        self._over = False

    async def read(self, n: int = -1) -> bytes:
        if self._first:
            part, self._first = self._first[:n], self._first[n:]
            return part
        if self._over or not 0 <= n <= PACKET_MAX_BYTES:
            self._over = True  # nothing more: what follows would be read out of step
            return b""  # amqtt takes it for the end of the connection
        pieces, left = [], n
        while left:
            try:
                async with asyncio.timeout(self._silence):
                    piece = await self._reader.readexactly(min(left, PIECE_BYTES))
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                self._over = True
                return b""
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def feed_eof(self) -> None:
        self._reader.feed_eof()


class _Broker(Broker):  # type: ignore[misc]
    """amqtt with our rules. None of these ever waits: amqtt walks its tables across the call."""

    async def _authenticate(self, session: Any, _: Any) -> bool:
        return True  # the gate did

    async def _topic_filtering(self, session: Any, topic: str, action: Any) -> bool:
        return allowed(session.username or "", action, topic)

    async def _publish_retained_messages_for_subscription(self, subscription: Any, session: Any) -> None:
        subscribers = self._subscriptions.get(subscription[0], ())
        if any(one.client_id == session.client_id for one, _ in subscribers):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _session_monitor(self) -> None:
        await asyncio.Event().wait()  # sessions end with their connections: `forget`

    async def forget(self, username: str) -> None:
        """The connection of that client has ended."""
        await self._cleanup_session(username)


@dataclass
class _Connection:
    writer: asyncio.StreamWriter
    ended: asyncio.Event


class EmbeddedBroker:
    """`start`, `stop`; `password` is what the server connects with; `listening` is set once it has subscribed."""

    LOGGERS: ClassVar = ("amqtt", "transitions", "websockets")

    def __init__(self, authenticate: Authenticate, listening: asyncio.Event) -> None:
        self._authenticate = authenticate
        self.password = secrets.token_urlsafe(32)
        self._listening = listening
        self._connections: dict[str, _Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        for name in self.LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # each client that goes away is a traceback in there

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the real address. Raises OSError."""
        listener = ListenerConfig(type=ListenerType.EXTERNAL, bind="external")
        self._broker = _Broker(BrokerConfig(listeners={"default": listener}, plugins={}))
        await self._broker.start()
        self._server = await asyncio.start_server(self._accepted, host or None, port)
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def stop(self) -> None:
        """Everybody is disconnected when it returns."""
        if self._server is not None:
            self._server.close()
        await self._broker.shutdown()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._tasks) <= CONNECTIONS_MAX:
                await self._admit(reader, writer)
        except Refused as refused:
            level = logging.INFO if refused.code == UNAVAILABLE else logging.WARNING
            log.log(level, "a client from %s %s", writer.get_extra_info("peername"), refused)
            writer.write(bytes((0x20, 0x02, 0x00, refused.code)))
        except (Invalid, OSError, TimeoutError, asyncio.IncompleteReadError) as bad:
            log.info("a client from %s: %s", writer.get_extra_info("peername"), bad)
        except asyncio.CancelledError:
            pass  # the server stops
        except Exception:
            log.exception("a connection of the broker failed")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(CONNECT_S):
            connect = parse_connect(await _first_packet(reader))  # 1
            if not await self._knows(connect.username, connect.password):  # 2
                raise Refused(BAD_CREDENTIALS, "has no valid credentials")
        own = connect.username == SERVER or topics.device_topic("presence", connect.username)
        if connect.will and own is not True and connect.will[0] != own:  # 3
            raise Refused(NOT_AUTHORISED, f"({connect.username}) has a will that is not its presence")
        if connect.username != SERVER:
            await self._until_listening()  # 5
        await self._serve(connect, reader, writer)

    async def _until_listening(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._listening.wait()
        except (TimeoutError, asyncio.CancelledError):
            # Said, not only closed: a client that gets no CONNACK may wait for it as long as its own timeout.
            raise Refused(UNAVAILABLE, "came while the server did not listen") from None

    async def _knows(self, username: str, password: str) -> bool:
        if username == SERVER:
            return secrets.compare_digest(password.encode(), self.password.encode())
        return await self._authenticate(username, password)

    async def _serve(self, connect: Connect, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = _Connection(writer, asyncio.Event())
        while (older := self._connections.get(connect.username)) is not None:  # 6
            older.writer.transport.abort()
            async with asyncio.timeout(TAKE_OVER_S):
                await older.ended.wait()
        self._connections[connect.username] = mine
        silence = connect.keepalive * 1.5 or None
        try:
            guarded = _Reader(connect.checked_packet(), reader, silence)  # 4, 7
            await self._broker.external_connected(guarded, StreamWriterAdapter(writer), "default")
        finally:
            await self._broker.forget(connect.username)
            del self._connections[connect.username]
            mine.ended.set()


async def _first_packet(reader: asyncio.StreamReader) -> bytes:
    """The body of a CONNECT packet. Raises Invalid, asyncio.IncompleteReadError."""
    if (await reader.readexactly(1)) != b"\x10":
        raise Invalid("the first packet is no CONNECT")
    size = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        size |= (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            break
        if shift > 21:
            raise Invalid("CONNECT: malformed length")
    if size > CONNECT_MAX_BYTES:
        raise Invalid(f"CONNECT: {size} bytes, at most {CONNECT_MAX_BYTES} are read")
    return await reader.readexactly(size)
