"""The durable-replace helper: old or new, never a mixture, also when the disk fails in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock_shared import durable


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for content in (b"one", b"two" * 100_000, b""):
        durable.replace_file(path, content, mode=0o640)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_link_is_replaced_as_written(tmp_path: Path) -> None:
    for target in ("a", "b"):
        durable.replace_link(tmp_path / "live", target)
        assert (tmp_path / "live").readlink() == Path(target)
    durable.remove(tmp_path / "live")
    durable.remove(tmp_path / "live")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_renamed_and_its_tree_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "incoming" / "x" / "deep").mkdir(parents=True)
    (tmp_path / "incoming" / "x" / "deep" / "file").write_bytes(b"1")
    (tmp_path / "slots").mkdir()
    durable.sync_tree(tmp_path / "incoming")
    durable.rename_folder(tmp_path / "incoming" / "x", tmp_path / "slots" / "a")
    assert (tmp_path / "slots" / "a" / "deep" / "file").read_bytes() == b"1"
    synced: list[int] = []
    monkeypatch.setattr(durable, "_syncfs", lambda descriptor: False)
    monkeypatch.setattr(os, "fsync", synced.append)
    durable.sync_tree(tmp_path)
    assert len(synced) == 6  # each file and each folder, where the kernel has no syncfs


@pytest.mark.parametrize("broken", ["fsync", "rename", "write"])
def test_a_failing_disk_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "state.json"
    durable.replace_file(path, b"old")

    def fail(*_: object) -> Callable[..., None]:
        raise OSError(5, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="I/O error"):
            durable.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_the_file_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        seen.append("fsync of a folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync of a file")
        fsync(descriptor)

    def note_rename(old: Path, new: Path) -> None:
        seen.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    durable.replace_file(tmp_path / "x", b"1")
    assert seen == ["fsync of a file", "rename", "fsync of a folder"]


def test_what_a_cut_left_behind_is_swept(tmp_path: Path) -> None:
    (tmp_path / f"{durable.TEMPORARY_PREFIX}state.json-1").write_bytes(b"half")
    (tmp_path / "state.json").write_bytes(b"whole")
    assert durable.sweep(tmp_path) == [".tmp-state.json-1"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
