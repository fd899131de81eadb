"""Memory that applications share with the model: what is registered here, by whom, and what is written into it.

Rules of the file:
- A region is a file in /dev/shm, opened once, here, and only here: it must be a regular file of that file system that
  belongs to the user who asks. Workers get the open descriptor; a path that is changed later changes nothing.
- A name is its user's own: who cannot register another's region cannot name, ask for or end it either.
- Nothing is mapped. What an owner shortens later is a refused request, for a worker as for the front.
- The front writes the outputs, when it hands the answer on: a worker that was given up writes nothing, and after
  "unregister" was answered nothing is written.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from interlock_agent.host.wire import NO_USER

FOLDER = "/dev/shm"  # noqa: S108 - where shm_open(3) has them
MAX_NAME_BYTES = 256
MAX_KEY_BYTES = 255  # NAME_MAX
MAX_REGIONS = 512  # a descriptor each, here and in each worker
MAX_REGIONS_OF_A_USER = 128
MAX_REGION_BYTES = 1024 * 1024 * 1024
MAX_FILE_BYTES = 2**62


class Refused(Exception):
    """Not registered, or not written: `status` and `code` for the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True, eq=False)
class Region:
    """`size` bytes of the file `key` from `start`, of `user`. `file`: its device and inode."""

    number: int
    user: int
    name: str
    key: str
    start: int
    size: int
    file: tuple[int, int]
    descriptor: int  # open as long as anything refers to this region: it may be on its way to a worker
    writable: bool
    lasting: bool  # else it ends with the connection that registered it

    def __del__(self) -> None:
        os.close(self.descriptor)

    def described(self) -> dict[str, Any]:
        """As the protocol's status has it."""
        return {"name": self.name, "key": self.key, "offset": self.start, "byte_size": self.size}

    def kept(self) -> dict[str, Any]:
        """For the next front."""
        return {**self.described(), "user": self.user, "file": list(self.file)}

    def write(self, offset: int, data: memoryview) -> None:
        """Raises Refused."""
        if not self.writable:
            raise Refused(400, "read_only_region", f"region {self.name!r} may not be written by this host's user")
        if offset + len(data) > self.size:
            raise Refused(400, "outside_region", f"the output ends outside of region {self.name!r}")
        at = self.start + offset
        try:
            if os.fstat(self.descriptor).st_size < at + len(data):
                message = f"the memory of region {self.name!r} has become shorter than what was registered"
                raise Refused(400, "truncated_region", message)
            while data:
                done = os.pwrite(self.descriptor, data, at)
                data, at = data[done:], at + done
        except OSError as failure:  # a file with holes, and no memory left to fill them
            raise Refused(400, "region_not_written", f"region {self.name!r}: {failure.strerror}") from None


