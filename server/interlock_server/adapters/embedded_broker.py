"""The embedded MQTT broker, so that one command runs everything: MQTT 3.1.1 over TLS, for devices and one server.

Two doors: the public one, where a client certificate says who it is; a private one on the loopback, for the server of
this very process, with a password that never leaves its memory. Who may what is in core/mqtt_rules.py. On top of it:

1. The first packet is a CONNECT, small, in time, and MQTT 3.1.1; so is the TLS handshake before it.
2. The certificate is of our device CA, its device known and not revoked. The user name says the same, or nothing.
3. A will goes to the client's own presence and nowhere else.
4. The client's name stands for its client id, and every session is a clean one: nobody takes over a neighbour's,
   nothing is kept for the absent (outbox and retained documents do that).
5. The server itself listens: what nobody hears would be acknowledged, and lost.
6. An older connection of the same client has ended, its will included, before the new one begins.
7. A malformed packet, one above PACKET_MAX_BYTES or a silence of 1.5 keep-alive periods ends the connection; so does
   the end of the certificate's life. What is well-formed but forbidden is acknowledged, counted, and reaches nobody.
8. Nobody starves others: a client that says too much is read slower; messages to the server take turns, one a device;
   who does not take what is sent to it is cut.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from interlock_server.core import mqtt, mqtt_rules
from interlock_server.core.mqtt import Message, RefusedConnection
from interlock_server.core.mqtt_rules import SERVER, Allowance, Hub, Outgoing
from interlock_server.mqtt_stream import CONNECT_S, certificate, read_connect, read_packet
from interlock_shared import topics
from interlock_shared.errors import Busy, Invalid

log = logging.getLogger(__name__)

SILENCE_MAX_S = 3600.0  # for a client that asks for no keep-alive
TAKE_OVER_S = 5.0  # for the older connection's end
TAKE_OVERS_S = 600.0  # the time over which take-overs are counted
CONNECTIONS_MAX = 20_000  # above what one process of this broker serves well; a larger fleet has a broker of its own
STRANGERS_MAX = 2_000  # connections that have not said who they are
OUT_MAX_BYTES = 8 * 1024 * 1024  # written to a client and not taken by it

Knows = Callable[[str, str], Awaitable[bool]]  # (device, serial of its certificate, lower-case hex)


@dataclass(frozen=True)
class TakeOver:
    """A client came while it was connected already: it lost its link, or there are two of it.

    `count`: in the last TAKE_OVERS_S, this one included. `silent_s`: for how long the older one had said nothing.
    `older`, `newer`: the addresses.
    """

    device: str
    count: int
    older: str
    newer: str
    silent_s: float


@dataclass
class _Client:
    name: str
    address: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    silence: float
    outgoing: Outgoing
    allowance: Allowance
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # there may be room again

    @property
    def room(self) -> bool:
        return self.outgoing.room and self.writer.transport.get_write_buffer_size() < OUT_MAX_BYTES

    def write(self, data: bytes) -> None:
        if data and not self.writer.transport.is_closing():
            self.writer.write(data)

    def abort(self) -> None:
        self.writer.transport.abort()


class EmbeddedBroker:
    """`start`, `stop`. `figures`: refused, throttled, slow, taken_over since the start."""

    def __init__(self, knows: Knows, tls: ssl.SSLContext, now: Callable[[], float] = time.time) -> None:
        self._knows, self._tls, self._now = knows, tls, now
        self.password = secrets.token_urlsafe(32)  # of SERVER, at the private door
        self.private = ("", 0)
        self.figures: Counter[str] = Counter()
        self.on_take_over: Callable[[TakeOver], None] = lambda _: None
        self._hub = Hub()
        self._clients: dict[str, _Client] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self._listening = asyncio.Event()
        self._turn = asyncio.Lock()  # wakes those who wait in the order in which they came
        self._cuts = 0
        self._complained: set[str] = set()
        self._take_overs: dict[str, deque[float]] = {}
        self._servers: list[asyncio.Server] = []

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the real address. Raises OSError."""
        public = await asyncio.start_server(self._at_public, host or None, port)
        self._servers.append(public)
        private = await asyncio.start_server(self._at_private, "127.0.0.1", 0)
        self._servers.append(private)
        self.private = private.sockets[0].getsockname()[:2]
        name = public.sockets[0].getsockname()
        return name[0], name[1]

    async def stop(self) -> None:
        """Everybody is disconnected when it returns."""
        for server in self._servers:
            server.close()
        while self._tasks:
            ending = list(self._tasks)
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            self._tasks.difference_update(ending)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    async def cut(self, device: str) -> None:
        """End the device's session, at once. Whether it may come back is what `knows` says from now on."""
        self._cuts += 1
        client = self._clients.get(device)
        if client is not None:
            client.abort()
            await client.ended.wait()

    def take_overs(self, device: str) -> int:
        """How often the device was taken over by itself in the last TAKE_OVERS_S."""
        times = self._take_overs.get(device, deque())
        while times and times[0] < _passed() - TAKE_OVERS_S:
            times.popleft()
        return len(times)

    # --- the doors -------------------------------------------------------------------------------------------------

    async def _at_public(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._accepted(reader, writer, self._tls)

    async def _at_private(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._accepted(reader, writer, None, private=True)

    async def _accepted(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tls: ssl.SSLContext | None,
        *,
        private: bool = False,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = str((writer.get_extra_info("peername") or ("?",))[0])
        try:
            if len(self._tasks) <= CONNECTIONS_MAX and self._strangers < STRANGERS_MAX:
                await self._admit(reader, writer, tls, peer, private=private)
        except RefusedConnection as refused:
            level = logging.INFO if refused.code == mqtt.UNAVAILABLE else logging.WARNING
            log.log(level, "a client from %s %s", peer, refused)
            self.figures["refused"] += 1
            if not writer.transport.is_closing():
                writer.write(mqtt.connack(refused.code))
        except (Invalid, OSError, TimeoutError, asyncio.IncompleteReadError) as bad:
            log.info("a client from %s: %s", peer, "gone" if isinstance(bad, asyncio.IncompleteReadError) else bad)
        except asyncio.CancelledError:
            writer.transport.abort()  # the server stops
        except Exception:
            log.exception("a connection of the broker failed")
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _admit(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tls: ssl.SSLContext | None,
        peer: str,
        *,
        private: bool,
    ) -> None:
        self._strangers += 1
        try:
            name, serial, ends = "", "", 0.0
            if tls is not None:  # before anything else is awaited: the handshake must not get into the reader
                await writer.start_tls(tls, ssl_handshake_timeout=CONNECT_S)
                name, serial, ends = certificate(writer)
            async with asyncio.timeout(CONNECT_S):
                connect = await read_connect(reader)  # 1
            if private:
                name, serial = connect.username or "", connect.password or ""
                if name != SERVER:
                    raise RefusedConnection(mqtt.BAD_CREDENTIALS, "has no business at this door")
            if connect.username not in (None, "", name):  # 2
                raise RefusedConnection(mqtt.NOT_AUTHORISED, f"({name}) says that it is {connect.username!r}")
            if connect.will and not mqtt_rules.may_will(name, connect.will.topic):  # 3
                raise RefusedConnection(mqtt.NOT_AUTHORISED, f"({name}) has a will that is not its presence")
            silence = min(connect.keepalive * 1.5 or SILENCE_MAX_S, SILENCE_MAX_S)
            outgoing = Outgoing(mqtt_rules.SERVER_WINDOW if name == SERVER else mqtt_rules.WINDOW)
            client = _Client(name, peer, reader, writer, silence, outgoing, Allowance(_passed()))
            await self._let_in(client, serial, private=private)
        finally:
            self._strangers -= 1
        await self._serve(client, connect.will, ends)

    async def _let_in(self, client: _Client, serial: str, *, private: bool) -> None:
        """Steps 2, 5 and 6; nobody else is waited for between the last look and the entry into the table."""
        while True:
            cuts = self._cuts
            if not await self._is_known(client.name, serial, private=private):
                raise RefusedConnection(mqtt.BAD_CREDENTIALS, f"({client.name[:80]}) is not known, or revoked")
            if client.name != SERVER:
                await self._until_listening()
            while (older := self._clients.get(client.name)) is not None:
                self._taken_over(older, client)
                older.abort()
                async with asyncio.timeout(TAKE_OVER_S):
                    await older.ended.wait()
            if cuts == self._cuts:
                self._clients[client.name] = client
                return

    async def _is_known(self, name: str, serial: str, *, private: bool) -> bool:
        if private:
            return secrets.compare_digest(serial.encode(), self.password.encode())
        return name == SERVER or await self._knows(name, serial)

    async def _until_listening(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._listening.wait()
        except TimeoutError:
            # Said, not only closed: a client that gets no CONNACK may wait for it as long as its own timeout.
            raise RefusedConnection(mqtt.UNAVAILABLE, "came while the server did not listen") from None

    def _taken_over(self, older: _Client, newer: _Client) -> None:
        self.figures["taken_over"] += 1
        times = self._take_overs.setdefault(older.name, deque(maxlen=1000))
        times.append(_passed())
        silent = max(0.0, _passed() - older.allowance.at)
        facts = TakeOver(older.name, self.take_overs(older.name), older.address, newer.address, silent)
        self.on_take_over(facts)

    # --- a session -------------------------------------------------------------------------------------------------

    async def _serve(self, client: _Client, will: Message | None, ends: float) -> None:
        loop, timer = asyncio.get_running_loop(), None
        if ends:  # 7
            timer = loop.call_later(max(0.0, ends - self._now()), client.abort)
        try:
            client.write(mqtt.connack(mqtt.ACCEPTED))
            await self._talk(client)
            will = None  # it said goodbye
        finally:
            if timer is not None:
                timer.cancel()
            client.abort()
            self._hub.leave(client.name)
            if client.name == SERVER:
                self._listening.clear()
            client.moved.set()
            try:
                if will is not None:
                    await self._route(client, will)
            finally:
                del self._clients[client.name]
                client.ended.set()

    async def _talk(self, client: _Client) -> None:
        """Until DISCONNECT. Raises Invalid, OSError, TimeoutError, IncompleteReadError at any other end."""
        while True:
            kind, flags, body = await read_packet(client.reader, client.silence, mqtt.PACKET_MAX_BYTES)
            wait = client.allowance.spend(len(body), _passed())
            if wait and client.name != SERVER:  # 8
                self.figures["throttled"] += 1
                await asyncio.sleep(wait)
            if kind == mqtt.PUBLISH:
                await self._published(client, flags, body)
            elif kind == mqtt.PUBACK:
                client.write(client.outgoing.acknowledged(mqtt.parse_puback(flags, body)))
                client.moved.set()
            elif kind == mqtt.SUBSCRIBE:
                self._subscribed(client, flags, body)
            elif kind == mqtt.UNSUBSCRIBE:
                number, filters = mqtt.parse_unsubscribe(flags, body)
                for filter_ in filters:
                    self._hub.unsubscribe(client.name, filter_)
                client.write(mqtt.unsuback(number))
            elif kind in (mqtt.PINGREQ, mqtt.DISCONNECT):
                mqtt.parse_empty(kind, flags, body)
                if kind == mqtt.DISCONNECT:
                    return
                client.write(mqtt.PINGRESP_PACKET)
            else:
                raise Invalid(f"{client.name} sent a packet of type {kind}")
            if client.writer.transport.get_write_buffer_size() > OUT_MAX_BYTES and client.name != SERVER:
                self._slow(client, "it does not read")

    async def _published(self, client: _Client, flags: int, body: bytes) -> None:
        number, message = mqtt.parse_publish(flags, body)
        if not mqtt_rules.may_publish(client.name, message.topic):
            self._complain(client.name, f"published to {message.topic!r}")
        else:
            if client.name != SERVER and not self._listening.is_set():
                raise Invalid(f"{client.name} is let go: the server does not listen")  # 5
            await self._route(client, message)
        if number:
            client.write(mqtt.puback(number))

    def _subscribed(self, client: _Client, flags: int, body: bytes) -> None:
        number, filters = mqtt.parse_subscribe(flags, body)
        codes = [self._hub.subscribe(client.name, filter_, qos) for filter_, qos in filters]
        client.write(mqtt.suback(number, codes))
        taken = [(one, qos) for (one, _), qos in zip(filters, codes, strict=True) if qos != mqtt.NO_SUBSCRIPTION]
        if len(taken) < len(filters):
            self._complain(client.name, "subscribed to what is not its own")
        if client.name != SERVER:
            for filter_, qos in taken:
                for message in self._hub.kept(filter_):
                    self._send(client, message, qos)
            return
        task = asyncio.create_task(self._replay(client, taken))  # it waits for what this very connection says next
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if all(self._hub.hears(SERVER, topics.any_device(kind)) for kind in topics.DEVICE_MAY_PUBLISH):
            self._listening.set()

    async def _replay(self, server: _Client, taken: list[tuple[str, int]]) -> None:
        for filter_, qos in taken:
            for topic in [one.topic for one in self._hub.kept(filter_)]:
                if topic in self._hub.retained:  # the newest: it may have moved on
                    await self._to_server(server, self._hub.retained[topic], qos)

    # --- messages --------------------------------------------------------------------------------------------------

    async def _route(self, sender: _Client, message: Message) -> None:
        if message.retain and mqtt_rules.may_retain(sender.name, message.topic):
            self._hub.retain(sender.name, message)
        passing = Message(message.topic, message.payload, message.qos)
        for name, qos in self._hub.hearers(message.topic).items():
            hearer = self._clients.get(name)
            if hearer is None:
                continue
            if name == SERVER and sender.name != SERVER:
                await self._to_server(hearer, passing, qos)
            else:
                self._send(hearer, passing, qos)

    async def _to_server(self, server: _Client, message: Message, qos: int) -> None:
        """In turns (8): a device that floods has one message on its way, as everybody else."""
        async with self._turn:
            while not server.room and self._clients.get(SERVER) is server:
                server.moved.clear()
                await server.moved.wait()
            self._send(server, message, qos)

    def _send(self, client: _Client, message: Message, qos: int) -> None:
        try:
            client.write(client.outgoing.offer(message, qos))
        except Busy as behind:
            self._slow(client, behind.message)

    def _slow(self, client: _Client, why: str) -> None:
        self.figures["slow"] += 1
        log.warning("%s is cut off: %s", client.name, why)
        client.abort()

    def _complain(self, name: str, why: str) -> None:
        self.figures["refused"] += 1
        if name not in self._complained:
            self._complained.add(name)
            log.warning("%s %s, which it may not; further ones are counted", name, why)


def _passed() -> float:
    """Seconds, of a clock that only grows."""
    return asyncio.get_running_loop().time()
