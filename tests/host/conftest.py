"""What tests of the host share."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def shared_memory() -> Iterator[Path]:
    """4096 bytes of shared memory."""
    handle, path = tempfile.mkstemp(prefix="il-", dir="/dev/shm")
    os.ftruncate(handle, 4096)
    os.close(handle)
    yield Path(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


shared = pytest.fixture(shared_memory, name="shared")