class Memory:
    """All regions of this front."""

    def __init__(self) -> None:
        self._regions: dict[tuple[int, str], Region] = {}
        # A worker may still have the regions of a front that has died: never the same numbers.
        self._numbers = itertools.count(int.from_bytes(os.urandom(6), "big") << 15)

    def __bool__(self) -> bool:
        return bool(self._regions)

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions.values())

    def kept(self) -> list[dict[str, Any]]:
        """What the next front is to know."""
        return [region.kept() for region in self if region.lasting]

    def register(self, user: int, name: str, key: Any, start: Any, size: Any, lasting: bool = True) -> bool:
        """A new region, or the same once more (False). Raises Refused."""
        if user == NO_USER:
            message = "shared memory is for applications on this machine, whose user the kernel tells"
            raise Refused(403, "unknown_peer", message)
        _check(name, key, start, size)
        former = self._regions.get((user, name))
        if former is None:
            self._check_number(user)
        made = self._open(user, name, key, start, size, lasting)
        if former is not None:
            same = (former.key, former.start, former.size, former.file) == (key, start, size, made.file)
            if not same:
                raise Refused(409, "region_exists", f"region {name!r} is another one's name; unregister it first")
            return False
        self._regions[user, name] = made
        return True

    def restore(self, kept: list[dict[str, Any]]) -> None:
        """Those of the front before; what is no longer the same file is left out, and its owner will be told that it
        is unknown."""
        for entry in kept:
            try:
                user, name = int(entry["user"]), str(entry["name"])
                made = self._open(user, name, str(entry["key"]), int(entry["offset"]), int(entry["byte_size"]), True)
            except Refused:
                continue
            if list(made.file) == entry["file"]:
                self._regions[user, name] = made

    def _check_number(self, user: int) -> None:
        if len(self._regions) >= MAX_REGIONS or sum(1 for u, _ in self._regions if u == user) >= MAX_REGIONS_OF_A_USER:
            raise Refused(429, "too_many_regions", f"{MAX_REGIONS_OF_A_USER} regions a user, {MAX_REGIONS} in all")

    def _open(self, user: int, name: str, key: str, start: int, size: int, lasting: bool) -> Region:
        descriptor, writable = _opened(key)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_dev != os.stat(FOLDER).st_dev:
                raise Refused(400, "bad_region", f"{key!r} is no shared memory")
            if found.st_uid != user:
                raise Refused(403, "foreign_region", f"{key!r} belongs to another user")
            if start + size > found.st_size:
                message = f"{key!r} has {found.st_size} bytes; {size} from {start} are not within"
                raise Refused(400, "outside_region", message)
        except BaseException:
            os.close(descriptor)
            raise
        file = (found.st_dev, found.st_ino)
        return Region(next(self._numbers), user, name, key, start, size, file, descriptor, writable, lasting)

    def unregister(self, user: int, name: str | None) -> None:
        """One of the user's, or (None) all of them; nothing happens when there is none."""
        for region in [r for r in self if r.user == user and name in (None, r.name)]:
            del self._regions[region.user, region.name]

    def status(self, user: int, name: str | None) -> list[dict[str, Any]]:
        """The user's regions. Raises Refused for a name that is none."""
        found = [region.described() for region in self if region.user == user and name in (None, region.name)]
        if name is not None and not found:
            raise Refused(404, "unknown_region", f"no region {name!r} is registered by you")
        return found

    def write(self, user: int, number: int, offset: int, data: memoryview) -> None:
        """Bytes of an answer to a request of `user`. Raises Refused."""
        region = next((r for r in self if r.number == number and r.user == user), None)
        if region is None:
            raise Refused(400, "unknown_region", "a region of this request was unregistered while it was answered")
        region.write(offset, data)


def _check(name: str, key: Any, start: Any, size: Any) -> None:
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        raise Refused(400, "bad_region", f"a region's name has 1 to {MAX_NAME_BYTES} bytes")
    if not isinstance(key, str) or not _is_component(key.removeprefix("/")):
        raise Refused(400, "bad_region", "key is not the name of one file in /dev/shm")
    if type(start) is not int or type(size) is not int or not 0 <= start < MAX_FILE_BYTES or size <= 0:
        raise Refused(400, "bad_region", "offset and byte_size are sizes in bytes, and byte_size is above zero")
    if size > MAX_REGION_BYTES:
        raise Refused(413, "region_too_large", f"a region has {MAX_REGION_BYTES} bytes at most")


def _is_component(key: str) -> bool:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= MAX_KEY_BYTES and "/" not in key and "\0" not in key and key not in (".", "..")


def _opened(key: str) -> tuple[int, bool]:
    """A descriptor, and whether it may be written. Never waits: for no pipe's other end, and no lease."""
    path, flags = f"{FOLDER}/{key.removeprefix('/')}", os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    for mode, writable in ((os.O_RDWR, True), (os.O_RDONLY, False)):
        try:
            return os.open(path, mode | flags), writable
        except OSError as failure:
            if writable and failure.errno in (errno.EACCES, errno.EPERM):
                continue
            code = "region_not_found" if failure.errno == errno.ENOENT else "region_not_opened"
            raise Refused(400, code, f"{key!r}: {failure.strerror}") from None
    raise AssertionError  # the second turn returns or raises
