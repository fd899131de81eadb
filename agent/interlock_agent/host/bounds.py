"""How much memory a worker may take, and whether it ended for want of it.

Rules of the file:
- A candidate or a twin is bound from before it has read a byte until it serves; then the owner's limit holds.
- Twice where that can be: by the process's own resource limit, so that it is refused and can say so, and by a control
  group, which also counts what a resource limit does not.
- Where the owner has set no limit, most of what is free when it starts: what serves must keep some. A resource limit is
  then set for the CPU alone: drivers of GPUs reserve addresses that they never fill.
"""

from __future__ import annotations

import contextlib
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlock_agent.host.cgroups import Group, Groups

FREE_SHARE = 0.9  # of the memory that is available when it starts
MEASURED = ("candidate", "twin")
CPU = "CPUExecutionProvider"
# What runtimes say, on stderr too, when memory is refused to them.
WANT = re.compile(
    r"MemoryError|bad_alloc|[Ff]ailed to allocate memory|[Oo]ut of memory|OUT_OF_MEMORY|Cannot allocate memory"
)


def out_of_memory(text: str) -> bool:
    """Whether these words are about memory."""
    return WANT.search(text) is not None


def available(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes for a new process, 0 when unknown. Blocks."""
    try:
        text = meminfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@dataclass
class Bounds:
    """Of one worker, in bytes, 0 for none. `own`: its resource limit while it is measured; `owner`: when it serves."""

    own: int = 0
    owner: int = 0
    group: Group | None = None
    lifted: bool = True

    @classmethod
    def make(cls, groups: Groups | None, worker: str, options: dict[str, Any]) -> Bounds:
        """For a worker that is about to start. Blocks."""
        owner = int(options.get("memory_limit_bytes") or 0)
        if options.get("role") not in MEASURED:
            return cls(owner, owner)
        said = min((n for n in (int(options.get("candidate_memory_bytes") or 0), owner) if n), default=0)
        size = said or int(available() * FREE_SHARE)
        cpu_alone = set(options.get("providers") or [CPU]) == {CPU}
        group = groups.make(worker, size) if groups and size else None
        return cls(size if said or cpu_alone else 0, owner, group, lifted=False)

    def bind(self, pid: int) -> None:
        """Before it is told what to load. Blocks."""
        if self.group:
            self.group.enter(pid)

    def widen(self, pid: int, options: dict[str, Any]) -> None:
        """What served has made room: the share is of what is free now. Blocks."""
        if options.get("candidate_memory_bytes") or self.owner:
            return
        size = int(available() * FREE_SHARE)
        if self.group and size:
            self.group.limit(size)
        if self.own and size:
            self.own = size
            with contextlib.suppress(OSError, ValueError):  # it has ended
                resource.prlimit(pid, resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))

    def lift(self, pid: int) -> None:
        """It serves. Blocks."""
        self.lifted = True
        if self.group:
            self.group.limit(self.owner)
        if self.own != self.owner:
            with contextlib.suppress(OSError, ValueError):  # it has ended
                resource.prlimit(pid, resource.RLIMIT_DATA, (self.owner or resource.RLIM_INFINITY,) * 2)

    def why(self, ended: str, words: str) -> str:
        """The code for an end that nobody asked for. Blocks."""
        killed = self.group is not None and self.group.killed()
        aborted = ended != "SIGKILL" and out_of_memory(words)
        return "out_of_memory" if killed or aborted else "worker_died"

    def release(self) -> None:
        """Its process has ended. Blocks."""
        if self.group:
            self.group.remove()
