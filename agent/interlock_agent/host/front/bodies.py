"""Memory for large bodies of requests, which a worker maps: from the client's socket into it, and copied no more.

Rules of the file:
- A body is the memory's only user. When nothing refers to it any more its memory is used again; but not where a worker
  may still read in it (a request that was taken back): that one is let go, and ends with the worker's mapping.
- What is not used for a while is given back to the system.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

from interlock_agent.host.wire import make_memory

MAX_BYTES = 1024 * 1024 * 1024  # of bodies that are being received or answered: sixteen of the largest
KEEP_S = 5.0  # memory that nobody used
KEEP_BYTES = 32 * 1024 * 1024
SMALLEST = 256 * 1024  # rounded up to powers of two, so that they fit the next


class Body:
    """`length` bytes of a request, in `view`."""

    __slots__ = ("_memory", "_pool", "descriptor", "length", "lent")

    def __init__(self, pool: Bodies, descriptor: int, memory: mmap.mmap, length: int) -> None:
        self._pool, self.descriptor, self._memory, self.length = pool, descriptor, memory, length
        self.lent = 0  # workers that have it and have not answered

    def __len__(self) -> int:
        return self.length

    def __bytes__(self) -> bytes:
        return bytes(self._memory[: self.length])

    @property
    def view(self) -> memoryview:
        """To be filled."""
        return memoryview(self._memory)[: self.length]

    def __del__(self) -> None:
        self._pool.in_use -= self.length
        if self.lent:
            os.close(self.descriptor)
        else:
            self._pool.give(self.descriptor, self._memory)


class Bodies:
    """Makes them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.in_use = 0
        self._free: list[tuple[float, int, mmap.mmap]] = []  # since when, descriptor, memory

    def make(self, length: int) -> Body:
        """Raises OSError."""
        if self.in_use + length > MAX_BYTES:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        body = self._made(length)
        self.in_use += length
        return body

    def _made(self, length: int) -> Body:
        for place in range(len(self._free) - 1, -1, -1):
            _, descriptor, memory = self._free[place]
            if length <= len(memory) <= max(4 * length, SMALLEST):
                del self._free[place]
                return Body(self, descriptor, memory, length)
        descriptor, memory = make_memory(max(SMALLEST, 1 << (length - 1).bit_length()))
        return Body(self, descriptor, memory, length)

    def of(self, data: bytes | bytearray) -> Body:
        """With that content."""
        body = self.make(len(data))
        body.view[:] = data
        return body

    def give(self, descriptor: int, memory: mmap.mmap) -> None:
        """Not needed any more."""
        if len(memory) + sum(len(other) for _, _, other in self._free) > KEEP_BYTES:
            os.close(descriptor)
        else:
            self._free.append((self._now(), descriptor, memory))

    def sweep(self) -> None:
        """Called now and then."""
        old = [entry for entry in self._free if entry[0] < self._now() - KEEP_S]
        for entry in old:
            self._free.remove(entry)
            os.close(entry[1])
