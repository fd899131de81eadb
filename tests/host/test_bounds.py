"""Where a worker's memory is bound, on trees as the kernel makes them, and where it can be, by the kernel itself."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.host import bounds, cgroups
from interlock_agent.host.bounds import Bounds
from interlock_agent.host.cgroups import Group, Groups

MIB = 2**20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A `proc` folder and a place for the hierarchies."""
    (tmp_path / "proc").mkdir()
    return tmp_path


def mounted(tree: Path, kind: str, options: str, path: str, *, number: int, name: str) -> Path:
    folder = tree / "mnt" / path.lstrip("/")
    folder.mkdir(parents=True)
    (tree / "proc" / "mountinfo").write_text(
        f"22 1 0:20 / / rw - ext4 /dev/root rw\n30 22 0:30 / {tree}/mnt rw,relatime - {kind} cgroup {options}\n"
    )
    (tree / "proc" / "cgroup").write_text(f"{number}:{name}:{path}\n")
    return folder


def test_version_1_in_the_folder_of_the_process(tree: Path) -> None:
    own = mounted(tree, "cgroup", "rw,memory", "/system.slice/host", number=4, name="memory")
    found = cgroups.find(tree / "proc")
    assert found == Groups(own, 1)
    group = found.make("worker", 64 * MIB)
    assert group is not None
    assert (group.folder.parent, (group.folder / "memory.limit_in_bytes").read_text()) == (own, str(64 * MIB))
    group.limit(0)
    assert (group.folder / "memory.limit_in_bytes").read_text() == "-1"


def test_a_mount_of_a_part_of_the_hierarchy(tree: Path) -> None:
    own = mounted(tree, "cgroup", "rw,memory", "/", number=4, name="memory")
    line = f"30 22 0:30 /docker/1234 {tree}/mnt rw - cgroup cgroup rw,memory\n"
    (tree / "proc" / "mountinfo").write_text(line)
    (tree / "proc" / "cgroup").write_text("4:memory:/docker/1234\n")
    assert cgroups.find(tree / "proc") == Groups(Path(str(own).rstrip("/")), 1)


def version_2(tree: Path, monkeypatch: pytest.MonkeyPatch, *, delegated: bool) -> Path:
    own = mounted(tree, "cgroup2", "rw", "/system.slice/host.service", number=0, name="")
    (own / "cgroup.controllers").write_text("cpu memory pids\n")
    (own / "cgroup.subtree_control").write_text("")
    (own / "cgroup.procs").write_text("41\n42\n")

    def attribute(path: Any, name: str) -> bytes:
        if delegated and name == "user.delegate":
            return b"1"
        raise OSError(61, "No data available")

    monkeypatch.setattr(os, "getxattr", attribute)
    return own


