"""The control socket: the agent's orders in, answers and events out. `messages.py` is the protocol.

Rules of the file:
- Only root and the host's own user may connect; the kernel says who it is (SO_PEERCRED).
- Every request is a task of its own, so that a long measurement holds up nothing; answers carry the request's number.
- An agent that does not read its events is cut off rather than waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, ClassVar

from interlock_agent.host import messages
from interlock_agent.host.engine import Engine
from interlock_agent.host.ports import WorkerError

log = logging.getLogger("interlock.host")

_PEER = struct.Struct("3i")
HELLO_S = 5.0  # for a client to introduce itself
MAX_UNREAD_BYTES = 32 * 1024 * 1024  # events and answers that an agent has not read
MAX_REQUESTS = 64  # of one agent at a time


class Control:
    """The server of the control socket. `describe` gives the host's part of a status."""

    def __init__(self, engine: Callable[[], Engine], describe: Callable[[], dict[str, Any]], version: str) -> None:
        self._engine, self._describe, self._version = engine, describe, version
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.AbstractServer | None = None
        self._talks: set[asyncio.Task[Any]] = set()

    async def open(self, path: str) -> None:
        """Listen. Raises OSError."""

        def bind() -> socket.socket:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            os.chmod(path, 0o600)
            return listener

        listener = await asyncio.get_running_loop().run_in_executor(None, bind)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)

    async def close(self) -> None:
        """End all connections."""
        if self._server:
            self._server.close()
        for task in list(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def push(self, event: dict[str, Any]) -> None:
        """An event to every agent."""
        frame = messages.encode(event)
        for writer in list(self._writers):
            self._write(writer, frame)

    @staticmethod
    def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
        if writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            log.error("an agent does not read; its connection is ended")
            writer.transport.abort()
            return
        writer.write(frame)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            await self._talk(reader, writer)
        except (EOFError, OSError, asyncio.CancelledError):
            pass  # cancelled only by `close`, and nobody awaits this task for its result
        except (ValueError, asyncio.TimeoutError) as bad:
            log.warning("control connection ended: %s", bad)
        finally:
            self._writers.discard(writer)
            writer.close()
            self._talks.discard(task)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(peer)
        if uid not in (0, os.getuid()):
            log.error("control connection of uid %d refused", uid)
            return
        mine = messages.hello(self._version, "host")
        writer.write(messages.encode(mine))
        theirs = await asyncio.wait_for(messages.read_frame(reader), HELLO_S)
        try:
            messages.agree(mine, theirs)
        except ValueError as refused:
            error = {"code": "protocol", "message": str(refused)}
            writer.write(messages.encode({"id": 0, "error": error}))
            return
        self._writers.add(writer)
        tasks: set[asyncio.Task[None]] = set()
        slots = asyncio.Semaphore(MAX_REQUESTS)
        try:
            while True:
                request = await messages.read_frame(reader)
                await slots.acquire()
                task = asyncio.get_running_loop().create_task(self._request(request, writer))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(lambda _: slots.release())
        finally:
            # Orders that were begun go on: an agent that dies must not leave half a switch.
            self._talks.update(tasks)
            for task in tasks:
                task.add_done_callback(self._talks.discard)

    async def _request(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = request.get("id")
        try:
            kind = messages.OPS.get(str(request.get("op")))
            if kind is None:
                raise WorkerError("bad_request", f"no order {request.get('op')!r}")
            order = messages.from_fields(kind, request)
            answer = {"id": number, "ok": await self._ORDERS[kind](self, order)}
        except WorkerError as refused:
            answer = {"id": number, "error": {"code": refused.code, "message": refused.message}}
        except (ValueError, TypeError, KeyError) as malformed:
            answer = {"id": number, "error": {"code": "bad_request", "message": str(malformed)}}
        except OSError as failure:
            answer = {"id": number, "error": {"code": "io", "message": str(failure)}}
        self._write(writer, messages.encode(answer))

    # --- orders -------------------------------------------------------------------------------------------------

    async def _load(self, o: messages.Load) -> dict[str, Any]:
        return asdict(await self._engine().load(o))

    async def _probe(self, o: messages.Probe) -> dict[str, Any]:
        return asdict(await self._engine().probe(o))

    async def _evaluate(self, o: messages.Evaluate) -> dict[str, Any]:
        return asdict(await self._engine().evaluate(o.worker, o.generation, o.timeout_s, o.answers, o.items))

    async def _look(self, o: messages.Look) -> dict[str, Any]:
        return asdict(await self._engine().look_at(o))

    async def _promote(self, o: messages.Promote) -> dict[str, Any]:
        engine = self._engine()
        return asdict(await engine.promote(o.unit, o.generation, o.worker, o.slot, o.lease_s, o.drain_max_s))

    async def _renew(self, o: messages.Renew) -> dict[str, Any]:
        return await self._engine().renew(o.unit, o.generation)

    async def _confirm(self, o: messages.Confirm) -> dict[str, Any]:
        return await self._engine().confirm(o.unit, o.generation)

    async def _revert(self, o: messages.Revert) -> dict[str, Any]:
        return asdict(await self._engine().revert(o.unit, o.generation, o.reason))

    async def _retire(self, o: messages.Retire) -> dict[str, Any]:
        await self._engine().retire(o.worker, o.generation)
        return {}

    async def _status(self, o: messages.Status) -> dict[str, Any]:
        return {"units": await self._engine().look(), "host": self._describe()}

    async def _configure(self, o: messages.Configure) -> dict[str, Any]:
        return {"address": await self._engine().configure(o.unit, o.listen, o.options)}

    _ORDERS: ClassVar[dict[type[Any], Callable[[Control, Any], Awaitable[dict[str, Any]]]]] = {
        messages.Load: _load,
        messages.Probe: _probe,
        messages.Evaluate: _evaluate,
        messages.Look: _look,
        messages.Promote: _promote,
        messages.Renew: _renew,
        messages.Confirm: _confirm,
        messages.Revert: _revert,
        messages.Retire: _retire,
        messages.Status: _status,
        messages.Configure: _configure,
    }
