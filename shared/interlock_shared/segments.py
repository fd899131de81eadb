"""Cutting files into segments, and what a segment looks like while it travels.

A segment is addressed by the SHA-256 of its uncompressed content. It travels as it is (`identity`) or compressed
(`zstd`); both are only forms of transport: what comes out is checked against the signed manifest, and its length
is capped by what the manifest declares. Compression itself lives with its library in each room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from interlock_shared.errors import Untrusted
from interlock_shared.limits import SEGMENT_BYTES

IDENTITY = "identity"
ZSTD = "zstd"
FORMS = (IDENTITY, ZSTD)


@dataclass(frozen=True)
class Transport:
    """A segment as it travels. `data` is in `form`; `size` is that of the content."""

    sha256: str
    size: int
    form: str
    data: bytes


def cut(size: int, length: int = SEGMENT_BYTES) -> Iterator[tuple[int, int]]:
    """(offset, length) of each segment of a file of `size` bytes; nothing for an empty file."""
    if length <= 0:
        raise ValueError("segment length must be positive")
    for offset in range(0, size, length):
        yield offset, min(length, size - offset)


def check(content: bytes | memoryview, sha256: str, size: int) -> None:
    """Raises Untrusted unless the content is exactly what the manifest declared."""
    if len(content) != size:
        raise Untrusted(f"segment {sha256[:12]}…: {len(content)} bytes, {size} declared", code="segment_mismatch")
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Untrusted(f"segment {sha256[:12]}…: content does not match its digest", code="segment_mismatch")
