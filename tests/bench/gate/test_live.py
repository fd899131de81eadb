"""What is measured live, in small: the rows go on after a cut, and one real verdict is what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench.gate import bed, felt, live, rows, verdicts
from tests.bench.gate.cells import CELLS


def row(kind: str, cell: str, outcome: str, seconds: float = 1.0) -> rows.Row:
    return {"kind": kind, "cell": cell, "outcome": outcome, "pairs": 12, "measuring_s": seconds, "fast_s": 2.0,
            "total_s": 4.0, "load": 0.5}  # fmt: skip


def test_a_row_that_was_cut_off_is_dropped_and_the_next_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert rows.read(path) == []
    rows.add(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2')
    assert rows.read(path) == [{"n": 1}]
    rows.add(path, {"n": 3})
    assert rows.read(path) == [{"n": 1}, {"n": 3}]


def test_a_wrong_verdict_misses_the_target_and_stands_in_its_cell(tmp_path: Path) -> None:
    for outcome in ("accept", "accept", "reject"):
        rows.add(tmp_path / live.FILE, row("steady", "same", outcome))
    rows.add(tmp_path / live.FILE, row("steady", "slower 2", "reject", seconds=4.0))
    found = {figure.name: figure for figure in live.figures(tmp_path, {})}
    whole = next(figure for name, figure in found.items() if name.startswith("all 4 verdicts"))
    assert (whole.value, whole.met) == (1, False)
    same = next(figure for name, figure in found.items() if name.startswith("steady, same: 2 accepted, 1 rejected"))
    assert (same.value, same.met) == (1, False)
    assert found["steady, slower 2: self-test and pairs"].met is False, "later than it should be"


@pytest.mark.parametrize(("slow", "met"), [(1.2, True), (1.3, False)])
def test_what_is_felt_is_the_median_of_the_rounds(tmp_path: Path, slow: float, met: bool) -> None:
    gate = {"outcome": "accept", "total_s": 5.0, "yielded_s": 1.0, "slowdown_worst": 1.3, "nice_blocks": 4}
    for p99 in (0.5, slow, 9.0):
        some = [1.0] * 98
        felt_row: dict[str, Any] = {"without": [*some, 10.0, 10.0], "with": [*some, 10.0 * p99, 10.0 * p99]}
        rows.add(tmp_path / felt.FILE, {"load": 0.5, "gates": [gate], **felt_row})
    found = {figure.name: figure for figure in felt.figures(tmp_path)}
    assert (found["live p99 with ÷ without"].value, found["live p99 with ÷ without"].met) == (slow, met)
    assert found["live p50 with ÷ without"].value == 1.0


async def test_a_verdict_of_the_whole_gate(short_path: Path) -> None:
    cell = next(cell for cell in CELLS if cell.name == "slower 2")
    async with bed.bed(short_path / "bed") as beds:
        found, run = await verdicts.one(beds, cell)
        assert found["outcome"] in ("reject", "inconclusive"), found["message"]
        if found["outcome"] == "reject":
            assert 0 < found["measuring_s"] < found["fast_s"] < found["total_s"]
            assert found["ratios"]["latency_ratio_work"] > 1.5
        assert run.guest.before == {}, "nothing served"
