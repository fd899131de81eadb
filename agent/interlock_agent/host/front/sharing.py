"""The front's way to give a worker what applications have registered.

Rules of the file:
- One connection a worker, beside those for requests, and one change at a time on it, each answered.
- What is told is the difference between what the worker was told and what is registered; so it does not matter how
  many changed what meanwhile, and a new worker is told all.
- What a worker was told ends with the connection: it knows nothing of a front that has died.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from interlock_agent.host.front.memory import Memory, Region
from interlock_agent.host.wire import ANSWER, NO_HEADER, OP_DROP, OP_HOLD, REGION, REQUEST

ANSWER_S = 10.0  # for all of it: a worker's thread does nothing else; one that takes longer hangs


class Channel:
    """To the worker that listens at `path`. Connects when there is something to tell."""

    def __init__(self, path: str, memory: Memory) -> None:
        self._path, self._memory = path, memory
        self._told: dict[tuple[int, str], Region] = {}
        self._lock = asyncio.Lock()
        self._socket: socket.socket | None = None
        self._closed = False

    async def sync(self) -> None:
        """Until the worker knows what is registered, no more and no less. Raises OSError."""
        async with self._lock:
            try:
                await asyncio.wait_for(self._sync(), ANSWER_S)
            finally:
                if self._closed:
                    self._end()

    async def _sync(self) -> None:
        while not self._closed:
            wanted = {(region.user, region.name): region for region in self._memory}
            gone = [region for key, region in self._told.items() if wanted.get(key) is not region]
            new = [region for key, region in wanted.items() if self._told.get(key) is not region]
            if not gone and not new:
                return
            for op, regions in ((OP_DROP, gone), (OP_HOLD, new)):
                for region in regions:
                    await self._tell(op, region)

    async def _tell(self, op: int, region: Region) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            await loop.sock_connect(self._socket, self._path)
        body = REGION.pack(region.number, region.start, region.size) + region.name.encode()
        frame = REQUEST.pack(op, region.user, 0, NO_HEADER, len(body)) + body
        # The one before was answered: there is room for a few hundred bytes.
        socket.send_fds(self._socket, [frame], [region.descriptor] if op == OP_HOLD else [])
        answer = b""
        while len(answer) < ANSWER.size:
            more = await loop.sock_recv(self._socket, ANSWER.size - len(answer))
            if not more:
                raise ConnectionError("it ended")
            answer += more
        key = region.user, region.name
        if op == OP_HOLD:
            self._told[key] = region
        else:
            self._told.pop(key, None)

    def close(self) -> None:
        """The worker is not told any more; who waits for it is told at once."""
        self._closed = True
        if self._socket is not None and self._lock.locked():
            # Closed under the loop that waits for it, its number would be the next connection's.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._end()

    def _end(self) -> None:
        self._told.clear()  # or memory that its owner has given up would live as long as this
        if self._socket is not None:
            self._socket.close()
