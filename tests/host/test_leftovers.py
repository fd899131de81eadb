"""What a killed host left behind is ended before its successor serves, also what no record names."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock_agent.host import children, leftovers

STUBBORN = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("here", flush=True)
while True:
    time.sleep(60)
"""


class Stubborn:
    """Processes that end by nothing but SIGKILL."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Stubborn:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.all:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, env=environment)
        self.all.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        return process


@pytest.fixture
def stubborn() -> Iterator[Stubborn]:
    with Stubborn() as found:
        yield found


def test_the_recorded_and_the_marked_are_ended_and_nobody_else(tmp_path: Path, stubborn: Stubborn) -> None:
    records, state = tmp_path / "children", tmp_path / "state"
    for folder in (records, state):
        folder.mkdir()
    mark = leftovers.mark_of(state)
    recorded, reused, marked, stopped = (stubborn.start() for _ in range(2)), stubborn.start(), None, None
    one, two = recorded
    marked, stopped = (stubborn.start(**{children.MARK: mark}) for _ in range(2))
    other = stubborn.start(**{children.MARK: mark + "1"})
    os.kill(stopped.pid, signal.SIGSTOP)
    for process in (one, two):
        (records / str(process.pid)).write_text(children.start_time(process.pid))
    (records / str(reused.pid)).write_text("1")  # that pid was another's
    (records / "999999999").write_text("1")
    ended = leftovers.end_leftovers(records, mark)
    assert sorted(ended) == sorted(process.pid for process in (one, two, marked, stopped))
    assert [process.wait() for process in (one, two, marked, stopped)] == [-signal.SIGKILL] * 4
    assert (reused.poll(), other.poll()) == (None, None)
    assert list(records.iterdir()) == []


def test_the_mark_is_the_folder_whatever_its_path(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to("state")
    assert leftovers.mark_of(tmp_path / "link") == leftovers.mark_of(tmp_path / "state")
    assert leftovers.mark_of(tmp_path) != leftovers.mark_of(tmp_path / "state")


async def test_a_child_that_cannot_be_recorded_is_a_child_all_the_same(tmp_path: Path) -> None:
    child = await children.Child.start([sys.executable, "-c", STUBBORN], tmp_path / "there-is-none", dict(os.environ))
    child.kill()
    assert await asyncio.wait_for(child.ended, 30) == "SIGKILL", "it is known, and not one more that nobody ends"
