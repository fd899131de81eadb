"""Rows of a measurement that takes long, one line of JSON each: a run that was cut off goes on after the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """All that are whole."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def add(path: Path, row: Row) -> None:
    """One more; what a cut left of the one before is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.truncate(file.read(size).rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")
