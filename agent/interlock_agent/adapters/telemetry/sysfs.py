"""The small files in which the kernel tells facts, under a root that a test may choose."""

from __future__ import annotations

from pathlib import Path


class Tree:
    """`/proc`, `/sys` and `/etc`. Paths have no leading slash; what cannot be read is empty."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, path: str) -> str:
        """The content, without the zero byte and line end around it."""
        try:
            return (self._root / path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        """A whole number."""
        text = self.text(path)
        return int(text) if text.lstrip("-").isdigit() else None

    def names(self, pattern: str) -> list[str]:
        """Paths that match, in order."""
        try:
            return sorted(str(path.relative_to(self._root)) for path in self._root.glob(pattern))
        except OSError:
            return []

    def field(self, path: str, name: str) -> int | None:
        """Of lines `name:  N kB`: bytes."""
        for line in self.text(path).splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        return None
