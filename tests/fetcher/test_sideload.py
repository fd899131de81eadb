"""A file, through the child as the agent starts it: verified like everything else, and nothing left on a refusal."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.fetcher.trust import Trust
from interlock_agent.ports import Stored
from interlock_shared.errors import InterlockError
from tests.fetcher.repository import CONTENT, DEVICE, MODEL, NOW, Files, Repository


@dataclass
class Clock:
    moment: float = NOW.timestamp()

    def now(self) -> float:
        return self.moment

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        del seconds

    def dice(self) -> float:
        return 0.5


class Device:
    def __init__(self, state: Path, root: bytes, **meta: Any) -> None:
        self.state, self.clock = state, Clock()
        (state / "trust").mkdir(parents=True)
        (state / "trust" / "root.json").write_bytes(root)
        self.fetcher = FetcherProcess(state, DEVICE, {}, self.clock, Stored(meta=meta))

    async def open(self, data: bytes, *, install: bool = True) -> Any:
        path = self.state / "given.tmp"
        path.write_bytes(data)
        descriptor = os.open(path, os.O_RDONLY)
        path.unlink()
        return await (self.fetcher.archive(descriptor) if install else self.fetcher.unpack(descriptor))

    async def refusal(self, data: bytes, *, install: bool = True) -> str:
        source = await self.open(data, install=install)
        try:
            await source.manifest()
            await source.proceed(lambda done, of: None)
        except InterlockError as refused:
            return refused.code
        finally:
            await source.abandon()
        return "staged"

    def left(self) -> list[str]:
        incoming = self.state / "incoming" / MODEL
        return sorted(path.name for path in incoming.iterdir()) if incoming.exists() else []


async def test_a_good_file_is_staged(tmp_path: Path) -> None:
    repository = Repository()
    device = Device(tmp_path, repository.root())
    source = await device.open(repository.bundle())
    try:
        head = await source.manifest()
        assert (head["model"], head["size"], head["trust"]) == (MODEL, len(CONTENT), {})
        assert device.left() == [], "nothing is written before the agent says go"
        seen: list[int] = []
        done = await source.proceed(lambda part, of: seen.append(part))
    finally:
        await source.abandon()
    folder = Path(done["folder"])
    assert (folder / "model.onnx").read_bytes() == CONTENT
    assert (folder / ".interlock" / "manifest.json").read_bytes() == repository.raw
    assert (folder / ".interlock" / "seal.json").exists()
    assert seen[-1] == len(CONTENT)
    assert (tmp_path / "trust").is_dir()
    assert not (tmp_path / "trust" / "metadata").exists(), "a file moves nothing that is trusted online"


KEYS = Repository().keys
MINE = Repository(keys=KEYS)
BUNDLE = MINE.bundle()
SHORT = MINE.bundle().replace(CONTENT[20_000:20_016], b"\0" * 16)
REFUSED: list[tuple[str, bytes, str]] = [
    ("no permit", MINE.bundle(permit=False), "no_permit"),
    ("a permit for another device", replace(MINE, devices=("press-8",)).bundle(), "other_device"),
    ("an expired permit", replace(MINE, permit_ends=NOW - timedelta(seconds=1)).bundle(), "expired"),
    ("a foreign root", Repository().bundle(), "bad_metadata"),
    ("not signed", replace(MINE, released=False).bundle(), "not_signed"),
    ("another manifest signed", replace(MINE, signed_as=b"{}").bundle(), "manifest_mismatch"),
    ("targets expired now", replace(MINE, expires={"targets": NOW - timedelta(hours=1)}).bundle(), "metadata_expired"),
    ("cut in the head", BUNDLE[:3000], "truncated"),
    ("empty", b"", "truncated"),
    ("garbage", b"\x7fELF" * 1000, "not_a_plain_file"),
]


@pytest.mark.parametrize(("words", "data", "code"), REFUSED, ids=[row[0] for row in REFUSED])
async def test_a_file_that_may_not_be_believed_leaves_nothing(
    tmp_path: Path, words: str, data: bytes, code: str
) -> None:
    device = Device(tmp_path, MINE.root())
    assert await device.refusal(data) == code, words
    assert device.left() == []


async def test_any_device_of_the_fleet_when_the_permit_says_so(tmp_path: Path) -> None:
    source = await Device(tmp_path, MINE.root()).open(replace(MINE, devices=None).bundle())
    assert (await source.manifest())["model"] == MODEL
    await source.abandon()


async def test_online_roles_are_judged_at_the_time_of_the_permit(tmp_path: Path) -> None:
    old = replace(MINE, expires={role: NOW - timedelta(hours=1) for role in ("timestamp", "snapshot")})
    source = await Device(tmp_path, MINE.root()).open(old.bundle())
    assert (await source.manifest())["model"] == MODEL
    await source.abandon()


@pytest.mark.parametrize("data", [BUNDLE[:-2000], SHORT], ids=["cut in a segment", "a segment altered"])
async def test_payload_that_is_not_the_signed_one_is_never_sealed(tmp_path: Path, data: bytes) -> None:
    device = Device(tmp_path, MINE.root())
    assert await device.refusal(data) in {"truncated", "segment_mismatch"}
    assert not list(tmp_path.rglob("seal.json"))
    assert all(name.startswith(".partial-") for name in device.left())


async def test_a_file_below_the_floors_is_refused(tmp_path: Path) -> None:
    device = Device(tmp_path, MINE.root(), floors={"targets": 7})
    assert await device.refusal(BUNDLE) == "below_floor"
    device = Device(tmp_path / "d", MINE.root(), director={"epoch": 2, "keys": {}})
    assert await device.refusal(BUNDLE) == "below_floor"


def refreshed(folder: Path, repository: Repository) -> None:
    """The store after the device last spoke with its server."""
    chain = Trust(repository.root(), folder, Files(repository), NOW.timestamp())
    chain.refresh({})
    with pytest.raises(InterlockError):
        chain.release(MODEL, "1.4.0", "0" * 64, {})


async def test_a_file_cannot_bring_back_what_was_taken_back(tmp_path: Path) -> None:
    device = Device(tmp_path, MINE.root())
    newer = replace(MINE, version=2, released=False)
    await asyncio.to_thread(refreshed, tmp_path / "trust" / "metadata", newer)
    assert await device.refusal(BUNDLE) == "revoked"
    assert device.left() == []


async def test_the_end_of_its_input_is_the_end_of_the_child(tmp_path: Path) -> None:
    device = Device(tmp_path, MINE.root())
    source = await device.open(BUNDLE)
    await source.manifest()
    await source.abandon()
    assert source._process.returncode == 3
    assert device.left() == []
    reading, writing = os.pipe()
    source = await device.fetcher.archive(reading)  # a pipe that never says anything
    await source.abandon()
    assert source._process.returncode == 3
    os.close(writing)


async def test_a_device_that_is_not_enrolled_says_so(tmp_path: Path) -> None:
    device = Device(tmp_path, MINE.root())
    for work in (device.fetcher.refresh(), device.fetcher.poll(), device.fetcher.online(MODEL, "1.0.0", "0" * 64)):
        with pytest.raises(InterlockError) as refused:
            await work
        assert refused.value.code == "not_enrolled"


UNPACKED: list[tuple[str, bytes, bool, str]] = [
    ("signed, with a root here", BUNDLE, True, "verified"),
    ("for another device: nothing is installed", replace(MINE, devices=("press-8",)).bundle(), True, "verified"),
    ("signed, without a root here", BUNDLE, False, "not checked: there is no root of trust here"),
    ("without a permit", MINE.bundle(permit=False), True, "not checked: the bundle carries none"),
]


@pytest.mark.parametrize(("words", "data", "rooted", "said"), UNPACKED, ids=[row[0] for row in UNPACKED])
async def test_what_is_judged_and_not_installed_says_whether_it_was_believed(
    tmp_path: Path, words: str, data: bytes, rooted: bool, said: str
) -> None:
    device = Device(tmp_path, MINE.root())
    if not rooted:
        (tmp_path / "trust" / "root.json").unlink()
    source = await device.open(data, install=False)
    try:
        assert (await source.manifest())["trust"] == {"signature": said}, words
        done = await source.proceed(lambda part, of: None)
    finally:
        await source.abandon()
    assert (Path(done["folder"]) / "model.onnx").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (Repository().bundle(), "bad_metadata"),
        (replace(MINE, released=False).bundle(), "not_signed"),
        (SHORT, "segment_mismatch"),
    ],
    ids=["a foreign root", "not signed by its role", "a segment altered"],
)
async def test_what_is_judged_must_be_what_it_says(tmp_path: Path, data: bytes, code: str) -> None:
    device = Device(tmp_path, MINE.root())
    assert await device.refusal(data, install=False) == code
    assert not list(tmp_path.rglob("seal.json"))
