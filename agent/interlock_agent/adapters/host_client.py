"""The agent's end of the host's control socket. Reconnects by itself; what is in flight when the host goes ends as
Unreachable, and its answer is asked for anew by whoever needs it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from interlock_agent.host import messages
from interlock_shared import __version__, tasks
from interlock_shared.errors import Refused, Unreachable

log = logging.getLogger("interlock.host")

RECONNECT_S = 0.2  # the host is on this machine: a look costs nothing
QUEUE_MAX = 1000  # events of a unit that nobody reads; the oldest go


class HostClient:
    """The Host port."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: dict[str, asyncio.Queue[dict[str, Any]]] = defaultdict(lambda: asyncio.Queue(QUEUE_MAX))
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        self.version = ""
        self.refusal = ""  # why the host and this agent cannot speak with each other
        self.on_connect: list[Any] = []  # coroutine functions, called at each connection
        self.listeners: list[Any] = []  # functions of each event

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(self._run(), name="host client")

    async def stop(self) -> None:
        """End the connection."""
        if self._task is not None:
            await tasks.ended([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self._session()
            except (OSError, asyncio.IncompleteReadError):
                pass
            except ValueError as bad:
                if str(bad) != self.refusal:
                    log.error("%s", bad)
                self.refusal = str(bad)
            finally:
                self._lost()
            await asyncio.sleep(RECONNECT_S)

    async def _session(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        try:
            mine = messages.hello(__version__, "agent")
            writer.write(messages.encode(mine))
            theirs = await messages.read_frame(reader)
            messages.agree(mine, theirs)
            self.version, self.refusal = str(theirs.get("version", "")), ""
            self._writer = writer
            self.connected.set()
            background = [asyncio.create_task(call()) for call in self.on_connect]
            self._push_all({"event": "back"})
            try:
                while True:
                    self._receive(await messages.read_frame(reader))
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        finally:
            self._writer = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _lost(self) -> None:
        was = self.connected.is_set()
        self.connected.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unreachable("the host went away", code="host_away"))
        self._waiting.clear()
        if was:
            log.warning("the host went away")
            self._push_all({"event": "lost"})

    def _push_all(self, event: dict[str, Any]) -> None:
        for queue in self._events.values():
            self._push(queue, event)

    @staticmethod
    def _push(queue: asyncio.Queue[dict[str, Any]], event: dict[str, Any]) -> None:
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(event)

    def _receive(self, frame: dict[str, Any]) -> None:
        if "event" in frame:
            self._push(self._events[str(frame.get("unit", ""))], frame)
            for listener in self.listeners:
                listener(frame)
            return
        future = self._waiting.pop(int(frame.get("id", 0)), None)
        if future is None or future.done():
            return
        if "error" in frame:
            error = frame["error"]
            future.set_exception(Refused(str(error.get("message", "")), code=str(error.get("code", "refused"))))
        else:
            future.set_result(dict(frame.get("ok") or {}))

    async def request(self, order: Any) -> dict[str, Any]:
        """Send an order, return the fields of its answer. Raises Unreachable, Refused."""
        if self._writer is None:
            why = self.refusal or f"no host answers at {self._path}"
            raise Unreachable(why, code="host_protocol" if self.refusal else "host_away")
        self._number += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = future
        self._writer.write(messages.encode(messages.to_request(self._number, order)))
        return await future

    async def event(self, unit: str, timeout_s: float) -> dict[str, Any] | None:
        """The next pushed event of that unit, or None after the timeout."""
        try:
            return await asyncio.wait_for(self._events[unit].get(), timeout_s)
        except asyncio.TimeoutError:
            return None

    def drop_events(self, unit: str) -> None:
        """Forget events of that unit that nobody has looked at."""
        queue = self._events[unit]
        while not queue.empty():
            queue.get_nowait()
