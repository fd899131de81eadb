"""A sealed folder: opened once, verified against its seal before any parser sees a byte.

Rules of the file:
- The folder is held as a directory descriptor: it may be renamed while the worker lives, and nobody can put another
  one in its place under the old name.
- A name in the seal is a plain file name; links are not followed.
- Files are hashed by segment in one pass; sizes are exact.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from typing import Any

from interlock_agent.host.worker.errors import LoadError

SEAL = ".interlock/seal.json"
SCHEMA = "interlock.seal/1"
MAX_SEAL_BYTES = 16 * 1024 * 1024
BLOCK = 1024 * 1024


class Folder:
    """One sealed folder. Raises LoadError (`corrupt`) when it is not what its seal says."""

    def __init__(self, path: str) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            data = self._read(SEAL, MAX_SEAL_BYTES)
            self.seal: dict[str, Any] = json.loads(data)
        except (OSError, ValueError) as error:
            raise LoadError("corrupt", f"{path}: {error}") from None
        if not isinstance(self.seal, dict) or self.seal.get("schema") != SCHEMA:
            raise LoadError("corrupt", f"{path}: the seal is not {SCHEMA}")
        self._files: dict[str, Any] = {entry["name"]: entry for entry in self.seal.get("files", ())}

    def _open(self, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._descriptor)

    def _read(self, name: str, limit: int) -> bytes:
        with open(self._open(name), "rb") as file:
            return file.read(limit)

    def path(self, name: str) -> str:
        """A path to the file through the descriptor; good whatever the folder is called now."""
        self._entry(name)
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def ours(self, name: str) -> str:
        """A path to a file of ours beside the seal, not sealed itself."""
        return f"/proc/self/fd/{self._descriptor}/.interlock/{name}"

    def _entry(self, name: str) -> Any:
        if name not in self._files or "/" in name or name in ("", ".", ".."):
            raise LoadError("corrupt", f"the seal does not list {name!r}")
        return self._files[name]

    def verify(self, *names: str) -> None:
        """Hash the named files (none: all) by segment. Raises LoadError."""
        for name in names or tuple(self._files):
            entry = self._entry(name)
            try:
                self._verify(name, entry)
            except OSError as error:
                raise LoadError("corrupt", f"{name}: {error}") from None

    def _verify(self, name: str, entry: Any) -> None:
        buffer = memoryview(bytearray(BLOCK))
        with open(self._open(name), "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != entry["size"]:
                raise LoadError("corrupt", f"{name}: {status.st_size} bytes, sealed are {entry['size']}")
            total = 0
            for number, segment in enumerate(entry["segments"]):
                left, digest = int(segment["size"]), hashlib.sha256()
                total += left
                while left > 0:
                    got = file.readinto(buffer[: min(left, BLOCK)])
                    if not got:
                        raise LoadError("corrupt", f"{name}: ends inside segment {number}")
                    digest.update(buffer[:got])
                    left -= got
                if digest.hexdigest() != segment["sha256"]:
                    raise LoadError("corrupt", f"{name}: segment {number} is not what was sealed")
            if total != entry["size"]:
                raise LoadError("corrupt", f"{name}: its segments cover {total} of {entry['size']} bytes")
