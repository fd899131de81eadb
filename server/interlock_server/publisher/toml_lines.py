"""Where each key of a TOML text stands: `tomllib` tells values, not lines.

The scanner runs only over a text that `tomllib` has parsed, so it need not judge, only find its way: keys, strings,
arrays and tables. A path is a tuple of keys and indices, as pydantic names fields.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")
_BLANK = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.lines: dict[Path, int] = {}
        self._counts: dict[Path, int] = {}

    def run(self) -> dict[Path, int]:
        base: Path = ()
        while self._skip(_GAP) < len(self.text):
            if self.text.startswith("[", self.at):
                base = self._header()
            else:
                self._pair(base)
        return self.lines

    def _skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at

    def _note(self, path: Path, start: int) -> None:
        line = self.text.count("\n", 0, start) + 1
        for length in range(1, len(path) + 1):
            self.lines.setdefault(path[:length], line)

    def _header(self) -> Path:
        start = self.at
        many = self.text.startswith("[[", self.at)
        self.at += 2 if many else 1
        keys = self._keys()
        self.at += 2 if many else 1
        path: Path = ()
        for number, key in enumerate(keys):
            path += (key,)
            if many and number == len(keys) - 1:
                self._counts[path] = self._counts.get(path, -1) + 1
            if path in self._counts:
                path += (self._counts[path],)
        self._note(path, start)
        return path

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip(_BLANK)
            if self.text[self.at] in "\"'":
                keys.append(self._string())
            else:
                start = self.at
                keys.append(self.text[start : self._skip(_BARE)])
            self._skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return keys
            self.at += 1

    def _pair(self, base: Path) -> None:
        start = self.at
        path = base + tuple(self._keys())
        self.at += 1  # the equals sign
        self._note(path, start)
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: Path) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._list(path, "]")
        elif first == "{":
            self._list(path, "}")
        else:
            self._skip(_SCALAR)

    def _list(self, path: Path, end: str) -> None:
        self.at += 1
        index = 0
        while True:
            self._skip(_GAP)
            if self.text.startswith(",", self.at):
                self.at += 1
            elif self.text.startswith(end, self.at):
                self.at += 1
                return
            elif end == "]":
                self._note((*path, index), self.at)
                self._value((*path, index))
                index += 1
            else:
                self._pair(path)

    def _string(self) -> str:
        quote = self.text[self.at]
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        start, here = self.at, self.at + len(mark)
        while not self.text.startswith(mark, here):
            here += 2 if quote == '"' and self.text[here] == "\\" else 1
        here += len(mark)
        while len(mark) == 3 and self.text.startswith(quote, here):  # quotes right before the closing three
            here += 1
        self.at = here
        return str(tomllib.loads("x = " + self.text[start:here])["x"])


def locate(text: str) -> dict[Path, int]:
    """Line (from 1) of every key, table and array entry. The text must be valid TOML."""
    return _Scanner(text.replace("\r\n", "\n")).run()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of the longest known beginning of `path`; the first line when nothing of it is there."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1
