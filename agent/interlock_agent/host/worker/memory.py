"""Memory that applications share with this device's models: what a worker holds of it, and reads.

Rules of the file:
- A region comes from the front, checked, as a descriptor: nothing is opened here, and no name is trusted.
- It is read by `preadv` into memory of our own, never mapped: who owns it may shorten or change it at any time, and
  that must be a refused request, not the end of this process (SIGBUS) or a tensor that changes while it is checked.
- A name is its user's: the same name of another user is another region.
- A request holds the regions that it named; one that is dropped meanwhile is closed after it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from interlock_agent.host.worker.errors import BadRequest


@dataclass(frozen=True)
class Region:
    """`size` bytes of a file from `start`; `number` as the front counts."""

    number: int
    name: str
    start: int
    size: int
    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)

    def within(self, where: str, offset: Any, size: Any) -> tuple[int, int]:
        """An offset and a size as a request says them. Raises BadRequest."""
        offset = 0 if offset is None else offset
        if type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
            message = f"{where}: shared_memory_byte_size and shared_memory_offset are sizes in bytes"
            raise BadRequest(400, "bad_region", message)
        if offset + size > self.size:
            message = f"{where}: bytes {offset} to {offset + size} of region {self.name!r}, which has {self.size}"
            raise BadRequest(400, "outside_region", message)
        return offset, size

    def read(self, where: str, offset: int, size: int) -> memoryview:
        """Those bytes, a copy. Raises BadRequest when the file has become shorter."""
        space: Any = np.empty(size, np.uint8)  # not a bytearray: that would be filled with zeros first
        whole = memoryview(space)
        view, at = whole, self.start + offset
        while view:
            got = os.preadv(self.descriptor, [view], at)
            if not got:
                message = f"{where}: the memory of region {self.name!r} has become shorter than what was registered"
                raise BadRequest(400, "truncated_region", message)
            view, at = view[got:], at + got
        return whole


class Regions:
    """All that this worker holds."""

    def __init__(self) -> None:
        self._named: dict[tuple[int, str], Region] = {}
        self._lock = threading.Lock()

    def hold(self, user: int, region: Region) -> None:
        """From now on `user` may name it; in the place of one with the same name."""
        with self._lock:
            self._named[user, region.name] = region

    def drop(self, user: int, name: str, number: int) -> None:
        """No longer; nothing happens when the name is another region's by now."""
        with self._lock:
            held = self._named.get((user, name))
            if held is not None and held.number == number:
                del self._named[user, name]

    def drop_all(self, numbers: set[int]) -> None:
        """Those of a front that has gone."""
        with self._lock:
            self._named = {key: region for key, region in self._named.items() if region.number not in numbers}

    def find(self, user: int, name: Any, where: str) -> Region:
        """What a request of `user` names. Raises BadRequest."""
        with self._lock:
            region = self._named.get((user, name)) if isinstance(name, str) else None
        if region is None:
            message = f"{where}: no region {str(name)[:100]!r} is registered by you; register it (again)"
            raise BadRequest(400, "unknown_region", message)
        return region
