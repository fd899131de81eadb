"""Folders that can be built, and no settings of whoever runs the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.publisher import models


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("INTERLOCK_SERVER", "INTERLOCK_TOKEN", "INTERLOCK_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with golden data and a bundle.toml."""
    return models.folder(tmp_path / "detector")
