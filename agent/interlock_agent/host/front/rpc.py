"""gRPC: `inference.GRPCInferenceService` of the Open Inference Protocol, and Triton's calls about shared memory.

Rules of the file:
- Imported only where the owner has set an address: nobody else pays for the library's memory.
- A request for the model passes as bytes, through the same router: a worker reads and writes the messages. The front
  reads only what is about itself and about memory.
- The library binds its address itself, and alone (no SO_REUSEPORT): a front that follows another binds again.
- Who may not ask is told so before a message is taken.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # what it writes lands in the host's log

import grpc
from grpc import aio

from interlock_agent import __version__
from interlock_agent.host import protobuf
from interlock_agent.host.front import peers
from interlock_agent.host.front.http import Malformed
from interlock_agent.host.front.memory import Refused
from interlock_agent.host.front.routes import Sharing
from interlock_agent.host.front.upstream import Exchange
from interlock_agent.host.wire import (
    LARGE_BYTES,
    MAX_ANSWER_BYTES,
    NO_HEADER,
    NO_USER,
    OP_RPC_INFER,
    OP_RPC_METADATA,
    OP_RPC_READY,
)

if TYPE_CHECKING:
    from interlock_agent.host.front.service import Service

SERVICE = "/inference.GRPCInferenceService/"
MAX_CALLS = 1024  # at once; more are RESOURCE_EXHAUSTED
MAX_DETAILS = 1000  # characters: a status travels in headers, which have a limit
OPEN = ("ServerLive", "ServerReady")  # to whoever can connect: probes have no token
EXTENSIONS = ("system_shared_memory",)

Answer = Callable[[bytes, Any], Awaitable[bytes]]

# HTTP's status, as the rest of the front says it -> gRPC's. What is not here is INTERNAL.
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Failure(Exception):
    """What a call ends with."""

    def __init__(self, status: int, code: str, message: str, retry_after: int = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class Call:
    """`upstream.Asking` for one call; `done` has the lines that name the release, and the answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.done: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()

    def answer(self, exchange: Exchange, status: int, head: bytes, header: int, body: Any) -> None:
        """As Asking's."""
        if self.done.done():
            return
        try:
            for number, offset, data in exchange.writes:
                self._service.memory.write(exchange.user, number, offset, data)
        except Refused as refused:
            self.fail(exchange, refused.status, refused.code, refused.message)
            return
        if status == 200:
            self.done.set_result((head, bytes(body)))
        else:
            said = json.loads(bytes(body))
            self.fail(exchange, status, said["code"], said["error"])

    def fail(self, exchange: Exchange, status: int, code: str, message: str, retry_after: int = 0) -> None:
        """As Asking's."""
        if not self.done.done():
            self.done.set_exception(Failure(status, code, message, retry_after))

    def registered(self, name: str, ours: bool) -> None:
        """As Asking's: gRPC knows no connections, so that nothing ends with one."""


