"""A memory limit that the kernel keeps, for one worker: a control group, where there is one that we may make.

Rules of the file:
- Version 2 where it was delegated to us with the memory controller (systemd: `Delegate=memory`), version 1 where its
  folder can be written to; else none, and the worker's own resource limit is all there is.
- Version 2 wants processes in leaves alone: the host moves into one of its own first. It does so only where the group
  is delegated: anywhere else it belongs to somebody.
- Nothing here raises: a limit that cannot be set is told in the log, and what serves goes on.

Everything blocks. https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/memory.html
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("interlock.host")

PREFIX = "interlock-"
OURS = "interlock-host"  # version 2: the leaf that the host itself is in


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _write(path: Path, value: str) -> bool:
    try:
        path.write_text(value, encoding="ascii")
    except OSError as failure:
        log.warning("%s: %s", path, failure.strerror)
        return False
    return True


@dataclass
class Group:
    """The group of one worker."""

    folder: Path
    version: int

    def limit(self, size: int) -> bool:
        """No more memory than that from now on; 0: as much as there is. Swap is no way out."""
        if self.version == 2:
            if size and (self.folder / "memory.swap.max").exists():
                _write(self.folder / "memory.swap.max", "0")
            return _write(self.folder / "memory.max", str(size) if size else "max")
        # Memory with swap may not be below memory alone: lifted first, set last, and it is not in every kernel.
        both = self.folder / "memory.memsw.limit_in_bytes"
        if both.exists() and not size:
            _write(both, "-1")
        done = _write(self.folder / "memory.limit_in_bytes", str(size or -1))
        if both.exists() and size:
            _write(both, str(size))
        return done

    def enter(self, pid: int) -> bool:
        """Put a process in."""
        return _write(self.folder / "cgroup.procs", str(pid))

    def killed(self) -> bool:
        """Whether the kernel has ended a process for want of memory in here."""
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        counts = dict(line.split()[:2] for line in _read(self.folder / file).splitlines() if len(line.split()) > 1)
        return int(counts.get("oom_kill", 0)) > 0

    def remove(self) -> None:
        """Its processes have ended."""
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@dataclass
class Groups:
    """Where groups can be made."""

    folder: Path
    version: int

    def make(self, name: str, size: int) -> Group | None:
        """A group with a limit; None when it cannot be."""
        digest = hashlib.sha256(name.encode()).hexdigest()[:12]
        group = Group(self.folder / f"{PREFIX}{os.getpid()}-{digest}", self.version)
        try:
            group.folder.mkdir()
        except OSError as failure:
            log.warning("%s: %s", group.folder, failure.strerror)
            return None
        if group.limit(size):
            return group
        group.remove()
        return None

    def clear(self) -> None:
        """Remove what dead hosts have left."""
        for folder in self.folder.glob(f"{PREFIX}[0-9]*-*"):
            pid = folder.name.split("-")[1]
            if not os.path.exists(f"/proc/{pid}"):
                Group(folder, self.version).remove()


def find(proc: Path = Path("/proc/self")) -> Groups | None:
    """The place for our groups; None when there is none. Moves this process where version 2 wants it."""
    lines = [line.split(":", 2) for line in _read(proc / "cgroup").splitlines() if line.count(":") >= 2]
    mounts = _mounts(proc)
    for _, controllers, path in lines:
        folder = _folder(mounts, "memory", path)
        if folder and "memory" in controllers.split(",") and os.access(folder, os.W_OK):
            return _cleared(Groups(folder, 1))
    for number, _, path in lines:
        folder = _folder(mounts, "", path) if number == "0" else None
        if folder and _delegated(folder) and _divided(folder):
            return _cleared(Groups(folder, 2))
    return None


def _cleared(groups: Groups) -> Groups:
    groups.clear()
    return groups


def _mounts(proc: Path) -> dict[str, tuple[str, Path]]:
    """Controller ("" for version 2) -> (what of the hierarchy is mounted, where); proc(5), mountinfo."""
    found = {}
    for line in _read(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            names = [""] if kind[0] == "cgroup2" else kind[2].split(",")
            found.update({name: (fields[3], Path(fields[4])) for name in names})
    return found


def _folder(mounts: dict[str, tuple[str, Path]], controller: str, path: str) -> Path | None:
    if controller not in mounts:
        return None
    root, where = mounts[controller]
    inside = path[len(root) :] if root != "/" and path.startswith(root) else path
    folder = where / inside.lstrip("/")
    return folder if folder.is_dir() else None


def _delegated(folder: Path) -> bool:
    """As systemd says in an attribute: `user.delegate` for other users, `trusted.delegate` for root."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _divided(folder: Path) -> bool:
    """Processes in a leaf, the memory controller for its neighbours."""
    if "memory" not in _read(folder / "cgroup.controllers").split():
        return False
    if "memory" in _read(folder / "cgroup.subtree_control").split():
        return True
    leaf = folder / OURS
    with contextlib.suppress(FileExistsError):
        try:
            leaf.mkdir()
        except PermissionError:
            return False
    moved = all(_write(leaf / "cgroup.procs", pid) for pid in _read(folder / "cgroup.procs").split())
    return moved and _write(folder / "cgroup.subtree_control", "+memory")