def test_version_2_where_it_was_delegated(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = version_2(tree, monkeypatch, delegated=True)
    found = cgroups.find(tree / "proc")
    assert found == Groups(own, 2)
    assert (own / cgroups.OURS / "cgroup.procs").read_text() == "42"  # the last that was moved out of the way
    assert (own / "cgroup.subtree_control").read_text() == "+memory"
    group = found.make("worker", MIB)
    assert group is not None
    assert (group.folder / "memory.max").read_text() == str(MIB)
    group.limit(0)
    assert (group.folder / "memory.max").read_text() == "max"


def test_version_2_of_somebody_else_is_left_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = version_2(tree, monkeypatch, delegated=False)
    assert cgroups.find(tree / "proc") is None
    assert not (own / cgroups.OURS).exists()


def test_no_hierarchy_at_all(tree: Path) -> None:
    assert cgroups.find(tree / "proc") is None


@pytest.mark.parametrize(
    ("version", "file", "text", "killed"),
    [
        (1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", True),
        (1, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", False),
        (2, "memory.events", "low 0\nmax 7\noom 1\noom_kill 1\n", True),
        (2, "memory.events", "low 0\nmax 7\noom 0\noom_kill 0\n", False),
        (2, "other", "", False),
    ],
)
def test_whom_the_kernel_ended(tmp_path: Path, version: int, file: str, text: str, killed: bool) -> None:
    (tmp_path / file).write_text(text)
    assert Group(tmp_path, version).killed() is killed


def test_groups_of_dead_hosts_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = tmp_path / f"interlock-{ended.pid}-1", tmp_path / f"interlock-{os.getpid()}-1"
    dead.mkdir()
    alive.mkdir()
    Groups(tmp_path, 1).clear()
    assert (dead.exists(), alive.exists()) == (False, True)


# --- whose limit -------------------------------------------------------------------------------------------------

GPU = {"providers": ["CUDAExecutionProvider"]}
OF: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("serves", {"role": "live", "memory_limit_bytes": 7}, (7, 7)),
    ("serves without a limit", {}, (0, 0)),
    ("candidate, as the owner says of all", {"role": "candidate", "memory_limit_bytes": 7}, (7, 7)),
    ("candidate, as the owner says of it",
     {"role": "candidate", "memory_limit_bytes": 7, "candidate_memory_bytes": 5}, (5, 7)),
    ("never more than when it serves", {"role": "twin", "memory_limit_bytes": 5, "candidate_memory_bytes": 7}, (5, 5)),
    ("what is free", {"role": "candidate"}, (900, 0)),
    ("a GPU's driver reserves more than it takes", {"role": "candidate", **GPU}, (0, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "options", "sizes"), OF, ids=[row[0] for row in OF])
def test_whose_limit_holds(
    words: str, options: dict[str, Any], sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    del words
    monkeypatch.setattr(bounds, "available", lambda: 1000)
    made = Bounds.make(None, "w", options)
    assert (made.own, made.owner) == sizes


def test_free_memory_is_what_the_kernel_calls_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    4 kB\n")
    assert (bounds.available(tmp_path / "meminfo"), bounds.available(tmp_path / "none")) == (4096, 0)


@pytest.mark.parametrize(
    ("ended", "words", "code"),
    [
        ("SIGABRT", "terminate called after throwing an instance of 'std::bad_alloc'", "out_of_memory"),
        ("exit 1", "MemoryError", "out_of_memory"),
        ("SIGSEGV", "", "worker_died"),
        ("SIGKILL", "bad_alloc was said long ago", "worker_died"),  # somebody's kill; the kernel's is counted
    ],
)
def test_why_it_ended(ended: str, words: str, code: str) -> None:
    assert Bounds().why(ended, words) == code


# --- by the kernel itself -----------------------------------------------------------------------------------------

HUNGRY = "import sys; sys.stdin.read(1); b = bytearray(256 << 20); sys.stdout.write('full'); sys.stdin.read()"


@pytest.mark.parametrize("size", [64 * MIB, 0], ids=["bound", "lifted"])
def test_the_kernel_ends_what_takes_too_much(size: int) -> None:
    groups = cgroups.find()
    if groups is None:
        pytest.skip("no control group here that we may make")
    made = Bounds.make(groups, f"hungry-{size}", {"role": "candidate", **GPU, "candidate_memory_bytes": 64 * MIB})
    assert made.group is not None
    with subprocess.Popen([sys.executable, "-c", HUNGRY], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin
        assert process.stdout
        made.bind(process.pid)
        if not size:
            made.lift(process.pid)
        process.stdin.write("x")
        process.stdin.flush()
        said = process.stdout.read(4)
        process.stdin.close()
    assert (said, made.why("SIGKILL", "")) == (("", "out_of_memory") if size else ("full", "worker_died"))
    made.release()
    assert not made.group.folder.exists()


def test_the_resource_limit_is_lifted_too() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1) as process:
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MIB, resource.RLIM_INFINITY))
        made = Bounds(own=MIB, owner=0, lifted=False)
        made.lift(process.pid)
        assert resource.prlimit(process.pid, resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
        assert made.lifted
        process.kill()
    made = Bounds(own=MIB, owner=0, lifted=False)
    made.lift(process.pid)  # it has ended: no error
