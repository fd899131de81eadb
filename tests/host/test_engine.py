"""The engine over fakes: what it does when the disk refuses, and that it never does an effect before its record."""

from __future__ import annotations

import asyncio

import pytest

from interlock_agent.host import effects
from interlock_agent.host.engine import Engine
from interlock_agent.host.messages import Load, Probe
from interlock_agent.host.ports import WorkerError
from tests.host.world import TWO, World, make, trial, turn


@pytest.fixture
def world() -> World:
    return World()


async def test_the_order_of_a_switch_and_its_confirmation(world: World) -> None:
    engine, _ = await trial(world)
    assert world.trace == ["record", "live b", "serve filetype/1.1.0"]
    world.trace.clear()
    assert await engine.confirm("filetype", 2) == {"confirmed": True}
    assert world.trace == ["confirmed b", "record", "serve filetype/1.1.0"]
    await engine.close()


async def test_a_trial_that_cannot_be_recorded_does_not_begin(world: World) -> None:
    engine = await make(world)
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}))
    world.slots["b"] = TWO
    world.fails = {"record"}
    with pytest.raises(WorkerError, match="io"):
        await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    assert (world.pointing["live"], world.serving[0]) == ("a", "filetype/1.0.0")
    world.fails = set()
    await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    assert world.serving == ("filetype/1.1.0", "filetype/1.0.0")
    await engine.close()


async def test_a_switch_whose_link_fails_is_taken_back(world: World) -> None:
    engine = await make(world)
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}))
    world.slots["b"] = TWO
    world.fails = {"live"}
    with pytest.raises(WorkerError, match="io"):
        await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    assert world.serving[0] == "filetype/1.0.0"
    assert world.documents["filetype"]["trial"] is None
    assert world.documents["filetype"]["outcome"]["outcome"] == "interrupted"
    await engine.close()


async def test_a_commit_that_fails_changes_nothing_and_may_be_tried_again(world: World) -> None:
    engine, _ = await trial(world)
    world.fails = {"confirmed"}
    with pytest.raises(WorkerError, match="io"):
        await engine.confirm("filetype", 2)
    (status,) = engine.status()
    assert (status["confirmed"], status["trial"]) == ("filetype/1.0.0", 2)
    world.fails = set()
    assert await engine.confirm("filetype", 2) == {"confirmed": True}
    await engine.close()


async def test_after_a_failed_commit_the_link_is_put_right_before_the_trial_is_forgotten(world: World) -> None:
    engine, _ = await trial(world)
    world.fails = {"confirmed"}
    with pytest.raises(WorkerError):
        await engine.confirm("filetype", 2)
    await engine.revert("filetype", 2, "x")
    assert world.serving[0] == "filetype/1.0.0"
    assert world.documents["filetype"]["trial"] is not None  # not forgotten while the link is in doubt
    world.fails, world.trace = set(), []
    await turn()
    world.time += 2.0  # the timer tries again
    await turn()
    assert world.trace[:2] == ["confirmed a", "record"]
    assert world.documents["filetype"]["trial"] is None
    await engine.close()


async def test_a_death_is_dealt_with_also_when_the_disk_refuses(world: World) -> None:
    engine, worker = await trial(world)
    world.fails = {"record", "live"}
    await engine.worker_died(worker, "SIGKILL")
    assert world.serving[0] == "filetype/1.0.0"
    assert (await engine.confirm("filetype", 2))["outcome"] == "reverted"
    world.fails = set()
    await turn()
    world.time += 2.0
    await turn()
    assert world.pointing["live"] == "a"
    assert world.documents["filetype"]["outcome"]["reason"] == "worker_died"
    await engine.close()


async def test_late_figures_of_the_former_worker_are_not_the_candidates(world: World) -> None:
    engine, worker = await trial(world)
    (status,) = engine.status()
    former = next(one["worker"] for one in status["workers"] if one["role"] == "standby")
    engine.counted("filetype", worker, {"requests": 3})
    engine.counted("filetype", former, {"requests": 1000, "errors": 50})
    (status,) = engine.status()
    assert status["counters"] == {"requests": 3}
    await engine.close()


async def test_the_timer_ends_a_lapsed_trial(world: World) -> None:
    engine, _ = await trial(world)
    world.time += 29.0
    await turn()
    assert world.serving[0] == "filetype/1.1.0"
    await engine.renew("filetype", 2)
    world.time += 29.0
    await turn()
    assert world.serving[0] == "filetype/1.1.0"
    world.time += 1.0
    await turn()
    assert world.serving[0] == "filetype/1.0.0"
    assert [e["reason"] for e in world.events if e["event"] == "outcome"] == ["lease_lapsed"]
    await engine.close()


async def test_settings_that_the_disk_refused_are_written_later(world: World) -> None:
    engine = await make(world)
    world.fails = {"record"}
    with pytest.raises(OSError, match="no space"):
        await engine.configure("filetype", "127.0.0.1:0", {"access": {"users": ["camera"]}})
    world.fails = set()
    await turn()
    world.time += 2.0
    await turn()
    assert world.documents["filetype"]["options"] == {"access": {"users": ["camera"]}}, "or a restart would forget them"
    await engine.close()


