"""Answers that are numbers and nonsense: what the worker finds in a sample of them, and what it costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock_agent.host import messages
from interlock_agent.host.worker import sanity
from tests.host import clients
from tests.host.rig import running


class Scripted:
    """A backend that answers what it is told to."""

    def __init__(self, dtype: str = "FP32") -> None:
        self.inputs: list[dict[str, Any]] = [{"name": "x", "dtype": "FP32", "shape": [-1]}]
        self.outputs: list[dict[str, Any]] = [{"name": "y", "dtype": dtype, "shape": [-1]}]
        self.answers: list[Any] = []

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        del feeds
        return [self.answers.pop(0)] if names == ["y"] else []


def looked(
    monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[Any, Any]], serve: dict[str, Any], dtype: str = "FP32"
) -> Any:
    """What is counted of (input, answer) pairs, each of which is looked at."""
    clock = iter(range(10_000))
    monkeypatch.setattr(sanity, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(sanity, "SHARE", 10.0)
    backend = Scripted(dtype)
    watched = sanity.watched(backend, serve)
    for given, answer in pairs:
        backend.answers.append(answer)
        watched.run(["y"], {"x": given})
    assert isinstance(watched, sanity.Watched)
    return watched.counts()


def row(*numbers: float, kind: Any = np.float32) -> Any:
    return np.array(numbers, kind)


CONSTANT = {"sanity": {"constant": True, "ranges": {}}}
RANGE = {"sanity": {"constant": False, "ranges": {"y": [0.0, 1.0]}}}
A, B, C = row(1), row(2), row(3)


@pytest.mark.parametrize(
    ("pairs", "same"),
    [
        ([(A, A), (B, B), (C, C)], 0),
        ([(A, A), (B, A), (C, A)], 2),
        ([(A, A), (A, A), (A, A)], 0),  # the input is the same, too
        ([(A, A), (B, B), (C, A)], 0),
        ([(A, row(0, 0)), (B, row(0))], 0),  # another shape
        ([(A, np.array(["a"], object)), (B, np.array(["a"], object))], 1),
    ],
)
def test_a_constant_answer_is_the_one_before_for_another_input(
    monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[Any, Any]], same: int
) -> None:
    counts = looked(monkeypatch, pairs, CONSTANT)
    assert (counts["looked"], counts["constant"]) == (len(pairs), same)


@pytest.mark.parametrize(
    ("answer", "dtype", "outside"),
    [
        (row(0.0, 0.5, 1.0), "FP32", 0),
        (row(0.0, 1.01), "FP32", 1),
        (row(-0.01, 1.0), "FP32", 1),
        (row(), "FP32", 0),
        (row(np.nan), "FP32", 0),  # that is another check's
        (row(2, kind=np.int64), "INT64", 1),
        (row(0x3F80, kind=np.uint16), "BF16", 0),  # 1.0
        (row(0x4000, kind=np.uint16), "BF16", 1),  # 2.0
        (np.array([b"2"], object), "BYTES", 0),
    ],
)
def test_a_value_outside_its_range_is_counted(
    monkeypatch: pytest.MonkeyPatch, answer: Any, dtype: str, outside: int
) -> None:
    assert looked(monkeypatch, [(A, answer)], RANGE, dtype)["outside"] == {"y": outside}


def test_ranges_hold_under_the_name_that_applications_know(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = {"sanity": {"constant": False, "ranges": {"own": [0.0, None]}}, "renamed": {"own": "y"}}
    assert looked(monkeypatch, [(A, row(-1.0))], serve)["outside"] == {"y": 1}


def test_where_no_check_asks_nothing_is_looked_at() -> None:
    backend = Scripted()
    assert sanity.watched(backend, {"sanity": {}}) is backend
    assert sanity.watched(backend, {}) is backend  # a seal of an older release


def test_what_looking_costs_is_bounded_by_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(sanity, "monotonic", lambda: now[0])
    backend = Scripted()
    watched = sanity.watched(backend, CONSTANT)

    def slow(*_: Any) -> int:
        now[0] += 0.02  # each look digests twice
        return 0

    monkeypatch.setattr(sanity, "_digest", slow)
    for _ in range(20_000):
        backend.answers.append(A)
        watched.run(["y"], {"x": A})
        now[0] += 0.01
    assert isinstance(watched, sanity.Watched)
    spent = watched.counts()["looked"] * 0.04
    assert spent <= 0.003 * now[0]
    assert watched.counts()["looked"] >= 6


async def test_a_worker_tells_the_host_what_it_has_found(short_path: Path) -> None:
    sane = {"constant": True, "ranges": {"y": [0.0, 10.0]}}
    async with running(short_path) as rig:
        worker = await rig.confirmed(1, sanity=sane)
        empty: dict[str, Any] = {"looked": 0, "constant": 0, "outside": {"y": 0}}
        assert await rig.agent.order(messages.Look(worker, 1)) == empty
        deadline = time.monotonic() + 30
        found: dict[str, Any] = empty
        while found["looked"] < 2 and time.monotonic() < deadline:
            await clients.infer(rig.address, [1.0, 2.0, 3.0, 400.0])
            found = await rig.agent.order(messages.Look(worker, 1))
        assert found == {"looked": 2, "constant": 0, "outside": {"y": 2}}
