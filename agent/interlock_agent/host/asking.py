"""Questions over HTTP from a thread of their own, all within one time.

Rules of the file:
- The thread is not one of the loop's: the loop's few are what the host's records are written by.
- When the time is up the sockets end, and with them the thread; it asks nothing and changes nothing afterwards, since
  another may have been told meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

WORDS_BYTES = 2000  # of what an answer says


class Asking:
    """What the thread works with. `still` is asked before each step that changes something."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()

    def still(self) -> float:
        """Seconds left. Raises TimeoutError when there are none."""
        left = self._end - time.monotonic()
        if self._over.is_set() or left <= 0:
            raise TimeoutError("no time is left")
        return left

    def pause(self, seconds: float) -> None:
        """Wait, not longer than there is time. Raises TimeoutError."""
        self._over.wait(min(seconds, self.still()))
        self.still()

    def stop(self) -> None:
        """The time is up."""
        self._over.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def ask(self, method: str, url: str, body: str | bytes = "", limit: int = WORDS_BYTES) -> tuple[int, str]:
        """Status, and at most `limit` bytes of the answer as text. Blocks. Raises OSError, HTTPException."""
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=self.still())
        try:
            connection.connect()
            self._sockets.append(connection.sock)
            self.still()
            path = parts.path or "/"
            target = f"{path}?{parts.query}" if parts.query else path
            connection.request(method, target, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read(limit).decode(errors="replace").strip()
        finally:
            if connection.sock in self._sockets:
                self._sockets.remove(connection.sock)
            connection.close()


async def in_thread(work: Callable[[Asking], str], timeout_s: float) -> str:
    """What `work` says; OSError, ValueError and HTTPException of it as a sentence. Raises asyncio.TimeoutError."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[str] = loop.create_future()
    asking = Asking(timeout_s)

    def run() -> None:
        try:
            said = work(asking)
        except (OSError, ValueError, http.client.HTTPException) as failed:
            said = str(failed) or type(failed).__name__
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if answered.done() else answered.set_result(said))

    threading.Thread(target=run, name="hook", daemon=True).start()
    try:
        # Not `wait_for`: before Python 3.12 it may swallow a cancellation, and whoever asks in a loop would never end.
        await asyncio.wait([answered], timeout=timeout_s)
        if not answered.done():
            raise asyncio.TimeoutError
        return answered.result()
    finally:
        asking.stop()
