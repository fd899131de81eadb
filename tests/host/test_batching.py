"""Requests of several applications in one run of the model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock_agent.host import messages
from interlock_agent.host.worker.batching import Batcher, can
from tests.host import clients
from tests.host.rig import running

DEADLINE_S = 30.0


class Doubling:
    """y = 2 x. A run waits until it may; an item of 666 fails its run."""

    def __init__(self) -> None:
        self.inputs = [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}]
        self.outputs = [{"name": "y", "dtype": "FP32", "shape": [-1, 4]}]
        self.runs: list[int] = []
        self.inside = threading.Semaphore(0)
        self.go = threading.Event()
        self.flat = False

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        assert names == ["y"]
        self.runs.append(len(feeds["x"]))
        self.inside.release()
        assert self.go.wait(DEADLINE_S)
        if (feeds["x"] == 666).any():
            raise ValueError("666")
        return [feeds["x"].sum(keepdims=True)[0] if self.flat else 2 * feeds["x"]]


def item(value: float, rows: int = 1, width: int = 4) -> dict[str, Any]:
    return {"x": np.full((rows, width), value, np.float32)}


def queued(batcher: Batcher, count: int) -> None:
    """Wait until so many requests are in batches that are open."""
    waiting = threading.Event()
    while sum(len(batch.rows) for batch in list(batcher._open.values())) != count:
        assert not waiting.wait(0.002)


def asked(batcher: Batcher, model: Doubling, *feeds: dict[str, Any]) -> list[Any]:
    """Ask while a run goes on, then let all go; an answer, or an exception, each."""
    with ThreadPoolExecutor(len(feeds) + 1) as pool:
        first = pool.submit(batcher.run, ["y"], item(1))
        assert model.inside.acquire(timeout=DEADLINE_S)
        later = []
        for number, feed in enumerate(feeds):
            later.append(pool.submit(batcher.run, ["y"], feed))
            queued(batcher, number + 1)
        model.go.set()
        assert first.result(DEADLINE_S)[0].tolist() == [[2] * 4]
        return [one.exception(DEADLINE_S) or one.result()[0].tolist() for one in later]


def test_what_comes_while_a_run_goes_on_is_run_together() -> None:
    model = Doubling()
    found = asked(Batcher(model, 8, 0.0), model, item(2), item(3, rows=2), item(4))
    assert found == [[[4] * 4], [[6] * 4] * 2, [[8] * 4]]
    assert model.runs == [1, 4]


def test_shapes_that_differ_are_run_apart() -> None:
    model = Doubling()
    found = asked(Batcher(model, 8, 0.0), model, item(2), item(3, width=2))
    assert found == [[[4] * 4], [[6] * 2]]
    assert model.runs == [1, 1, 1]


def test_nobody_suffers_for_another() -> None:
    model = Doubling()
    good, bad, fine = asked(Batcher(model, 8, 0.0), model, item(2), item(666), item(4))
    assert (good, fine) == ([[4] * 4], [[8] * 4])
    assert isinstance(bad, ValueError)
    assert model.runs == [1, 3, 1, 1, 1]


def test_outputs_that_are_not_one_row_an_item_are_run_apart() -> None:
    model = Doubling()
    batcher = Batcher(model, 8, 0.0)
    model.flat = True
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.run, ["y"], item(0))
        assert model.inside.acquire(timeout=DEADLINE_S)
        two = [pool.submit(batcher.run, ["y"], item(value)) for value in (1, 2)]
        queued(batcher, 2)
        model.go.set()
        first.result(DEADLINE_S)
        assert [one.result(DEADLINE_S)[0].tolist() for one in two] == [[4.0], [8.0]]
    assert model.runs == [1, 2, 1, 1]


def test_a_full_batch_waits_for_nobody() -> None:
    """A delay that a test would not live to see."""
    model = Doubling()
    model.go.set()
    batcher = Batcher(model, 2, 3600.0)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(batcher.run, ["y"], item(value)) for value in (1, 2)]
        assert sorted(one.result(DEADLINE_S)[0][0, 0] for one in both) == [2, 4]
    assert model.runs == [2]


def test_the_first_waits_no_longer_than_its_delay() -> None:
    model = Doubling()
    model.go.set()
    assert Batcher(model, 8, 0.01).run(["y"], item(1))[0].tolist() == [[2] * 4]


def test_a_request_of_its_own_size_is_run_at_once() -> None:
    model = Doubling()
    model.go.set()
    assert len(Batcher(model, 4, 3600.0).run(["y"], item(1, rows=4))[0]) == 4


@pytest.mark.parametrize(("shape", "it_can"), [([-1, 4], True), ([1, 4], False), ([], False)])
def test_the_first_axis_must_be_dynamic_everywhere(shape: list[int], it_can: bool) -> None:
    model = Doubling()
    model.outputs = [{"name": "y", "dtype": "FP32", "shape": shape}]
    assert can(model) is it_can


@pytest.mark.e2e
async def test_under_traffic_every_application_gets_its_own_answer(short_path: Path) -> None:
    options: dict[str, Any] = {"batching": {"max_size": 8, "delay_s": 0.0}}
    async with running(short_path) as rig:
        await rig.configure(**options)
        await rig.confirmed(1, slow=5, options=options)
        async with clients.Load(rig.address, busy=8, idle=0, fresh=2) as load:
            await load.served(100)
            await rig.promote(2, slow=5, options=options)
            await load.served(100)
            worker = (await rig.agent.status())["live_worker"]
            crowd = await rig.agent.order(messages.Probe(worker, 2, 0, 32, concurrency=8))
        assert load.failures == []
        assert len(crowd["wall_ns"]) == 32
