"""What tests ask for: a published model's file. Where the person said that there is no network, the test is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.fetch import OfflineError, fetch


def model(name: str) -> Path:
    """A model of tests/models.toml."""
    try:
        return fetch(name)
    except OfflineError as absent:
        pytest.skip(str(absent))


def silero(version: str) -> Path:
    """`silero_vad.onnx` of a release; 5.1.2, 6.0.0 and 6.2.0 differ in their weights alone."""
    return model(f"silero-{version}")
