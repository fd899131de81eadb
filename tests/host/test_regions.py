"""What may be registered as shared memory, and by whom."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.host.adapters import fronts
from interlock_agent.host.front import memory, sharing
from interlock_agent.host.front.memory import Memory, Refused
from interlock_agent.host.front.sharing import Channel
from interlock_agent.host.wire import NO_USER
from interlock_agent.host.worker.errors import BadRequest
from interlock_agent.host.worker.inference import Model
from interlock_agent.host.worker.serving import Serving
from tests.host.rig import until

ME = os.getuid()


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("", "bad_region"),
        ("/", "bad_region"),
        ("..", "bad_region"),
        ("/.", "bad_region"),
        ("a/b", "bad_region"),
        ("//a", "bad_region"),
        ("/../etc/passwd", "bad_region"),
        ("a\0b", "bad_region"),
        ("\ud800", "bad_region"),
        ("x" * 256, "bad_region"),
        (7, "bad_region"),
        (None, "bad_region"),
        ("il-there-is-none", "region_not_found"),
    ],
)
def test_a_key_is_the_name_of_one_file(key: Any, code: str) -> None:
    with pytest.raises(Refused) as refused:
        Memory().register(ME, "a", key, 0, 16)
    assert (refused.value.status, refused.value.code) == (400, code)


@pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, 0), (0, -1), ("0", 1), (0, 1.5), (2**63, 1), (True, 1)])
def test_offset_and_size_are_numbers_of_bytes(shared: Path, start: Any, size: Any) -> None:
    with pytest.raises(Refused) as refused:
        Memory().register(ME, "a", shared.name, start, size)
    assert refused.value.code == "bad_region"


def test_memory_is_its_owners(shared: Path) -> None:
    regions = Memory()
    for user, code in ((ME + 1, "foreign_region"), (NO_USER, "unknown_peer")):
        with pytest.raises(Refused) as refused:
            regions.register(user, "a", shared.name, 0, 16)
        assert (refused.value.status, refused.value.code) == (403, code)
    assert regions.register(ME, "a", shared.name, 0, 16)
    (mine,) = regions
    assert regions.status(ME + 1, None) == []
    with pytest.raises(Refused, match="no region 'a'"):
        regions.status(ME + 1, "a")
    with pytest.raises(Refused, match="unregistered"):
        regions.write(ME + 1, mine.number, 0, memoryview(b"x"))
    regions.unregister(ME + 1, None)
    assert list(regions) == [mine]
    regions.unregister(ME, "b")
    assert list(regions) == [mine]
    regions.unregister(ME, None)
    assert not regions


def test_what_is_no_memory_is_not_opened(shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = shared.parent / f"{shared.name}-d"
    folder.mkdir()
    monkeypatch.setattr(memory, "FOLDER", str(folder))
    try:
        os.symlink(shared, folder / "link")
        os.mkfifo(folder / "pipe")
        (folder / "folder").mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
        for key, code in (
            ("link", "region_not_opened"),
            ("pipe", "bad_region"),
            ("folder", "region_not_opened"),
            ("socket", "region_not_opened"),
        ):
            with pytest.raises(Refused) as refused:
                Memory().register(ME, "a", key, 0, 16)
            assert refused.value.code in (code, "bad_region"), key
        (folder / "real").write_bytes(b"x" * 16)
        with pytest.raises(Refused) as refused:
            Memory().register(ME, "a", "real", 1, 16)
        assert refused.value.code == "outside_region"
        elsewhere = os.stat(tmp_path).st_dev
        real = os.stat
        monkeypatch.setattr(os, "stat", lambda path: real(tmp_path) if path == str(folder) else real(path))
        if elsewhere != real(folder).st_dev:  # a file system that somebody mounted over the name
            with pytest.raises(Refused, match="no shared memory"):
                Memory().register(ME, "a", "real", 0, 16)
        monkeypatch.undo()
    finally:
        for entry in folder.iterdir():
            entry.rmdir() if entry.is_dir() else entry.unlink()
        folder.rmdir()


def test_there_are_so_many_regions_and_so_large(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_REGIONS_OF_A_USER", 2)
    monkeypatch.setattr(memory, "MAX_REGION_BYTES", 1024)
    regions = Memory()
    for name in ("a", "b"):
        regions.register(ME, name, shared.name, 0, 1024)
    with pytest.raises(Refused) as refused:
        regions.register(ME, "c", shared.name, 0, 1024)
    assert (refused.value.status, refused.value.code) == (429, "too_many_regions")
    assert not regions.register(ME, "b", shared.name, 0, 1024), "the same once more is none more"
    with pytest.raises(Refused) as refused:
        Memory().register(ME, "a", shared.name, 0, 1025)
    assert (refused.value.status, refused.value.code) == (413, "region_too_large")
    with pytest.raises(Refused) as refused:
        Memory().register(ME, "n" * 257, shared.name, 0, 1)
    assert refused.value.code == "bad_region"


def test_the_next_front_knows_what_is_still_the_same_file(shared: Path) -> None:
    regions = Memory()
    regions.register(ME, "a", shared.name, 8, 16)
    kept = json.loads(json.dumps(regions.kept()))
    after = Memory()
    after.restore(kept)
    assert after.kept() == kept
    other = shared.with_name(shared.name + "-new")
    other.write_bytes(bytes(4096))
    other.rename(shared)  # the name of other memory, while the first is still held
    after = Memory()
    after.restore(kept)
    assert not after
    shared.unlink()
    after.restore(kept)
    assert not after


def test_what_cannot_be_written_says_so(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = Memory()
    regions.register(ME, "a", shared.name, 8, 16)
    (mine,) = regions
    mine.write(12, memoryview(b"last"))
    assert shared.read_bytes()[20:24] == b"last"
    with pytest.raises(Refused, match="outside"):
        mine.write(13, memoryview(b"last"))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Refused, match="No space left") as refused:
        mine.write(0, memoryview(b"x"))
    assert refused.value.code == "region_not_written"


# --- what a worker is told ------------------------------------------------------------------------------------------


class Nothing:
    """A backend without tensors."""

    inputs: list[dict[str, Any]] = []  # noqa: RUF012 - as the protocol has it
    outputs: list[dict[str, Any]] = []  # noqa: RUF012

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        return []


async def test_a_worker_holds_what_is_registered_as_long_as_the_front_lives(shared: Path, short_path: Path) -> None:
    serving = Serving(Model("m", "1", Nothing(), frozenset()), "")
    await asyncio.to_thread(serving.listen, f"{short_path}/w.sock")

    def holds(name: str) -> bool:
        try:
            return serving._regions.find(ME, name, "").name == name
        except BadRequest:
            return False

    regions = Memory()
    channel = Channel(f"{short_path}/w.sock", regions)
    for name in ("a", "b"):
        regions.register(ME, name, shared.name, 0, 16)
    await channel.sync()
    assert (holds("a"), holds("b")) == (True, True)
    regions.unregister(ME, "a")
    regions.register(ME, "c", shared.name, 8, 16)
    await asyncio.gather(channel.sync(), channel.sync())
    assert (holds("a"), holds("b"), holds("c")) == (False, True, True)
    after = Memory()
    after.restore([entry for entry in regions.kept() if entry["name"] == "c"])
    second = Channel(f"{short_path}/w.sock", after)
    await second.sync()
    channel.close()
    await until(lambda: not holds("b"))
    assert holds("c"), "the next front's"
    second.close()
    await until(lambda: not holds("c"))


async def test_a_worker_that_does_not_answer_keeps_nobody_waiting_when_it_is_given_up(
    shared: Path, short_path: Path
) -> None:
    regions = Memory()
    regions.register(ME, "a", shared.name, 0, 16)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{short_path}/w.sock")
        silent.listen()
        channel = Channel(f"{short_path}/w.sock", regions)
        telling = asyncio.ensure_future(channel.sync())
        await until(lambda: channel._socket is not None and channel._lock.locked())
        channel.close()
        with pytest.raises(OSError, match="ended"):
            await telling
        assert channel._socket is not None
        assert channel._socket.fileno() == -1
        await channel.sync()  # nothing is told any more


async def test_what_its_owner_has_given_up_ends_also_where_a_worker_has_left(shared: Path, short_path: Path) -> None:
    serving = Serving(Model("m", "1", Nothing(), frozenset()), "")
    await asyncio.to_thread(serving.listen, f"{short_path}/w.sock")
    regions = Memory()
    channel = Channel(f"{short_path}/w.sock", regions)
    regions.register(ME, "a", shared.name, 0, 16)
    held = weakref.ref(next(iter(regions)))
    await channel.sync()
    channel.close()
    regions.unregister(ME, "a")
    assert held() is None, "its descriptor is closed, and its memory is free"


def test_a_front_that_waits_for_its_workers_is_not_replaced() -> None:
    assert fronts.SWITCH_S > 2 * sharing.ANSWER_S, "a live one and a standby, one after the other"
