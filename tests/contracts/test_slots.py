"""The Slots port: the same tests on the fake and on real folders."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.slots import VERDICTS_KEPT, SlotFolders
from interlock_shared import canonical, seals
from interlock_shared import manifest as manifests
from interlock_shared.errors import Later, NotFound
from tests.agent.material import UNIT, digest_of, the_manifest
from tests.fakes.disk import Disk
from tests.fakes.slots import FakeSlots

MANIFEST = the_manifest()
DIGEST = digest_of(MANIFEST)


class Fake:
    def __init__(self) -> None:
        self.disk = Disk()
        self.slots: Any = FakeSlots(self.disk)

    def write(self, path: str, data: bytes) -> None:
        self.disk.make(path.rpartition("/")[0])
        self.disk.write(path, data)

    def link(self, path: str, target: str) -> None:
        self.disk.make(path.rpartition("/")[0])
        self.disk.symlink(path, target)

    def move(self, source: str, target: str) -> None:
        self.disk.make(target.rpartition("/")[0])
        self.disk.rename(source, target)

    def exists(self, path: str) -> bool:
        return self.disk.node(path) is not None


class Real:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.slots: Any = SlotFolders(root)

    def write(self, path: str, data: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)

    def link(self, path: str, target: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).symlink_to(target)

    def move(self, source: str, target: str) -> None:
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(self.root / source, self.root / target)

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()


Kind = Fake | Real


@pytest.fixture(params=["fake", "real"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return Fake() if request.param == "fake" else Real(tmp_path)


def put(folders: Kind, folder: str, generation: int = 0) -> None:
    seal = seals.encode(seals.seal(MANIFEST, DIGEST, "fp32", generation))
    folders.write(f"{folder}/model.onnx", b"weights")
    folders.write(f"{folder}/.interlock/manifest.json", manifests.to_bytes(MANIFEST))
    folders.write(f"{folder}/.interlock/seal.json", seal)


INCOMING = f"incoming/{UNIT}/{DIGEST}"


async def test_a_unit_without_anything(folders: Kind) -> None:
    slots = folders.slots
    assert (await slots.confirmed_slot(UNIT), await slots.spare(UNIT)) == ("", "a")
    assert await slots.seal_of(UNIT, "a") is None
    assert await slots.staged(UNIT, DIGEST) is None
    assert await slots.contract(UNIT) is None
    assert await slots.verdict(UNIT) is None
    assert await slots.units() == []
    with pytest.raises(NotFound):
        await slots.manifest_of(UNIT, "a")


async def test_a_release_goes_from_beside_the_slots_into_the_spare(folders: Kind) -> None:
    slots = folders.slots
    await asyncio.to_thread(put, folders, INCOMING)
    staged = await slots.staged(UNIT, DIGEST)
    assert staged.payload_sha256 == MANIFEST.payload_sha256()
    await slots.prepare(UNIT, DIGEST, "fp32", 4)
    await slots.keep_verdict(UNIT, 4, b'{"v":1}', b'{"s":1}')
    await slots.fill(UNIT, DIGEST, "a", 4)
    assert (await slots.seal_of(UNIT, "a"))["generation"] == 4
    assert await slots.manifest_of(UNIT, "a") == manifests.to_bytes(MANIFEST)
    assert folders.exists(f"slots/{UNIT}/a/.interlock/verdict.json")
    assert await slots.staged(UNIT, DIGEST) is None
    assert await slots.units() == [UNIT]
    await slots.fill(UNIT, DIGEST, "a", 4)  # asked again: done
    with pytest.raises(Later) as other:
        await slots.fill(UNIT, DIGEST, "a", 5)
    assert other.value.code == "staging_lost"


async def test_the_confirmed_slot_is_never_filled(folders: Kind) -> None:
    slots = folders.slots
    await asyncio.to_thread(put, folders, f"slots/{UNIT}/a", 1)
    await asyncio.to_thread(put, folders, INCOMING, 2)
    await asyncio.to_thread(folders.link, f"slots/{UNIT}/confirmed", "a")
    assert (await slots.confirmed_slot(UNIT), await slots.spare(UNIT)) == ("a", "b")
    with pytest.raises(Later) as refused:
        await slots.fill(UNIT, DIGEST, "a", 2)
    assert refused.value.code == "slot_confirmed"
    assert (await slots.seal_of(UNIT, "a"))["generation"] == 1
    assert await slots.staged(UNIT, DIGEST) is not None


async def test_a_cut_between_the_renames_is_gone_on_from(folders: Kind) -> None:
    slots = folders.slots
    await asyncio.to_thread(put, folders, f"slots/{UNIT}/a", 1)
    await asyncio.to_thread(put, folders, INCOMING)
    await slots.prepare(UNIT, DIGEST, "fp32", 2)
    # the old slot is in the trash, the new one not yet in its place
    await asyncio.to_thread(folders.move, f"slots/{UNIT}/a", f"incoming/.trash-{UNIT}-a")
    await slots.fill(UNIT, DIGEST, "a", 2)
    assert (await slots.seal_of(UNIT, "a"))["generation"] == 2


async def test_a_foreign_link_is_no_slot(folders: Kind) -> None:
    await asyncio.to_thread(folders.link, f"slots/{UNIT}/confirmed", "../../etc")
    assert await folders.slots.confirmed_slot(UNIT) == ""


async def test_a_folder_without_a_whole_seal_is_not_complete(folders: Kind) -> None:
    await asyncio.to_thread(put, folders, INCOMING)
    for seal in (b"", b"{}", b"[]", b'{"schema":"another/1"}'):
        await asyncio.to_thread(folders.write, f"{INCOMING}/.interlock/seal.json", seal)
        assert await folders.slots.staged(UNIT, DIGEST) is None


async def test_what_is_beside_the_slots_is_dropped(folders: Kind) -> None:
    await asyncio.to_thread(put, folders, INCOMING)
    await asyncio.to_thread(put, folders, f"incoming/{UNIT}/.partial-{DIGEST}")
    await folders.slots.drop(UNIT)
    await folders.slots.drop(UNIT)
    assert not folders.exists(INCOMING)
    assert not folders.exists(f"incoming/{UNIT}/.partial-{DIGEST}")


async def test_verdicts_and_the_contract_are_kept(folders: Kind) -> None:
    slots = folders.slots
    for generation in (2, 10, 9):
        await slots.keep_verdict(UNIT, generation, b'{"g":%d}' % generation, b"{}")
    assert await slots.verdict(UNIT) == {"g": 10}
    assert await slots.verdict(UNIT, 2) == {"g": 2}
    assert await slots.verdict(UNIT, 3) is None
    await slots.set_contract(UNIT, {"inputs": []})
    assert await slots.contract(UNIT) == {"inputs": []}


def judged(samples: bytes, payload: str = "p", outcome: str = "accept", **more: Any) -> bytes:
    document = {"payload_sha256": payload, "fingerprint": {"gpu": "x"}, "outcome": outcome, "variant": "fp32"}
    return canonical.encode(document | {"samples_sha256": canonical.sha256(samples)} | more)


async def test_the_newest_verdict_that_accepted_a_payload_on_this_device_is_found(folders: Kind) -> None:
    slots, place = folders.slots, f"slots/{UNIT}/b/.interlock"

    async def found(payload: str = "p", gpu: str = "x") -> Any:
        pair = await slots.recorded(UNIT, "b", payload, {"gpu": gpu})
        return pair and pair[1]["n"]

    assert await found() is None
    await asyncio.to_thread(folders.write, f"{place}/samples.json", b'{"n":0}')
    await asyncio.to_thread(folders.write, f"{place}/verdict.json", judged(b'{"n":0}'))
    assert await found() == 0
    await slots.keep_verdict(UNIT, 9, judged(b'{"n":9}'), b'{"n":9}')
    await slots.keep_verdict(UNIT, 10, judged(b'{"n":10}'), b'{"n":10}')
    assert await found() == 10
    await slots.keep_verdict(UNIT, 11, judged(b'{"n":11}', outcome="reject"), b'{"n":11}')
    await slots.keep_verdict(UNIT, 12, judged(b'{"n":12}', payload="q"), b'{"n":12}')
    await slots.keep_verdict(UNIT, 13, judged(b'{"n":13}'), b'{"n":"other samples"}')
    await slots.keep_verdict(UNIT, 14, judged(b'{"n":14}', fingerprint={"gpu": "y"}), b'{"n":14}')
    assert await found() == 10
    assert (await found("q"), await found(gpu="y"), await found("q", "y")) == (12, 14, None)
    await asyncio.to_thread(folders.write, f"{place}/seal.json", b'{"schema":"interlock.seal/1","variant":"fp16"}')
    assert await found() is None, "another form of it serves: its speed is another"
    await slots.keep_verdict(UNIT, 8, judged(b'{"n":8}', variant="fp16"), b'{"n":8}')
    assert await found() == 8


async def test_the_oldest_verdicts_go(tmp_path: Path) -> None:
    slots = SlotFolders(tmp_path)
    for generation in range(1, VERDICTS_KEPT + 3):
        await slots.keep_verdict(UNIT, generation, b"{}", b"{}")
    assert await slots.verdict(UNIT, 2) is None
    assert await slots.verdict(UNIT, 3) == {}
    assert len(list((tmp_path / "verdicts" / UNIT).iterdir())) == 2 * VERDICTS_KEPT