class Rpc(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library carries no types
    """The server of one unit."""

    def __init__(self, service: Service, listen: str) -> None:
        self._service, self._listen = service, listen
        self._methods: dict[str, Answer] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._about,
            "ModelReady": self._model_ready,
            "ModelMetadata": lambda request, context: self._ask(OP_RPC_METADATA, request, context),
            "ModelInfer": lambda request, context: self._ask(OP_RPC_INFER, request, context),
            "SystemSharedMemoryStatus": self._status,
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
        }
        self._server: Any = None

    async def start(self) -> None:
        """Listen. Raises RuntimeError when the address cannot be had."""
        options = (
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self._service.max_body),
            ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
        )
        server = aio.server(handlers=[self], options=options, maximum_concurrent_rpcs=MAX_CALLS)
        server.add_insecure_port(self._listen)
        await server.start()
        self._server = server

    async def stop(self, seconds: float) -> None:
        """Take no more; let calls end for a while."""
        if self._server is not None:
            await self._server.stop(seconds)

    def service(self, handler_call_details: Any) -> Any:
        """As GenericRpcHandler's: what answers the method, None for one that there is not."""
        name = handler_call_details.method.removeprefix(SERVICE)
        answer = self._methods.get(name)
        if answer is None:
            return None

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._told(answer, request, context)

        async def checked(requests: AsyncIterator[bytes], context: Any) -> bytes:
            try:
                self._admit(context)
            except Malformed as refused:
                await _abort(context, Failure(refused.status, refused.code, refused.message, refused.status == 503))
            async for request in requests:
                return await unary(request, context)
            raise asyncio.CancelledError  # it ended before it had asked

        async def probed(_requests: AsyncIterator[bytes], context: Any) -> bytes:
            return await answer(b"", context)

        if name in OPEN:  # its message is empty; what else somebody without a token sends is not taken
            return grpc.stream_unary_rpc_method_handler(probed)
        if self._service.access is None:
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.stream_unary_rpc_method_handler(checked)

    def _admit(self, context: Any) -> None:
        assert self._service.access is not None
        said = dict(context.invocation_metadata() or ()).get("authorization", "")
        self._service.access.admit_call(lambda: self._user(context), str(said).encode())

    def _user(self, context: Any) -> int:
        return peers.of_call(context.peer(), self._listen)

    @staticmethod
    async def _told(answer: Answer, request: bytes, context: Any) -> bytes:
        try:
            return await answer(request, context)
        except Failure as failure:
            await _abort(context, failure)
        except protobuf.Malformed as malformed:
            await _abort(context, Failure(400, "bad_message", f"no such message: {malformed}"))
        raise AssertionError  # `abort` has raised

    # --- the model ------------------------------------------------------------------------------------------------

    async def _ask(self, op: int, request: bytes, context: Any) -> bytes:
        """Whoever is live answers. Raises Failure."""
        service, body = self._service, request
        if len(request) >= LARGE_BYTES:
            try:
                body = service.bodies.of(request)  # type: ignore[assignment]  # as long, and all that is asked of it
            except OSError as failure:
                raise Failure(503, "overloaded", f"no memory for the message: {failure.strerror}", 1) from None
        user = self._user(context) if service.memory and op == OP_RPC_INFER else NO_USER
        now, left = service.now(), context.time_remaining()
        call = Call(service)
        exchange = Exchange(call, op, b"", NO_HEADER, body, now, user)
        exchange.deadline = 0.0 if left is None else now + left
        service.router.submit(exchange)
        try:
            head, answer = await call.done
        except asyncio.CancelledError:  # the client has gone
            service.router.cancel(exchange)
            raise
        context.set_trailing_metadata(_lines(head))
        return answer

    async def _model_ready(self, request: bytes, context: Any) -> bytes:
        return await self._ask(OP_RPC_READY, request, context) if self._service.router.live else b""

    # --- the server -----------------------------------------------------------------------------------------------

    async def _live(self, _request: bytes, _context: Any) -> bytes:
        return protobuf.of_number(1, 1)

    async def _ready(self, _request: bytes, _context: Any) -> bytes:
        return protobuf.of_number(1, self._service.router.ready)

    async def _about(self, _request: bytes, _context: Any) -> bytes:
        said = protobuf.of_text(1, "interlock") + protobuf.of_text(2, __version__)
        return said + b"".join(protobuf.of_text(3, name) for name in EXTENSIONS)

    # --- shared memory --------------------------------------------------------------------------------------------

    async def _share(self, asked: Sharing, context: Any) -> bytes:
        """What the front says to it, in JSON. Raises Failure."""
        call = Call(self._service)
        user = self._user(context)
        self._service.share(Exchange(call, 0, b"", NO_HEADER, b"", self._service.now(), user), asked)
        return (await call.done)[1]

    async def _status(self, request: bytes, context: Any) -> bytes:
        said = json.loads(await self._share(Sharing(b"status", _read(request)["name"] or None, {}), context))
        parts = []
        for region in said:
            name = protobuf.of_text(1, region["name"])
            about = name + protobuf.of_text(2, region["key"])
            about += protobuf.of_number(3, region["offset"]) + protobuf.of_number(4, region["byte_size"])
            parts.append(protobuf.of_bytes(1, name + protobuf.of_bytes(2, about)))
        return b"".join(parts)

    async def _register(self, request: bytes, context: Any) -> bytes:
        said = _read(request)
        await self._share(Sharing(b"register", said["name"], said), context)
        return b""

    async def _unregister(self, request: bytes, context: Any) -> bytes:
        await self._share(Sharing(b"unregister", _read(request)["name"] or None, {}), context)
        return b""


def _read(request: bytes) -> dict[str, Any]:
    """A request about memory. Raises protobuf.Malformed."""
    said: dict[str, Any] = {"name": "", "key": "", "offset": 0, "byte_size": 0}
    for number, kind, value, data in protobuf.fields(memoryview(request)):
        if number in (1, 2):
            said["name" if number == 1 else "key"] = protobuf.text(kind, data)
        elif number in (3, 4):
            said["offset" if number == 3 else "byte_size"] = protobuf.number(kind, value)
    return said


def _lines(head: bytes) -> tuple[tuple[str, str], ...]:
    """Metadata out of the lines that name the release."""
    pairs = (line.partition(": ") for line in head.decode().splitlines())
    return tuple((name, value) for name, _, value in pairs)


async def _abort(context: Any, failure: Failure) -> None:
    """Raises, always: as the library wants it."""
    code = STATUS.get(failure.status, grpc.StatusCode.INTERNAL)
    trailing = [("interlock-code", failure.code)]
    if failure.retry_after:
        trailing += [("retry-after", str(int(failure.retry_after)))]
        trailing += [("grpc-retry-pushback-ms", str(1000 * int(failure.retry_after)))]
    await context.abort(code, failure.message[:MAX_DETAILS], tuple(trailing))
