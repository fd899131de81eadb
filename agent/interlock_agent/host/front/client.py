"""One connection of an application: requests in, answers out, in order.

Rules of the file:
- One request at a time: the next is looked at when the answer of the one before has been given away; so pipelined
  requests are answered in order, and a client that does not read its answers stops being read.
- No task a request: asyncio's callbacks lead straight to the router and back.
- Errors that the front makes itself are JSON: `{"error": "...", "code": "..."}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from interlock_agent.host.front import peers
from interlock_agent.host.front.bodies import Body
from interlock_agent.host.front.http import Malformed, Parser, Request
from interlock_agent.host.front.memory import Refused
from interlock_agent.host.front.routes import Sharing
from interlock_agent.host.front.upstream import Exchange
from interlock_agent.host.wire import LARGE_BYTES, NO_HEADER, NO_USER

if TYPE_CHECKING:
    from interlock_agent.host.front.service import Service

HEAD_TIMEOUT_S = 15.0  # from a request's first byte to the end of its headers
BODY_TIMEOUT_S = 30.0  # without a byte of a body that is awaited
LINGER_S = 2.0  # an answer before the end of the request: the rest is read and dropped, so that it can be received
READ_TIMEOUT_S = 60.0  # for a client to read an answer
JOINED_BYTES = 16 * 1024  # an answer that is copied behind its headers: one call instead of two
MAX_UNREAD_BYTES = 1024 * 1024 * 1024  # of answers that clients do not read, in all
PIPELINED_BYTES = 256 * 1024  # read ahead while a request is being answered

_STATUS = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_JSON = b"Content-Type: application/json\r\n"
_BINARY = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: "
_MORE = {401: b"WWW-Authenticate: Bearer\r\n", 503: b"Retry-After: 1\r\n"}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client(asyncio.BufferedProtocol):
    """asyncio's protocol of one connection."""

    __slots__ = (
        "_continued",
        "_deadline",
        "_deaf",
        "_direct",
        "_eof",
        "_exchange",
        "_keep_alive",
        "_own",
        "_parser",
        "_paused_reading",
        "_paused_writing",
        "_progress",
        "_request_old",
        "_service",
        "_transport",
        "_unread",
        "_user",
    )

    def __init__(self, service: Service) -> None:
        self._service = service
        self._direct = False  # bytes go where they belong at once
        self._transport: asyncio.Transport | None = None
        access = service.access
        admit = None if access is None else lambda request: access.admit(self._transport, request)
        self._parser = Parser(service.max_body, service.bodies.make, admit)
        self._exchange: Exchange | None = None
        self._keep_alive = True
        self._request_old = False  # HTTP/1.0
        self._continued = False
        self._eof = False
        self._paused_writing = self._paused_reading = False
        self._progress = 0.0  # loop time of the last byte
        self._user: int | None = None  # whose process it is, once that was asked
        self._own: list[str] = []  # regions that end with this connection
        self._unread = 0  # bytes of an answer that were copied for it to read
        self._deaf = False  # what still comes is dropped
        self._deadline = 0.0  # loop time at which the connection is cut, 0: it is not

    # --- asyncio's callbacks --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = transport  # type: ignore[assignment]  # stream protocols get a Transport
        self._progress = self._service.now()
        if not self._service.join(self):
            if self._service.crowded:
                self._deaf = True
                self._transport.abort()  # type: ignore[union-attr]  # as above
                return
            self._refuse(Malformed(503, "too_many_connections", "the front has as many connections as it may"))

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone."""
        self._transport = None
        self._service.leave(self)
        self._was_read()
        self._parser.forget()
        if self._own:
            self._service.unshare(self._who(), self._own)
        if self._exchange:
            self._service.router.cancel(self._exchange)
            self._exchange = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go. One place for all connections: they are taken from there at once."""
        space = None if self._deaf else self._parser.space
        self._direct = space is not None
        return self._service.scratch if space is None else space

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes of requests."""
        if self._deaf:
            return
        parser = self._parser
        if parser.idle or parser.in_body:
            self._progress = self._service.now()
        if self._direct:
            parser.filled(nbytes)
        else:
            parser.feed(self._service.scratch[:nbytes])
        if self._exchange is None and not self._paused_writing:
            self._go_on()
        elif parser.pending > PIPELINED_BYTES and self._transport:
            self._paused_reading = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more; what it asked is still answered."""
        self._eof = True
        if self._transport and self._transport.get_extra_info("ssl_object"):  # TLS has no half of a connection
            return False
        return self._exchange is not None or self._paused_writing

    def pause_writing(self) -> None:
        """The client does not read."""
        self._paused_writing = True
        self._deadline = self._service.now() + READ_TIMEOUT_S

    def resume_writing(self) -> None:
        """It does again."""
        self._paused_writing = False
        self._deadline = 0.0
        self._was_read()
        self._go_on()

    def _was_read(self) -> None:
        self._service.unread -= self._unread
        self._unread = 0

    # --- requests -------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take requests until one has to be waited for."""
        parser = self._parser
        while self._exchange is None and not self._paused_writing and self._transport and not self._deaf:
            try:
                request = parser.next()
            except Malformed as malformed:
                self._refuse(malformed)
                return
            except OSError as failure:
                self._refuse(_no_memory(failure))
                return
            if request is None:
                if parser.wants_continue and not self._continued:
                    self._continued = True
                    self._transport.write(_CONTINUE)
                if self._paused_reading:
                    self._paused_reading = False
                    self._transport.resume_reading()
                if self._eof:
                    self._transport.close()
                return
            self._continued = False
            self._progress = self._service.now()
            self._begin(request)

    def _begin(self, request: Request) -> None:
        self._keep_alive = request.keep_alive and not self._service.stopping
        self._request_old = request.old
        routed = self._service.route(request)
        if isinstance(routed, tuple):
            status, document, extra = routed
            self._respond(status, extra + _JSON, json.dumps(document).encode())
            return
        service, now = self._service, self._service.now()
        if isinstance(routed, Sharing):
            self._exchange = Exchange(self, 0, b"", NO_HEADER, b"", now, self._who())
            service.share(self._exchange, routed)
            return
        user, body = self._who() if service.memory else NO_USER, request.body
        if len(body) >= LARGE_BYTES and not isinstance(body, Body):  # its length was not known before
            try:
                body = service.bodies.of(body)
            except OSError as failure:
                self._refuse(_no_memory(failure))
                return
        exchange = Exchange(self, routed.op, routed.version, routed.header_length, body, now, user)
        exchange.deadline = now + routed.timeout_s if routed.timeout_s else 0.0
        self._exchange = exchange
        service.router.submit(exchange)

    def registered(self, name: str, ours: bool) -> None:
        """A region was registered over this connection; `ours`: it ends with it."""
        if ours:
            self._own.append(name)

    def _who(self) -> int:
        if self._user is None and self._transport:
            self._user = peers.user(self._transport.get_extra_info("socket"))
        return NO_USER if self._user is None else self._user

    # --- answers --------------------------------------------------------------------------------------------------

    def answer(self, exchange: Exchange, status: int, head: bytes, header: int, body: Any) -> None:
        """There is an answer. `head`: headers that name the release. What belongs into shared memory is there first."""
        if exchange is not self._exchange:
            return
        try:
            for number, offset, data in exchange.writes:
                self._service.memory.write(exchange.user, number, offset, data)
        except Refused as refused:
            self.fail(exchange, refused.status, refused.code, refused.message)
            return
        self._exchange = None
        kind = _JSON if header == NO_HEADER else _BINARY + b"%d\r\n" % header
        self._respond(status, head + kind, body)
        self._go_on()

    def fail(self, exchange: Exchange, status: int, code: str, message: str, retry_after: int = 0) -> None:
        """The router has none."""
        if exchange is not self._exchange:
            return
        self._exchange = None
        head = _JSON + (b"Retry-After: %d\r\n" % retry_after if retry_after else b"")
        self._respond(status, head, json.dumps({"error": message, "code": code}).encode())
        self._go_on()

    def _respond(self, status: int, head: bytes, body: Any) -> None:
        transport = self._transport
        if transport is None:
            return
        connection = b"" if self._keep_alive else b"Connection: close\r\n"
        if self._request_old and self._keep_alive:
            connection = b"Connection: keep-alive\r\n"
        start = b"%b%b%bContent-Length: %d\r\n\r\n" % (_STATUS[status], head, connection, len(body))
        if len(body) <= JOINED_BYTES:
            transport.write(b"%b%b" % (start, body))
        else:
            rest = _write(transport, start, body)
            if len(rest) > MAX_UNREAD_BYTES - self._service.unread:
                self._deaf = True
                transport.abort()
                return
            transport.write(rest)
            if self._paused_writing:
                self._unread = len(rest)
                self._service.unread += len(rest)
        if not self._keep_alive:
            self._deaf = True
            self._deadline = self._service.now() + READ_TIMEOUT_S
            transport.close()

    def _refuse(self, malformed: Malformed) -> None:
        """Answer, read what still comes for a moment (a reset would take the answer with it), close."""
        body = json.dumps({"error": malformed.message, "code": malformed.code}).encode()
        head = _JSON + _MORE.get(malformed.status, b"")
        transport, self._keep_alive = self._transport, False
        if transport is None:
            return
        start = b"%b%bConnection: close\r\nContent-Length: %d\r\n\r\n" % (_STATUS[malformed.status], head, len(body))
        transport.write(start + body)
        self._deaf = True
        self._deadline = self._service.now() + LINGER_S
        if transport.can_write_eof():
            transport.write_eof()

    # --- time -----------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Called about once a second: end what was begun and is not continued."""
        transport = self._transport
        if transport is None:
            return
        if self._deadline and now > self._deadline:
            transport.abort()
            return
        if self._deaf or self._exchange is not None or self._paused_writing or self._parser.idle:
            return
        limit = BODY_TIMEOUT_S if self._parser.in_body else HEAD_TIMEOUT_S
        if now - self._progress > limit:
            part = "body" if self._parser.in_body else "head"
            self._refuse(Malformed(408, "timeout", f"the {part} of the request did not come within {limit:g} s"))

    @property
    def idle_since(self) -> float:
        """Loop time of its last byte, where it has asked nothing and waits for nothing; else inf."""
        busy = self._exchange is not None or self._paused_writing or self._deaf or self._own or not self._parser.idle
        return math.inf if busy else self._progress

    def stop(self) -> None:
        """The service ends: idle connections are closed, others after their answer."""
        self._keep_alive = False
        if self._exchange is None and self._transport and not self._paused_writing:
            self._transport.close()


def _no_memory(failure: OSError) -> Malformed:
    return Malformed(503, "overloaded", f"no memory for the body: {failure.strerror}")


def _write(transport: asyncio.Transport, start: bytes, body: Any) -> bytes:
    """What the socket takes goes at once, from where it lies; the rest, a copy: the body's memory is used again."""
    sent = 0
    if not transport.get_write_buffer_size() and transport.get_extra_info("sslcontext") is None:
        with contextlib.suppress(OSError):  # it takes nothing now; or is broken, as the transport will find out
            sent = os.writev(transport.get_extra_info("socket").fileno(), (start, body))
    if sent < len(start):
        transport.write(start[sent:])
        sent = len(start)
    return bytes(body[sent - len(start) :])
