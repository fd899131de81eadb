"""The closures cover what we require; checking them asks no index."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "packaging" / "closure"))

import lock

sys.path.pop(0)


@pytest.mark.parametrize("closure", lock.CLOSURES, ids=lambda closure: closure.file)
def test_a_closure_covers_the_requirements(closure: lock.Closure) -> None:
    assert lock.complaints(closure) == []


@pytest.mark.parametrize("closure", lock.CLOSURES, ids=lambda closure: closure.file)
def test_a_closure_names_no_place(closure: lock.Closure) -> None:
    text = (lock.HERE / closure.file).read_text()
    assert "://" not in text
    assert "--" not in text
    assert "/" not in text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "tuf is required and not pinned"),
        ("tuf==0.1\n", "tuf 0.1 does not satisfy >=6"),
        ("aiohttp==3.12.0\n", "aiohttp must not land on a device"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str) -> None:
    monkeypatch.setattr(lock, "HERE", tmp_path)
    (tmp_path / lock.CLOSURES[0].file).write_text(text)
    assert [line for line in lock.complaints(lock.CLOSURES[0]) if line.endswith(complaint)]


def test_a_marker_is_judged_for_the_machine_of_the_closure() -> None:
    names = [{one.name for one in lock.requirements(closure)} for closure in lock.CLOSURES]
    assert ["tomli" in one for one in names] == [True, False, False]
    assert ["onnxruntime" in one for one in names] == [False, True, False]
