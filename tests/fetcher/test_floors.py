"""Floors: what a refresh may never end below, with an intact store, a torn one, and after power cuts."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from interlock_agent.fetcher import stores
from interlock_agent.fetcher.port import ROTATIONS_MAX
from interlock_agent.fetcher.stored import HISTORY
from interlock_agent.fetcher.trust import Trust
from interlock_shared import durable, floors
from interlock_shared.errors import InterlockError, Later, Untrusted
from interlock_shared.floors import RoleKeys
from tests.fetcher.simulator import NOW, Simulator
from tests.fetcher.walks import AT, STORE, made, never_below, refusal, say_alone, torn, walk


@pytest.mark.parametrize("how", ["whole", "empty", "half", "gone", "old"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "release-a"])
def test_no_role_is_rolled_back_whatever_the_files_say(tmp_path: Path, role: str, how: str) -> None:
    one, store, old = made(), tmp_path / "store", tmp_path / "old"
    walk(one, store, {})
    shutil.copytree(store, old)
    for _ in range(3):
        one.publish()
    known = walk(one, store, {})
    torn(store, how, old=old)
    # Whoever has the online keys of the server, and old files, puts them together anew: only this role is older.
    one.signed[role].version -= 2
    say_alone(one, role)
    refusals = ("below_floor", "bad_metadata")
    assert refusal(lambda: walk(one, store, known)) in refusals
    assert refusal(lambda: walk(one, store, known)) in refusals, "and it stays refused"
    if how == "whole":
        assert Trust(one.root, store, one, AT).version(role) == known[role], "nothing older is in the store"
    one.signed[role].version += 5
    one.publish()
    after = walk(one, store, known)
    assert never_below(after, known), "the next refresh works"


def test_a_root_that_is_withheld_or_doubled_is_refused(tmp_path: Path) -> None:
    one = made()
    first = one.root
    one.rotate("timestamp")
    one.publish()
    known = walk(one, tmp_path / "a", {})
    assert known["root"] == 2
    held = one.files.pop("2.root.json")
    shutil.rmtree(tmp_path / "a")
    assert refusal(lambda: walk(one, tmp_path / "a", known)) in ("below_floor", "bad_metadata")
    one.signed["root"].unrecognized_fields["x"] = "another content of the same version"
    one.write("root")
    assert refusal(lambda: walk(one, tmp_path / "a", known, root=first)) == "other_root"
    one.files["2.root.json"] = held
    assert walk(one, tmp_path / "b", known, root=first) == known


def test_a_threshold_of_keys_must_go() -> None:
    def roles(keys: str, threshold: int) -> dict[str, RoleKeys]:
        return {"timestamp": RoleKeys(frozenset(keys), threshold), "root": RoleKeys(frozenset("r"), 1)}

    rows = [
        ("a", 1, "ab", 1, False),  # one more
        ("ab", 2, "ac", 2, False),  # one of two
        ("ab", 2, "cd", 2, True),
        ("ab", 1, "b", 1, True),
        ("a", 1, "a", 2, False),  # only the threshold
    ]
    for old, threshold, new, needed, gone in rows:
        assert bool(floors.replaced([roles(old, threshold), roles(new, needed)])) is gone, (old, new)
    there_and_back = [roles("a", 1), roles("b", 1), roles("a", 1)]
    assert floors.replaced(there_and_back) == {"timestamp"}


def test_of_two_refreshes_that_end_in_any_order_the_newer_holds() -> None:
    old, new = {"root": 1, "timestamp": 9, "targets": 3}, {"root": 1, "timestamp": 8, "targets": 4, "release-a": 1}
    both = {"root": 1, "timestamp": 9, "targets": 4, "release-a": 1}
    assert floors.merged(old, new) == floors.merged(new, old) == both
    recovered = {"root": 2, "timestamp": 1}
    assert floors.merged(old, recovered) == floors.merged(recovered, old) == recovered
    assert floors.merged({}, old) == old


def test_a_device_that_slept_through_many_rotations_catches_up(tmp_path: Path) -> None:
    one = made()
    for _ in range(ROTATIONS_MAX + 6):
        one.rotate("root", "timestamp")
    one.publish()
    with pytest.raises(Later) as more:
        walk(one, tmp_path, {})
    assert more.value.code == "more_roots"
    assert len(list((tmp_path / HISTORY).iterdir())) == ROTATIONS_MAX + 1, "what was reached is kept"
    one.asked.clear()
    assert walk(one, tmp_path, {})["root"] == ROTATIONS_MAX + 7
    assert len([name for name in one.asked if "root" in name]) == 7, "and not asked for again"


class Cut(BaseException):
    """The power is gone."""


class Power:
    """Counts what is done to a store on disk, and cuts at the n-th; `None`: never. What is done elsewhere is thrown
    away with the process."""

    def __init__(self, store: Path, at: int | None = None) -> None:
        self.store, self.at, self.count = str(store), at, 0

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "symlink"):
            patch.setattr(os, name, self._cut(getattr(os, name)))

    def _cut(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            where = arguments[0]
            self.count += isinstance(where, int) or os.fspath(where).startswith(self.store)
            if self.count == self.at:
                raise Cut
            return real(*arguments, **more)

        return call


def story(stolen: str) -> tuple[Simulator, Simulator]:
    """The repository before and after a refresh that changes every file, root and keys among them. A role that was
    stolen had been driven up before, and begins anew."""
    one = made()
    one.signed[stolen].version = 2**31
    one.publish(stolen, bump=False)
    before = Simulator.__new__(Simulator)
    before.__dict__.update({**one.__dict__, "files": dict(one.files), "asked": []})
    one.signed[stolen].version = 1
    if stolen == "release-a":
        one.redelegate(stolen)
    one.rotate(*({stolen} & {"targets"}), "timestamp", "root")
    one.publish()
    return before, one


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder where a sync costs nothing."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("stolen", ["targets", "release-a"])
def test_a_power_cut_at_any_instant_leaves_a_store_from_which_the_next_refresh_works(memory: Path, stolen: str) -> None:
    before, after = story(stolen)
    walk(before, memory / "first", {})
    known = walk(before, memory / "first", {})

    def cut(at: int | None) -> int:
        store = memory / f"cut-{at}"
        shutil.copytree(memory / "first", store)
        power, chain = Power(store, at), None
        gc.collect()  # scratch folders of former walks go now, not in the story
        gc.disable()
        try:
            with pytest.MonkeyPatch.context() as patch:
                power.watch(patch)
                chain = Trust(after.root, store, after, AT)
                chain.target("a/model", chain.refresh(known))
        except Cut:
            assert at is not None
        finally:
            gc.enable()
        del chain
        found = walk(after, store, known)
        assert found["root"] == 2, at
        assert never_below(found, {role: known[role] for role in known if known[role] != 2**31}), at
        assert refusal(lambda: walk(before, store, found)), f"the older repository after a cut at {at}"
        shutil.rmtree(store)
        return power.count

    operations = cut(None)
    assert operations > 30
    for at in range(1, operations + 1):
        cut(at)


@pytest.mark.parametrize("how", ["empty", "half", "gone"])
def test_any_single_torn_file_is_mended_by_the_next_refresh(tmp_path: Path, how: str) -> None:
    before, after = story("targets")
    known = walk(before, tmp_path / "old", {})
    found = walk(after, tmp_path / "new", known)
    names = [*STORE, *(f"{HISTORY}/{path.name}" for path in (tmp_path / "new" / HISTORY).iterdir())]
    for name in names:
        store = tmp_path / "store"
        shutil.copytree(tmp_path / "new", store)
        torn(store, how, (name,))
        assert walk(after, store, found) == found, name
        assert (store / name).read_bytes() == (tmp_path / "new" / name).read_bytes(), name
        shutil.rmtree(store)


def test_a_refresh_writes_nothing_when_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made()
    known = walk(one, tmp_path, {})
    monkeypatch.setattr(durable, "replace_file", lambda *_: pytest.fail("nothing is new"))
    assert walk(one, tmp_path, known) == known


def test_endless_metadata_and_deep_delegations_are_bounded(tmp_path: Path) -> None:
    one = made()
    one.files["timestamp.json"] += b" " * 17_000
    assert refusal(lambda: walk(one, tmp_path / "a", {})) == "too_large"
    deep = made()
    parent = "targets"
    for number in range(40):
        deep.delegate(f"d{number}", "deep/*", parent=parent)
        parent = f"d{number}"
    deep.add("deep/x", b"x", parent)
    deep.publish()
    chain = Trust(deep.root, tmp_path / "b", deep, AT)
    known = chain.refresh({})
    with pytest.raises(InterlockError) as error:
        chain.target("deep/x", known)
    assert error.value.code == "not_a_target"
    assert "d35.json" not in " ".join(deep.asked)


def test_a_nested_bomb_is_a_refusal(tmp_path: Path) -> None:
    one = made()
    one.files["timestamp.json"] = b"[" * 8000 + b"]" * 8000
    assert refusal(lambda: walk(one, tmp_path, {})) == "bad_metadata"


def test_the_director_goes_with_its_epoch(tmp_path: Path) -> None:
    one = made()
    one.direct(2, CryptoSigner.generate_ed25519())
    one.publish()
    chain = Trust(one.root, tmp_path, one, AT)
    chain.refresh({})
    assert chain.director(1)["epoch"] == 2
    with pytest.raises(Untrusted):
        chain.director(3)


def test_the_time_floor_is_bounded_by_what_is_signed_offline_too(tmp_path: Path) -> None:
    """A thief with the server's keys dates the timestamp as he likes; what people sign later must not look expired."""
    one = made()
    one.signed["timestamp"].expires = NOW + timedelta(days=36_500)
    one.signed["targets"].expires = NOW + timedelta(days=90)
    one.publish()
    chain = Trust(one.root, tmp_path / "store", one, AT)
    chain.refresh({})
    assert chain.until() == (NOW + timedelta(days=90)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_child_that_ends_inside_a_walk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    chain = Trust(one.root, tmp_path / "store", one, AT)
    chain.refresh({})
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    stores.leave_nothing()  # what the child does before os._exit, which runs no finalizer
    assert list((tmp_path / "tmp").iterdir()) == []