async def test_a_process_that_does_not_end_keeps_nobody_from_serving(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects, "GONE_S", 0.01)
    engine = await make(world)
    world.may_go.clear()  # it hangs in a driver
    await engine.worker_died(engine.status()[0]["live_worker"], "no answer within 30 s")
    assert world.serving == ("", "")
    await asyncio.wait_for(engine.seats["filetype"].answered.wait(), 30)
    assert world.serving[0] == "filetype/1.0.0"
    await engine.close()


async def test_what_makes_room_before_it_was_loaded_is_not_loaded(world: World) -> None:
    engine = await make(world)
    world.may_go.clear()
    await engine.worker_died(engine.status()[0]["live_worker"], "SIGKILL")
    await turn()
    world.trace.clear()
    loading = asyncio.ensure_future(engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=60.0)))
    await turn()
    world.may_go.set()
    await loading
    await turn()
    assert [line for line in world.trace if line.startswith("open")] == ["open /two"], "it is alone"
    await engine.close()


async def test_a_worker_that_the_system_has_no_room_for_is_started_again_later(world: World) -> None:
    engine = await make(world)
    world.fails = {"fork"}
    await engine.worker_died(engine.status()[0]["live_worker"], "SIGKILL")
    with pytest.raises(OSError, match="no process"):
        await engine.load(Load("filetype", 2, "/two", "candidate", {}))
    await turn()
    assert [w["role"] for w in engine.status()[0]["workers"]] == [], "neither is waited for"
    world.fails = set()
    world.time += 60.0
    await turn()
    assert world.serving[0] == "filetype/1.0.0"
    await engine.close()


@pytest.mark.parametrize(("known", "listen", "opened"), [
    ("127.0.0.1:41234", "127.0.0.1:0", "127.0.0.1:41234"),
    ("0.0.0.0:41234", "127.0.0.1:0", "127.0.0.1:8500"),
    ("unix:/run/x.sock", "127.0.0.1:0", "127.0.0.1:8500"),
])  # fmt: skip
async def test_a_port_that_was_chosen_is_kept_on_its_own_address_alone(
    world: World, known: str, listen: str, opened: str
) -> None:
    engine = await make(world)
    await engine.close()
    world.documents["filetype"] |= {"listen": listen, "address": known}
    again = Engine(world, world, world, world, world, "x", world)
    await again.start()
    assert again.seats["filetype"].address == opened
    await again.close()


async def test_a_confirmed_release_that_does_not_load_is_tried_again_later(world: World) -> None:
    world.fails = {"/slots/a"}
    engine = Engine(world, world, world, world, world, "x", world)
    await engine.configure("filetype", "127.0.0.1:0", {})
    await turn()
    (status,) = engine.status()
    assert (status["ready"], status["crashes"]) == (False, 3)
    assert "does not open" in status["trouble"]
    world.fails = set()
    world.time += 1.0
    await turn()
    assert engine.status()[0]["live"] == "filetype/1.0.0"
    await engine.close()


async def test_a_unit_that_cannot_listen_does_not_keep_the_others_from_serving(world: World) -> None:
    engine = await make(world)
    await engine.close()
    again = Engine(world, world, world, world, world, "y", world)
    world.fails = {"open"}
    await again.start()
    assert again.status() == []
    world.fails = set()
    assert await again.configure("filetype", "127.0.0.1:0", {}) == "127.0.0.1:8500"
    await again.close()


async def test_the_order_of_a_gap_and_its_end(world: World) -> None:
    engine = await make(world)
    (former,) = engine.seats["filetype"].unit.workers
    world.trace.clear()
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    assert world.trace == ["record", "serve -", f"gone {former}", "open /two"]
    assert former in world.ended
    world.trace.clear()
    world.time += 10.0
    await turn()
    assert world.trace == ["serve -", f"gone {loaded.worker}", "open /slots/a", "serve filetype/1.0.0"]
    assert world.events[-1]["gap_s"] == 10.0
    with pytest.raises(WorkerError, match="gap_over"):
        await engine.probe(Probe(loaded.worker, 2, 0, 1))
    await engine.close()


async def test_a_gap_that_the_disk_does_not_let_begin_costs_nothing(world: World) -> None:
    engine = await make(world)
    world.fails = {"record"}
    with pytest.raises(WorkerError, match="io"):
        await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    assert world.serving[0] == "filetype/1.0.0"
    world.fails = set()
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    world.slots["b"], world.fails = TWO, {"live"}
    with pytest.raises(WorkerError, match="io"):  # the trial was recorded: it is over, and the confirmed one is loaded
        await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    await turn()
    assert world.serving[0] == "filetype/1.0.0"
    assert world.documents["filetype"]["outcome"]["outcome"] == "interrupted"
    await engine.close()


async def test_a_revert_without_a_standby_is_answered_when_the_confirmed_release_serves(world: World) -> None:
    engine = await make(world)
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    world.slots["b"] = TWO
    world.time += 3.0
    assert (await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)).gap_s == 3.0
    reverted = await engine.revert("filetype", 2, "p95")
    assert reverted.release == "filetype/1.0.0"
    await engine.close()
