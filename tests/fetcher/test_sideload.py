"""A file, through the child as the agent starts it: verified like everything else, and nothing left on a refusal."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.fetcher import sideload, stores
from interlock_agent.fetcher.trust import Trust
from interlock_agent.ports import Stored
from interlock_shared.errors import InterlockError
from tests.fetcher.repository import CONTENT, DEVICE, MODEL, NOW, Files, Repository


@dataclass
class Clock:
    moment: float = NOW.timestamp()

    def now(self) -> float:
        return self.moment

    def floor(self) -> float:
        return 0.0

    def raise_floor(self, seconds: float) -> None:
        del seconds

    def forget_floor(self) -> None:
        raise AssertionError

    def behind(self) -> float:
        return 0.0

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


def unsigned(repository: Repository, role: str) -> bytes:
    """The bundle with a role's file signed by a key that nobody knows."""
    keys = {**repository.keys, role: CryptoSigner.generate_ed25519()}
    data = replace(repository, keys=keys).files()
    root = repository.files()
    return repository.bundle(files={name: root[name] if name.endswith("root.json") else data[name] for name in root})


ROTATED = replace(MINE, root_version=2, sideload=("depot",), permit_by="depot")
DROPPED = replace(MINE, root_version=2, permit_by="depot").bundle()  # root 2 no longer names it
SHORT = MINE.bundle().replace(CONTENT[20_000:20_016], b"\0" * 16)
REFUSED: list[tuple[str, bytes, str]] = [
    ("no permit", MINE.bundle(permit=False), "no_permit"),
    ("a permit for another device", replace(MINE, devices=("press-8",)).bundle(), "other_device"),
    ("an expired permit", replace(MINE, permit_ends=NOW - timedelta(seconds=1)).bundle(), "expired"),
    ("a permit for a class", replace(MINE, devices=None, classes=({"class": "oven"},)).bundle(), "other_class"),
    ("a permit by nobody", replace(MINE, permit_by="release").bundle(), "bad_signature"),
    ("a permit by a key that the root does not name", replace(MINE, permit_by="depot").bundle(), "bad_signature"),
    ("a foreign root", Repository().bundle(), "unknown_root"),
    ("a timestamp that nobody signed", unsigned(MINE, "timestamp"), "bad_metadata"),
    ("a snapshot that nobody signed", unsigned(MINE, "snapshot"), "bad_metadata"),
    ("the permit of an older root's sideload key", DROPPED, "bad_signature"),
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


OVEN = {"class": "oven", "gpu": "NVIDIA L4", "arch": "x86_64"}
LONG_AGO = {role: NOW - timedelta(days=300) for role in ("timestamp", "snapshot")}
TAKEN: list[tuple[str, bytes]] = [
    ("the permit's time stands in for that of timestamp and snapshot", replace(MINE, expires=LONG_AGO).bundle()),
    ("a class that the owner named", replace(MINE, devices=None, classes=({"class": "oven"},)).bundle()),
    ("a class of hardware", replace(MINE, devices=None, classes=({"gpu": "NVIDIA L4", "arch": "x86_64"},)).bundle()),
    ("another device or this class", replace(MINE, devices=("press-8",), classes=({"class": "oven"},)).bundle()),
    ("a permit by a sideload key", replace(MINE, sideload=("depot",), permit_by="depot").bundle()),
    ("a sideload key that a newer root names", ROTATED.bundle()),
]


@pytest.mark.parametrize(("words", "data"), TAKEN, ids=[row[0] for row in TAKEN])
async def test_a_file_is_taken(tmp_path: Path, words: str, data: bytes) -> None:
    root = replace(MINE, sideload=("depot",)).root() if words == "a permit by a sideload key" else MINE.root()
    device = Device(tmp_path, root)
    device.fetcher.facts = OVEN
    source = await device.open(data)
    assert (await source.manifest())["model"] == MODEL, words
    await source.abandon()


def stored(state: Path) -> dict[str, bytes]:
    """Every byte of what is trusted online."""
    return {str(path.relative_to(state)): path.read_bytes() for path in sorted((state / "trust").rglob("*.json"))}


STANDS = [
    ("newer", replace(MINE, version=9, root_version=2), "staged"),
    ("the same", MINE, "staged"),
    ("newer, and refused", replace(MINE, version=9, devices=("press-8",)), "other_device"),
    ("newer, without the release", replace(MINE, version=9, released=False), "not_signed"),
]


@pytest.mark.parametrize(("words", "made", "code"), STANDS, ids=[row[0] for row in STANDS])
async def test_nothing_in_a_file_moves_what_is_trusted_online(
    tmp_path: Path, words: str, made: Repository, code: str
) -> None:
    floors = {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1}
    device = Device(tmp_path, MINE.root(), floors=dict(floors), director={"epoch": 1, "keys": {}})
    await asyncio.to_thread(refreshed, tmp_path / "trust" / "metadata", MINE)
    before = stored(tmp_path)
    assert len(before) > 4
    assert await device.refusal(made.bundle()) == code, words
    assert stored(tmp_path) == before
    assert device.fetcher.stored.meta == {"floors": floors, "director": {"epoch": 1, "keys": {}}}


async def test_a_file_older_than_what_is_trusted_is_refused(tmp_path: Path) -> None:
    device = Device(tmp_path, MINE.root(), floors={"root": 2, "targets": 1})
    source = await device.open(BUNDLE)
    with pytest.raises(InterlockError, match="older than what this device trusts: metadata: root 1") as refused:
        await source.manifest()
    await source.abandon()
    assert refused.value.code == "below_floor"
    young = Device(tmp_path / "d", replace(MINE, root_version=3).root())  # enrolled when the root was version 3
    assert await young.refusal(BUNDLE) == "below_floor"


async def test_what_expired_says_when(tmp_path: Path) -> None:
    expired = replace(MINE, expires={"release": NOW - timedelta(hours=1)})
    source = await Device(tmp_path, MINE.root()).open(expired.bundle())
    with pytest.raises(InterlockError, match=r"release-detector expired on 2026-05-31T23:00:00Z"):
        await source.manifest()
    await source.abandon()


@pytest.mark.parametrize("data", [BUNDLE[:-2000], SHORT], ids=["cut in a segment", "a segment altered"])
async def test_payload_that_is_not_the_signed_one_is_never_sealed(tmp_path: Path, data: bytes) -> None:
    device = Device(tmp_path, MINE.root())
    assert await device.refusal(data) in {"truncated", "segment_mismatch"}
    assert not list(tmp_path.rglob("seal.json"))
    assert all(name.startswith(".partial-") for name in device.left())


async def test_what_is_corrupted_is_named_by_its_number(tmp_path: Path) -> None:
    source = await Device(tmp_path, MINE.root()).open(SHORT)
    await source.manifest()
    with pytest.raises(InterlockError, match="segment 2 of 3 is corrupted") as refused:
        await source.proceed(lambda done, of: None)
    await source.abandon()
    assert refused.value.details["segment"] == 2


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
        (Repository().bundle(), "unknown_root"),
        (replace(MINE, released=False).bundle(), "not_signed"),
        (SHORT, "segment_mismatch"),
    ],
    ids=["a foreign root", "not signed by its role", "a segment altered"],
)
async def test_what_is_judged_must_be_what_it_says(tmp_path: Path, data: bytes, code: str) -> None:
    device = Device(tmp_path, MINE.root())
    assert await device.refusal(data, install=False) == code
    assert not list(tmp_path.rglob("seal.json"))


def test_a_child_that_ends_while_it_judges_leaves_no_store_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with sideload._store() as folder:
        (folder / "root.json").write_bytes(b"{}")
        stores.leave_nothing()
        assert list(tmp_path.iterdir()) == []
        folder.mkdir()
    assert list(tmp_path.iterdir()) == []
