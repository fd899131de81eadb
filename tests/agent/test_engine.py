"""The engine's own loop: a step that fails where no row waits, and one that has a fault, do not strand a unit."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest

from interlock_agent.core.states import Effect, Event
from interlock_agent.guard import AGAIN_S
from interlock_agent.steps import table
from interlock_agent.steps.base import Happened, Step
from interlock_shared.errors import Later
from tests.simulation.machine import Machine, run
from tests.simulation.releases import UNIT
from tests.simulation.scenarios import SCENARIOS, confirmed, roll_out, until

pytestmark = pytest.mark.simulation


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("interlock").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("effect", [Effect.WATCH, Effect.CONFIRM, Effect.PROMOTE, Effect.DROP])
def test_a_step_that_cannot_be_done_now_is_done_again(effect: Effect, monkeypatch: pytest.MonkeyPatch) -> None:
    proper = table.EFFECTS[effect]
    failures = [2]

    async def failing(step: Step) -> Happened | None:
        if failures[0]:
            failures[0] -= 1
            raise Later("the disk says no", code="io")
        return await proper(step)

    monkeypatch.setitem(table.EFFECTS, effect, failing)
    machine = run(SCENARIOS["upgrade"])
    assert failures == [0]
    assert machine.journal.record(UNIT).confirmed.version == "1.1.0"


def test_a_fault_of_a_step_is_told_and_the_unit_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = table.EFFECTS[Effect.FETCH]
    faults = [1]

    async def faulty(step: Step) -> Happened | None:
        if faults[0]:
            faults[0] -= 1
            raise ZeroDivisionError("a fault of ours")
        return await proper(step)

    monkeypatch.setitem(table.EFFECTS, Effect.FETCH, faulty)
    with pytest.raises(AssertionError, match="a fault: ZeroDivisionError"):  # the simulation forgives none
        run(SCENARIOS["first_install"])
    faults[0] = 1
    monkeypatch.setattr("tests.simulation.truth.Truth.note", lambda self, text: None)
    assert run(SCENARIOS["first_install"]).journal.record(UNIT).confirmed.version == "1.0.0"


def test_a_way_back_that_is_barred_is_tried_again_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = table.EFFECTS[Effect.RESTORE]
    tries: list[float] = []

    async def barred(step: Step) -> Happened | None:
        tries.append(step.ports.clock.monotonic())
        return Happened(Event.LATER, reason="io") if len(tries) < 5 else await proper(step)

    alarms: list[str] = []

    async def story(machine: Machine) -> None:
        await roll_out(machine, "1.0.0")
        await roll_out(machine, "4.0.0")
        await until(machine, lambda: len(tries) == 2, 300.0, 0.3)
        await asyncio.sleep(10.0)
        alarms.extend(alarm["why"] for alarm in machine.journal.meta["alarms"].values())
        await until(machine, lambda: confirmed(machine) == "1.0.0", 3000.0, 0.3)
        await asyncio.sleep(5.0)

    monkeypatch.setitem(table.EFFECTS, Effect.RESTORE, barred)
    machine = run(story)
    assert alarms == ["tried_in_vain"]
    assert machine.journal.record(UNIT).confirmed.version == "1.0.0"
    apart = [after - before for before, after in itertools.pairwise(tries)]
    assert [round(one / AGAIN_S) for one in apart] == [1, 2, 4, 8]
    assert len([one for one in machine.journal.quarantine if one.version == "4.0.0"]) == 1
    assert not machine.journal.meta["alarms"]


def test_what_was_put_off_when_the_device_changed_is_judged_later_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [Event.LATER, Event.INCONCLUSIVE, Event.REJECT]
    told: list[int] = []

    async def judged(step: Step) -> Happened | None:
        del step
        return Happened(ends.pop(0), reason="window")

    async def look(machine: Machine, again: bool = False) -> None:
        if again:
            machine.strike("agent", "it is started again")
            await machine.settled()
        assert machine.agent is not None
        machine.agent.engine.shared.fingerprint_sha256 = "f" * 64
        before = len(machine.journal.history)
        await machine.agent.engine.judge_changed()
        await machine.settled()
        told.append(sum(row["event"] == "changed" for row in machine.journal.history[before:]))

    async def story(machine: Machine) -> None:
        await roll_out(machine, "1.0.0")
        for again in (False, False, False, True, False, True):
            await look(machine, again)

    monkeypatch.setitem(table.EFFECTS, Effect.REGATE, judged)
    machine = run(story)
    # put off; then nothing can be said: once a life of the agent; then rejected: told, and it stays
    assert told == [1, 1, 0, 1, 0, 0]
    assert machine.journal.record(UNIT).fingerprint == "f" * 64


def test_a_confirmed_release_that_cannot_be_watched_is_an_alarm() -> None:
    alarms: list[dict[str, str]] = []

    async def story(machine: Machine) -> None:
        await roll_out(machine, "1.0.0")
        name = f"slots/{UNIT}/a/.interlock/manifest.json"
        whole = machine.disk.read(name)
        assert whole is not None
        machine.disk.write(name, b"{")
        machine.strike("agent", "it is started again")
        await machine.settled()
        await asyncio.sleep(3.0)
        alarms.extend(machine.journal.meta["alarms"].values())
        machine.disk.write(name, whole)
        await asyncio.sleep(3.0)

    machine = run(story)
    assert [(one["check"], one["why"]) for one in alarms] == [("watch", "not_watched")]
    assert not machine.journal.meta["alarms"]
    assert machine.server.kinds()[-2:] == ["unhealthy", "recovered"], "told once, and when it is over"
