"""A hook that is a server which loads by itself (Triton): waited for, looked at, told again; over fakes."""

from __future__ import annotations

import pytest

from interlock_agent.host import states
from interlock_agent.host.engine import Engine
from interlock_agent.host.following import WATCH_S
from interlock_agent.host.ports import WorkerError
from tests.host.test_hooks import promoted, started
from tests.host.world import World, turn

TRITON = {"hook": {"triton": {"url": "http://127.0.0.1:8000"}, "timeout_s": 5.0}}


@pytest.fixture
def world() -> World:
    return World()


async def watched(world: World) -> Engine:
    engine = await started(world)
    await engine.configure("filetype", "127.0.0.1:0", TRITON)
    await turn()
    return engine


async def test_a_switch_is_not_begun_while_it_is_away(world: World) -> None:
    engine = await watched(world)
    world.hook_away = "Triton does not answer"
    with pytest.raises(WorkerError, match="does not answer") as refused:
        await promoted(world, engine)
    assert refused.value.code == "hook_away"
    assert world.trace == [], "nothing was changed"
    assert engine.status()[0]["hook_trouble"] == "Triton does not answer"
    world.hook_away = ""
    await engine.promote("filetype", 2, next(w for w in engine.seats["filetype"].unit.workers if "-2-" in w), "b", 9, 1)
    assert engine.seats["filetype"].unit.phase is states.Phase.TRIAL


async def test_one_that_has_forgotten_is_told_again(world: World) -> None:
    engine = await watched(world)
    world.told.clear()
    world.time += WATCH_S + 1
    await turn()
    assert (len(world.looked), world.told) == (1, []), "it has it"
    world.hook_lost = "restarted"
    world.time += WATCH_S + 1
    await turn()
    assert [told["RELEASE"] for told in world.told] == ["filetype/1.0.0"]
    await engine.close()


async def test_one_that_forgets_the_trial_ends_it_and_condemns_nobody(world: World) -> None:
    engine = await watched(world)
    await promoted(world, engine)
    world.hook_lost = "it crashed"
    world.time += WATCH_S + 1
    await turn()
    unit = engine.seats["filetype"].unit
    assert unit.outcome is not None
    assert (unit.outcome.outcome, unit.outcome.reason) == ("interrupted", "hook_lost")
    assert world.told[-1]["RELEASE"] == "filetype/1.0.0"
    await engine.close()
