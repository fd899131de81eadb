"""The agent's control socket: what the CLI asks of a running agent. Same frames and greeting as the host's socket.

A request may carry one open descriptor (SCM_RIGHTS): the CLI opens the file that a person names, with that person's
rights, and the agent never opens a path that somebody sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from interlock_agent.host import messages
from interlock_shared import __version__
from interlock_shared.errors import Forbidden, InterlockError, Invalid, to_wire

log = logging.getLogger("interlock.control")

REQUEST_MAX = 64 * 1024  # bytes; a request is a verb and a few names
_LENGTH = struct.Struct(">I")
_PEER = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED (unix(7))

Tell = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[str, dict[str, Any], int, Tell], Awaitable[dict[str, Any]]]


class Connection:
    """One client. Descriptors come with the bytes they were sent with."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self.descriptors: list[int] = []

    async def _receive(self) -> bytes:
        ready: asyncio.Future[None] = self._loop.create_future()

        def arrived() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(self._sock, arrived)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._sock)
        data, descriptors, _, _ = socket.recv_fds(self._sock, 65536, 4)
        self.descriptors += descriptors
        return data

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._receive()
            if not data:
                raise EOFError
            self._buffer += data
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    async def read(self) -> dict[str, Any]:
        """The next frame. Raises EOFError, Invalid."""
        (length,) = _LENGTH.unpack(await self._exactly(4))
        if length > REQUEST_MAX:
            raise Invalid(f"a request of {length} bytes", field="request")
        try:
            document = json.loads(await self._exactly(length))
        except ValueError as bad:
            raise Invalid(f"request: {bad}", field="request") from None
        if not isinstance(document, dict):
            raise Invalid("a request is one JSON object", field="request")
        return document

    async def write(self, document: dict[str, Any]) -> None:
        """Send a frame."""
        await self._loop.sock_sendall(self._sock, messages.encode(document))

    def take(self) -> int:
        """The descriptor that came with the request, -1 without one; the caller closes it."""
        taken = self.descriptors.pop(0) if self.descriptors else -1
        for extra in self.descriptors:
            os.close(extra)
        self.descriptors.clear()
        return taken

    def close(self) -> None:
        """Close everything."""
        for extra in self.descriptors:
            os.close(extra)
        self.descriptors.clear()
        self._sock.close()


class ControlSocket:
    """Listens at `path` (0600, for the agent's own user and root)."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path, self._handler = path, handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Bind and accept. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.setblocking(False)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(16)
        self._listener = listener
        self._spawn(self._accept(listener))

    async def stop(self) -> None:
        """End every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            sock.setblocking(False)
            self._spawn(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        connection = Connection(sock)
        try:
            _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if uid not in (0, os.geteuid()):
                raise Forbidden("the control socket is for the agent's own user and root")
            mine = messages.hello(__version__, "agent")
            await connection.write(mine)
            try:
                messages.agree(mine, await connection.read())
            except ValueError as none_in_common:
                raise Invalid(str(none_in_common), code="protocol") from None
            while True:
                await self._one(connection, await connection.read())
        except InterlockError as error:
            with contextlib.suppress(OSError):
                await connection.write({"error": to_wire(error)})
        except (EOFError, OSError):
            return
        finally:
            connection.close()

    async def _one(self, connection: Connection, request: dict[str, Any]) -> None:
        async def tell(document: dict[str, Any]) -> None:
            await connection.write({"progress": document})

        descriptor = connection.take()
        fields = {key: value for key, value in request.items() if key != "op"}
        try:
            answer = await self._handler(str(request.get("op")), fields, descriptor, tell)
        except InterlockError as error:
            await connection.write({"error": to_wire(error)})
            return
        await connection.write({"ok": answer})
