"""The front's connections to one worker.

Rules of the file:
- One request at a time a connection; `idle` holds those that wait. Queueing is the router's.
- The end of a connection that the front did not close is the death of the worker: told once, with what was inside.
- An answer is handed on whole, never in part: nothing of a worker that then dies has reached a client.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from dataclasses import dataclass, field
from typing import Any, Protocol

from interlock_agent.host.front.bodies import Body
from interlock_agent.host.front.sharing import Channel
from interlock_agent.host.wire import (
    ANSWER,
    FLAG_IN_MEMORY,
    LARGE_BYTES,
    MAX_ANSWER_BYTES,
    NO_USER,
    REQUEST,
    TAKES_MEMORY,
    WRITE,
    check_whole,
    close_all,
    map_memory,
)

RECEIVE_BYTES = LARGE_BYTES + ANSWER.size  # an answer that is not in memory, at once
MAX_CONNECTIONS = 64  # to one worker; it says itself how many it serves


class Asking(Protocol):
    """Who waits for an exchange, and gets one of the two. What is said after it has gone is not heard."""

    def answer(self, exchange: Exchange, status: int, head: bytes, header: int, body: Any) -> None:
        """There is an answer. `head`: lines that name the release. `header`: as Exchange's. The body's memory is used
        again afterwards."""

    def fail(self, exchange: Exchange, status: int, code: str, message: str, retry_after: int = 0) -> None:
        """There is none."""

    def registered(self, name: str, ours: bool) -> None:
        """A region was registered by it; `ours`: it ends with the connection."""


@dataclass(eq=False)
class Exchange:
    """One request on its way: from the client's last byte to the answer's first."""

    client: Asking
    op: int
    version: bytes
    header_length: int  # of the JSON part of the body, NO_HEADER when that is all of it
    body: Any  # bytes or a bytearray, a Body from LARGE_BYTES on
    arrived: float  # loop time
    user: int = NO_USER  # who asks, as far as memory is shared
    writes: list[tuple[int, int, memoryview]] = field(default_factory=list)  # of its answer: region, offset, data
    deaths: int = 0  # workers that died with it inside
    avoid: Upstream | None = None  # gave a bad answer to it
    sent: float = 0.0
    cancelled: bool = False  # the client has gone, or was told that it is too late
    deadline: float = 0.0  # loop time after which the client wants no answer, 0: it has not said
    alarm: asyncio.TimerHandle | None = None  # at its deadline


class Listener(Protocol):
    """Who is told about answers and deaths: the router."""

    def answered(self, upstream: Upstream, exchange: Exchange, status: int, flags: int, header: int, body: Any) -> None:
        """A whole answer is here; the connection is idle again."""

    def died(self, upstream: Upstream, reason: str) -> None:
        """The worker has gone; `upstream.inside` holds what it had."""


@dataclass(eq=False)
class Upstream:
    """A worker as the front knows it."""

    worker: str
    release: str
    generation: int
    path: str
    connections: int
    listener: Listener
    channel: Channel
    idle: list[Connection] = field(default_factory=list)
    busy: dict[Exchange, Connection] = field(default_factory=dict)
    dead: bool = False
    closed: bool = False
    head: bytes = b""  # the headers that name the release, ready to send
    counters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.head = f"interlock-release: {self.release}\r\ninterlock-generation: {self.generation}\r\n".encode()
        self.counters = {"requests": 0, "errors": 0, "non_finite": 0, "replayed": 0, "refused": 0, "last_errors": []}

    async def connect(self) -> None:
        """Open all connections. Raises OSError."""
        for _ in range(min(self.connections, MAX_CONNECTIONS)):
            await self._connect_one()

    async def share(self) -> None:
        """The worker holds what is registered; one that cannot be told is lost."""
        try:
            await self.channel.sync()
        except (OSError, asyncio.TimeoutError) as error:
            self.lost(f"memory cannot be shared with it: {error!r}")

    async def _connect_one(self) -> None:
        connection = Connection(self)
        await connection.connect(self.path)
        if self.closed or self.dead:
            connection.close()
            return
        self.idle.append(connection)

    def send(self, exchange: Exchange, now: float) -> None:
        """Give it to the worker. There is an idle connection."""
        connection = self.idle.pop()
        self.busy[exchange] = connection
        exchange.sent = now
        connection.send(exchange)

    def take_back(self, exchange: Exchange) -> None:
        """Do not wait for its answer any more; the worker may still compute it."""
        connection = self.busy.pop(exchange, None)
        if connection is None:
            return
        connection.close()
        if not (self.closed or self.dead):
            task = asyncio.get_running_loop().create_task(self._replace())
            task.add_done_callback(lambda done: done.exception())

    async def _replace(self) -> None:
        try:
            await self._connect_one()
        except OSError as error:
            self.lost(f"cannot connect: {error}")

    def close(self) -> None:
        """The worker is no longer needed."""
        self.closed = True
        self.channel.close()
        for connection in [*self.idle, *self.busy.values()]:
            connection.close()
        self.idle.clear()
        self.busy.clear()

    def lost(self, reason: str) -> None:
        """It has died, or hangs: tell the router, once."""
        if self.closed or self.dead:
            return
        self.dead = True
        self.channel.close()
        for connection in [*self.idle, *self.busy.values()]:
            connection.close()
        self.idle.clear()
        self.listener.died(self, reason)


class Connection:
    """One stream to a worker. A socket and no transport: descriptors go beside the bytes, and what is sent is small
    enough to go at once, since the answer to what was sent before has come."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._exchange: Exchange | None = None
        self._buffer = bytearray()
        self._need = ANSWER.size
        self._answer: tuple[int, int, int, int, int] | None = None
        self._memory: mmap.mmap | None = None  # where the worker's large answers lie
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)

    async def connect(self, path: str) -> None:
        """Raises OSError."""
        try:
            await self._loop.sock_connect(self._socket, path)
        except BaseException:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._readable)

    def send(self, exchange: Exchange) -> None:
        """One request."""
        self._exchange = exchange
        version, size = exchange.version, len(exchange.body)
        op = exchange.op | TAKES_MEMORY
        head = REQUEST.pack(op, exchange.user, len(version), exchange.header_length, size) + version
        parts, descriptors = [head, exchange.body], []
        try:
            if isinstance(exchange.body, Body):
                exchange.body.lent += 1
                parts, descriptors = [head], [exchange.body.descriptor]
            if socket.send_fds(self._socket, parts, descriptors) != sum(map(len, parts)):
                raise BlockingIOError("it does not read")
        except OSError as failure:  # not from within the router's own step
            self._loop.call_soon(self._upstream.lost, f"cannot send: {failure}")

    def _readable(self) -> None:
        """Collect one whole answer."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, RECEIVE_BYTES, 2)
            check_whole(flags)
            if descriptors:
                close_all(descriptors[1:])
                self._memory = map_memory(descriptors[0])
        except BlockingIOError:
            return
        except (OSError, ValueError) as failure:
            self._ended(f": {failure}")
            return
        if not data:
            self._ended()
            return
        self._buffer += data
        if len(self._buffer) < self._need:
            return
        if self._answer is None:
            self._answer = ANSWER.unpack_from(self._buffer)
            _, flags, _, _, size = self._answer
            if self._exchange is None or size > MAX_ANSWER_BYTES:
                self._upstream.lost("it spoke nonsense")
                return
            self._need = ANSWER.size + (0 if flags & FLAG_IN_MEMORY else size)
            if len(self._buffer) < self._need:
                return
        self._whole(*self._answer)

    def _ended(self, why: str = "") -> None:
        self.close()
        self._upstream.lost(f"connection lost{why}")

    def _whole(self, status: int, flags: int, writes: int, header: int, size: int) -> None:
        exchange, upstream, body = self._exchange, self._upstream, memoryview(self._buffer)[ANSWER.size :]
        self._buffer, self._need, self._answer, self._exchange = bytearray(), ANSWER.size, None, None
        if exchange is None or upstream.busy.pop(exchange, None) is None:
            return
        if isinstance(exchange.body, Body):
            exchange.body.lent -= 1
        try:
            if flags & FLAG_IN_MEMORY:
                body = memoryview(b"" if self._memory is None else self._memory)[:size]
            if len(body) != size:
                raise ValueError("it spoke nonsense")
            exchange.writes, body = _writes(writes, body)
        except ValueError as nonsense:
            upstream.busy[exchange] = self
            upstream.lost(str(nonsense))
            return
        upstream.idle.append(self)
        upstream.listener.answered(upstream, exchange, status, flags, header, body)
        exchange.writes = []  # views of memory that is used again

    def close(self) -> None:
        """Ours; not a death."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()


def _writes(count: int, body: memoryview) -> tuple[list[tuple[int, int, memoryview]], memoryview]:
    """What an answer wants in shared memory, and the rest of it. Raises ValueError."""
    if count * WRITE.size > len(body):
        raise ValueError("it spoke nonsense")
    table, body = WRITE.iter_unpack(body[: count * WRITE.size]), body[count * WRITE.size :]
    writes = []
    for number, offset, length in table:
        if length > len(body):
            raise ValueError("it spoke nonsense")
        writes.append((number, offset, body[:length]))
        body = body[length:]
    return writes, body
