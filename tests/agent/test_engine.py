"""The engine's own loop: a step that fails where no row waits, and one that has a fault, do not strand a unit."""

from __future__ import annotations

import logging

import pytest

from interlock_agent.core.states import Effect
from interlock_agent.steps import table
from interlock_agent.steps.base import Happened, Step
from interlock_shared.errors import Later
from tests.simulation.machine import run
from tests.simulation.releases import UNIT
from tests.simulation.scenarios import SCENARIOS

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
