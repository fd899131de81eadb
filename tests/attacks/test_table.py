"""The page of attacks says what is tested, all of it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.attacks import test_lying_broker, test_stolen_device, test_stolen_server, test_stolen_store
from tests.attacks.scene import Attack

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "attacks.md"


def test_every_row_of_the_tables_is_on_the_page() -> None:
    page = PAGE.read_text().splitlines()
    tables: tuple[tuple[Attack[Any], ...], ...] = (
        test_stolen_server.ATTACKS,
        test_stolen_store.ATTACKS,
        test_lying_broker.ATTACKS,
        test_stolen_device.ATTACKS,
    )
    rows = [f"| {one.name} | {one.outcome} |" for table in tables for one in table]
    assert len(rows) == len(set(rows))
    assert [row for row in page if row.count("|") == 3 and not row.startswith(("| attack", "| ---"))] == rows


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(test_\w+))?`", PAGE.read_text())
    assert len(named) > 20
    for path, name in named:
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"def {name}\(", text), f"{path}::{name}"
