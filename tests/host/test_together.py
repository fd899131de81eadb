"""Several inferences at a time in a worker, and how it steps back meanwhile."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from interlock_agent.host import messages, niceness
from interlock_agent.host.worker import together
from interlock_agent.host.worker.backends.onnxruntime import Session
from interlock_agent.host.worker.folder import Folder
from interlock_agent.host.worker.golden import Golden
from tests.host import models
from tests.host.rig import UNIT, OrderError, running

X = np.arange(20, dtype=np.float32).reshape(5, 4)


def test_each_is_run_once_and_no_more_at_a_time_than_asked_for() -> None:
    seen: list[int] = []
    inside, most, lock = 0, 0, threading.Lock()

    def infer(number: int) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.005)
        with lock:
            inside -= 1
            seen.append(number)

    found = together.measure(infer, 24, 4)
    assert sorted(seen) == list(range(24))
    assert most == 4
    assert min(found["wall_ns"]) >= 5_000_000
    assert 6 * 5_000_000 <= found["elapsed_ns"] < sum(found["wall_ns"]) / 2, "they overlap"
    assert len(found["work_ns"]) == 24


def test_more_threads_than_runs_end_too() -> None:
    assert len(together.measure(lambda number: None, 2, 8)["wall_ns"]) == 2


def test_a_failure_ends_the_block() -> None:
    begun: list[int] = []

    def infer(number: int) -> None:
        begun.append(number)
        time.sleep(0.001)
        if number == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        together.measure(infer, 1000, 2)
    assert len(begun) < 20


def test_a_golden_set_is_gone_round_by_several(tmp_path: Path) -> None:
    models.make_model(tmp_path / "model.onnx", 2.0)
    np.savez(tmp_path / "golden.npz", x=X)
    models.seal(tmp_path, "tiny", "1.0.0", 1, golden={"file": "golden.npz", "inputs": {"x": "x"}})
    golden = Golden(Folder(str(tmp_path)), Session(str(tmp_path / "model.onnx"), {}))
    for concurrency in (1, 3):
        found = golden.probe(4, 12, concurrency)
        assert len(found["wall_ns"]) == len(found["work_ns"]) == 12
        assert found["elapsed_ns"] >= max(found["wall_ns"]) > 0


def nicenesses(pid: int) -> set[int]:
    """Of every thread of a process."""
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


def group_niceness(pid: int) -> int:
    """Of the worker's session among the others, 0 where the kernel does not tell sessions apart."""
    file = Path(f"/proc/{pid}/autogroup")
    return int(file.read_text().split()[-1]) if file.exists() else 0


async def test_a_worker_that_is_made_nicer_is_no_nicer_when_it_serves(short_path: Path) -> None:
    async with running(short_path) as rig:
        own = os.getpriority(os.PRIO_PROCESS, rig.process.pid)
        await rig.confirmed(1)
        slot = "b" if (await rig.agent.status())["confirmed_slot"] == "a" else "a"
        loaded = await rig.load(2, options={"threads": 2, "nice": 10})
        worker, pid = str(loaded["worker"]), int(loaded["pid"])
        assert nicenesses(pid) == ({own + 10} if niceness.can_be_undone() else {own}), "from the start on"
        found = await rig.agent.order(messages.Probe(worker, 2, 0, 4, nice=10))
        if not niceness.can_be_undone():
            assert (found["nice"], nicenesses(pid)) == (0, {own})
            pytest.skip("a niceness cannot be undone here, and so was not raised")
        assert (found["nice"], nicenesses(pid)) == (10, {own + 10})
        assert group_niceness(pid) == (10 if Path("/proc/self/autogroup").exists() else 0)
        found = await rig.agent.order(messages.Probe(worker, 2, 0, 4, concurrency=3))
        assert (found["nice"], nicenesses(pid), group_niceness(pid)) == (0, {own}, 0)
        await rig.agent.order(messages.Probe(worker, 2, 0, 4, nice=10))
        await asyncio.to_thread((rig.state / "incoming" / "2-1.2.0").rename, rig.slots / slot)
        await rig.agent.order(messages.Promote(UNIT, 2, worker, slot))
        assert (nicenesses(pid), group_niceness(pid)) == ({own}, 0)


@pytest.mark.parametrize(("busy", "refused"), [(2, 0), (niceness.GROUP_TRIES, 1)])
def test_a_kernel_that_is_asked_too_often_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, busy: int, refused: int
) -> None:
    """As sched(7) has it for a process without CAP_SYS_ADMIN: EAGAIN, once every tenth of a second."""
    turns, said = iter(range(busy)), list[str]()
    waits: list[float] = []

    class Group(io.StringIO):
        def write(self, text: str) -> int:
            if next(turns, None) is not None:
                raise BlockingIOError("EAGAIN")
            said.append(text)
            return len(text)

    monkeypatch.setattr("builtins.open", lambda *args, **more: Group())
    monkeypatch.setattr("time.sleep", waits.append)
    if refused:
        with pytest.raises(BlockingIOError):
            niceness._group(1, 10)
    else:
        niceness._group(1, 10)
    assert (said, len(waits)) == ([] if refused else ["10"], busy)


def test_without_the_right_to_undo_it_nobody_is_made_nicer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    real = os.setpriority

    def refused(which: int, who: int, priority: int) -> None:
        if priority <= own:
            raise PermissionError("not lower again")
        real(which, who, priority)

    monkeypatch.setattr(os, "setpriority", refused)
    niceness.can_be_undone.cache_clear()
    try:
        assert niceness.be_nicer(os.getpid(), 5) == 0
    finally:
        niceness.can_be_undone.cache_clear()
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


async def test_several_at_a_time_through_the_host(short_path: Path) -> None:
    async with running(short_path) as rig:
        loaded = await rig.load(1)
        assert loaded["start_s"] > loaded["load_s"] > 0, "the process has to start before it loads"
        worker = str(loaded["worker"])
        found = await rig.agent.order(messages.Probe(worker, 1, 0, 10, concurrency=4))
        assert len(found["wall_ns"]) == 10
        assert found["elapsed_ns"] > 0
        with pytest.raises(OrderError) as refused:
            await rig.agent.order(messages.Probe("nobody", 1, 0, 1, concurrency=4))
        assert refused.value.code == "unknown_worker"


def test_bound_inputs_and_outputs_give_the_same(tmp_path: Path) -> None:
    """IO binding, as a session on another device uses it; the CPU can be bound too."""
    models.make_model(tmp_path / "model.onnx", 3.0)
    session = Session(str(tmp_path / "model.onnx"), {})
    assert session._how == session._session.run
    found = session._run_bound(["y"], {"x": X})
    assert [array.tolist() for array in found] == [array.tolist() for array in session.run(["y"], {"x": X})]
