"""Answers that come too slowly are broken off: a peer that sends a byte now and then would hold a device for ever.

Only the time that is waited for the peer counts, not what is done with the bytes meanwhile.
"""

from __future__ import annotations

import http.client
import io
import time
from typing import Any

GRACE_S = 60.0  # for the head of an answer, and for a link that stalls
BYTES_PER_S = 1024.0  # slower than a bad modem


class _Paced(io.RawIOBase):
    """A socket's stream that counts."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._waited, self._count = stream, 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        begun = time.monotonic()
        count: int | None = self._stream.readinto(buffer)
        self._waited += time.monotonic() - begun
        self._count += count or 0
        if self._waited > GRACE_S + self._count / BYTES_PER_S:
            raise TimeoutError(f"too slow: {self._count} bytes in {self._waited:.0f} s")
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class PacedResponse(http.client.HTTPResponse):
    """The answer of a connection whose `response_class` this is."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.fp = io.BufferedReader(_Paced(self.fp.detach()))
