"""The page of attacks says what is tested, all of it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from tests.attacks import test_lying_broker, test_stolen_server, test_stolen_store

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "attacks.md"


def test_every_row_of_the_tables_is_on_the_page() -> None:
    page = PAGE.read_text().splitlines()
    rows = [
        f"| {one.name} | {one.outcome} |"
        for module in (test_stolen_server, test_stolen_store, test_lying_broker)
        for one in module.ATTACKS
    ]
    assert len(rows) == len(set(rows))
    assert [row for row in page if row.count("|") == 3 and not row.startswith(("| attack", "| ---"))] == rows


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(test_\w+))?`", PAGE.read_text())
    assert len(named) > 20
    for path, name in named:
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"def {name}\(", text), f"{path}::{name}"
