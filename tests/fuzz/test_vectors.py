"""What was once found stays mended; every target is alive; and a few guesses at each, the same ones every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlock_shared.errors import InterlockError
from tests.fuzz import guessing
from tests.fuzz.targets import Target, believed, targets

VECTORS = sorted(path for path in (Path(__file__).parents[1] / "vectors").rglob("*") if path.is_file() and path.parent.name in targets())  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("vector", VECTORS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_stays_mended(vector: Path) -> None:
    believed(targets()[vector.parent.name], vector.read_bytes())


@pytest.mark.parametrize("name", sorted(targets()))
def test_a_few_guesses(name: str) -> None:
    target = targets()[name]
    assert all(believed(target, seed) for seed in target.seeds), "what is valid is accepted: the parser is reached"
    tried, _, finding = guessing.guess(target, 8, seed=7)
    assert finding is None, finding
    assert tried >= 8


def test_a_finding_is_made_small() -> None:
    def read(data: bytes) -> None:
        if b"}" not in data and len(data) > 3:
            raise KeyError("a bug")
        raise InterlockError("refused")

    _, _, finding = guessing.guess(Target((b'{"a":1}',), read), 200, seed=1)
    assert finding is not None
    assert isinstance(finding[1], KeyError)
    assert len(finding[0]) <= 8
