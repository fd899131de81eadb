"""The inbox on disk: a folder into which people, or a program, put bundles.

Rules of the file:
- Only a plain file is opened, by its name in this very folder, and never through a link. What it is called is never
  used for anything but to move it.
- A file is whole when it was the same in two looks, and nobody has it open for writing (a read lease of fcntl(2) can be
  had; where there are none, on a network file system or for another owner's file, the looks alone count).
- What was taken ends in `done/` or `refused/`, with a note beside it. So many stay in each; the oldest go, and nothing
  that was not put there by us.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlock_shared import durable
from interlock_shared.errors import Forbidden, Later, Unreachable

SUFFIX = ".bundle"
DONE, REFUSED = "done", "refused"
_OURS = re.compile(r"\d{8}T\d{6}Z-")
NAME_MAX = 200  # bytes of a name: a time in front and `.json` behind still make one


@dataclass(frozen=True)
class Entry:
    """What a look saw of a file; equal when it has not changed. `wrong`: why it is not even opened."""

    name: str
    inode: int
    size: int
    changed_ns: int
    owner: int
    wrong: str = ""


class InboxFolder:
    """One folder. Everything blocks; OSError stays inside."""

    def __init__(self, folder: Path, keep: int = 10) -> None:
        self.path, self._keep = folder, keep

    def prepare(self) -> None:
        """Make what is missing. Raises Forbidden (`inbox`) where it cannot be used, or anybody may write there."""
        try:
            self.path.mkdir(mode=0o770, parents=True, exist_ok=True)
            found = self.path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise Forbidden(f"{self.path}: it is a link, or no folder", code="inbox")
            if found.st_mode & stat.S_IWOTH:
                raise Forbidden(f"{self.path}: anybody may write there: chmod o-w it", code="inbox")
            for name in (DONE, REFUSED):
                (self.path / name).mkdir(mode=0o770, exist_ok=True)
        except OSError as bad:
            raise Forbidden(f"{bad.filename or self.path}: {bad.strerror}", code="inbox") from None
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise Forbidden(f"{self.path}: it cannot be written: what is taken is moved away from it", code="inbox")

    def look(self) -> list[Entry]:
        """The bundles that are there, by name. Raises Unreachable (`inbox`)."""
        found = []
        try:
            with os.scandir(self.path) as entries:
                for one in entries:
                    if one.name.endswith(SUFFIX) and not one.name.startswith("."):
                        seen = one.stat(follow_symlinks=False)
                        wrong = _wrong(one.name, seen)
                        facts = (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_uid)
                        found.append(Entry(one.name, *facts, wrong))
        except FileNotFoundError:
            pass  # one was taken away while we looked; or the folder was, which the next look finds
        except OSError as bad:
            raise Unreachable(f"{self.path}: {bad.strerror}", code="inbox") from None
        return sorted(found, key=lambda one: (one.changed_ns, one.name))

    def open(self, entry: Entry) -> int | None:
        """An open descriptor of the very file that was seen; None while somebody writes it, or when it has changed.
        Raises Forbidden (`not_a_plain_file`), Later (`io`)."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        try:
            descriptor = os.open(self.path / entry.name, flags)
        except FileNotFoundError:
            return None
        except OSError as bad:
            if bad.errno == errno.ELOOP:
                raise Forbidden(f"{_plain(entry.name)}: it is a link", code="not_a_plain_file") from None
            raise Later(f"{_plain(entry.name)}: {bad.strerror}", code="io") from None
        now = os.fstat(descriptor)
        if not stat.S_ISREG(now.st_mode):
            os.close(descriptor)
            raise Forbidden(f"{_plain(entry.name)}: it is no plain file", code="not_a_plain_file")
        same = (now.st_ino, now.st_size, now.st_mtime_ns) == (entry.inode, entry.size, entry.changed_ns)
        if not same or _is_written(descriptor):
            os.close(descriptor)
            return None
        os.set_blocking(descriptor, True)
        return descriptor

    def put(self, entry: Entry, where: str, at: str, note: dict[str, Any]) -> None:
        """Move it, with a note beside it: `done/TIME-NAME`. Raises Later (`io`, `no_space`)."""
        stamp = at.replace(":", "").replace("-", "")[:15] + "Z"
        target = self.path / where / f"{stamp}-{_plain(entry.name)}"
        try:
            if target.exists() or target.is_symlink():
                target = target.with_name(f"{stamp}-{entry.inode}-{_plain(entry.name)}")
            text = json.dumps({**note, "file": _plain(entry.name)}, indent=2, ensure_ascii=False).encode() + b"\n"
            durable.replace_file(target.with_name(target.name + ".json"), text, mode=0o644)
            os.rename(self.path / entry.name, target)
            durable.fsync_folder(self.path)
            durable.fsync_folder(target.parent)
            self._make_room(target.parent)
        except FileNotFoundError:
            return  # who gave it has taken it away again: the note is there
        except OSError as bad:
            raise Later(f"{_plain(entry.name)}: {bad.strerror}", code="io") from None

    def _make_room(self, folder: Path) -> None:
        """A name is its time first, so that the oldest are the first."""
        ours = sorted(name for name in os.listdir(folder) if _OURS.match(name))
        notes = [name for name in ours if name.endswith(f"{SUFFIX}.json")]
        for note in notes[: max(0, len(notes) - self._keep)]:
            taken = folder / note.removesuffix(".json")
            if taken.is_dir() and not taken.is_symlink():
                shutil.rmtree(taken, ignore_errors=True)
            else:
                taken.unlink(missing_ok=True)
            (folder / note).unlink(missing_ok=True)


def _wrong(name: str, seen: os.stat_result) -> str:
    if not stat.S_ISREG(seen.st_mode):
        return "it is no plain file: links, folders, pipes and devices are not opened"
    if seen.st_nlink > 1:
        return "it has several names (hard links): copy it instead"
    if seen.st_mode & stat.S_IWOTH:
        return "anybody may write it: chmod o-w it"
    if len(os.fsencode(name)) > NAME_MAX:
        return f"its name is longer than {NAME_MAX} bytes"
    return ""


def _plain(name: str) -> str:
    """The name without what a terminal would take for an order, and not too long."""
    kept = "".join(one if one.isprintable() else "_" for one in os.fsencode(name).decode("utf-8", "replace"))
    return kept if len(kept.encode()) <= NAME_MAX else kept[: NAME_MAX // 4] + SUFFIX


def _is_written(descriptor: int) -> bool:
    """Whether somebody has the file open for writing; no, where that cannot be told."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as bad:
        return bad.errno in (errno.EAGAIN, errno.EWOULDBLOCK)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
