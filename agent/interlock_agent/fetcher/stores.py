"""Temporary folders of this process that are gone when it ends, also when it ends in the middle of something."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

_made: set[str] = set()


def make() -> Path:
    """A fresh one. Raises OSError."""
    name = tempfile.mkdtemp(prefix="interlock-")
    _made.add(name)
    return Path(name)


def remove(folder: Path) -> None:
    """It is no longer needed."""
    shutil.rmtree(folder, ignore_errors=True)
    _made.discard(str(folder))


def leave_nothing() -> None:
    """All of them: this process is about to end, however far its work has come."""
    for name in tuple(_made):
        shutil.rmtree(name, ignore_errors=True)
