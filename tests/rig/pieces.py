"""A bundle taken apart, and put together again wrongly."""

from __future__ import annotations

import tarfile
from typing import Any

import zstandard

from interlock_shared.archive import BLOCK, header, padding

Members = list[tuple[bytes, bytes]]  # (header, content)


def joined(found: Members) -> bytes:
    """An archive of these."""
    return b"".join(head + data + b"\0" * padding(len(data)) for head, data in found) + b"\0" * 1024


def member(name: str, data: bytes, **more: Any) -> tuple[bytes, bytes]:
    """A member as tarfile writes it: types, sizes and names that ours never has."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in more.items():
        setattr(info, field, value)
    return info.tobuf(more.get("format", tarfile.USTAR_FORMAT), "utf-8", "surrogateescape"), data


def bomb(size: int) -> bytes:
    """A frame that says nothing of its size, and unpacks to it."""
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b"\0" * size)


class Pieces:
    """A good bundle, member by member. `kind`: how a member's name begins."""

    def __init__(self, data: bytes) -> None:
        self.good: Members = []
        at = 0
        while any(data[at : at + BLOCK]):
            size = int(data[at + 124 : at + 135], 8)
            self.good.append((data[at : at + BLOCK], data[at + BLOCK : at + BLOCK + size]))
            at += BLOCK + size + padding(size)
        self.names = [head[:100].rstrip(b"\0").decode() for head, _ in self.good]

    def place(self, kind: str) -> int:
        """The number of the first of that kind."""
        return next(number for number, name in enumerate(self.names) if name.startswith(kind))

    def instead(self, kind: str, new: tuple[bytes, bytes]) -> bytes:
        """Another member in its place."""
        return joined([new if number == self.place(kind) else one for number, one in enumerate(self.good)])

    def content(self, kind: str, data: bytes) -> bytes:
        """Other content in it."""
        return self.instead(kind, (header(self.names[self.place(kind)], len(data)), data))

    def before(self, kind: str, new: tuple[bytes, bytes]) -> bytes:
        """One more member before it."""
        at = self.place(kind)
        return joined([*self.good[:at], new, *self.good[at:]])

    def declared(self, kind: str, size: bytes) -> bytes:
        """The same member, with another size field."""
        head, data = self.good[self.place(kind)]
        damaged = head[:124] + size + head[136:148] + b" " * 8 + head[156:]
        checked = damaged[:148] + b"%06o\0 " % sum(damaged) + damaged[156:]
        return self.instead(kind, (checked, data))
