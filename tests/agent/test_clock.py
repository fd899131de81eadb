"""The time floor: raised by what was signed and by what has passed since; a wild clock is never remembered."""

from __future__ import annotations

import ast
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import interlock_agent
from interlock_agent.adapters.clock import SystemClock
from interlock_agent.config import Config
from interlock_agent.core.states import Event, Phase
from interlock_agent.ports import Staged, Stored
from interlock_agent.steps import fetching, waiting
from interlock_agent.steps.base import Shared, Step
from interlock_shared import manifest as manifests
from tests.agent.material import record, wish
from tests.fetcher.repository import the_manifest

YEAR = 365 * 86_400.0
SIGNED = 1_700_000_000.0


class Machine:
    """A wall clock that anybody may set, and one that only goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.passed = SIGNED, 50.0
        self.clock = SystemClock(lambda: self.wall)
        monkeypatch.setattr(self.clock, "monotonic", lambda: self.passed)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.passed += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_without_a_signed_time_the_wall_clock_counts(machine: Machine) -> None:
    assert machine.clock.now() == SIGNED
    assert machine.clock.floor() == 0.0
    assert machine.clock.behind() == 0.0


@pytest.mark.parametrize("years", [-50, -1])
def test_a_clock_that_is_behind_is_not_believed_and_time_goes_on(machine: Machine, years: int) -> None:
    machine.clock.raise_floor(SIGNED)
    machine.wall += years * YEAR
    assert machine.clock.now() == SIGNED
    machine.passes(600)
    assert machine.clock.now() == SIGNED + 600
    assert machine.clock.behind() == -years * YEAR
    machine.wall = SIGNED + 700
    assert machine.clock.now() == SIGNED + 700


def test_a_clock_that_is_years_ahead_raises_no_floor(machine: Machine) -> None:
    machine.clock.raise_floor(SIGNED)
    machine.wall += 70 * YEAR
    machine.passes(3600)
    assert machine.clock.now() == SIGNED + 70 * YEAR + 3600, "it is followed while it says so"
    assert machine.clock.floor() == SIGNED + 3600, "and not remembered"
    machine.wall = SIGNED + 3600
    assert machine.clock.now() == SIGNED + 3600


def test_the_floor_never_falls(machine: Machine) -> None:
    heights = []
    for signed, passes in ((SIGNED, 10), (SIGNED - YEAR, 10), (SIGNED + 15, 10), (SIGNED + 30, 0), (0.0, 5)):
        machine.clock.raise_floor(signed)
        machine.passes(passes)
        heights.append(machine.clock.floor() - SIGNED)
    assert heights == [10, 20, 30, 30, 35]


def wait(machine: Machine, until: float, set_back: float = 0.0) -> tuple[Any, float]:
    """Wake's answer, and how long it took, when the clock is set back at the first look."""

    class Clock:
        def now(self) -> float:
            return machine.clock.now()

        def monotonic(self) -> float:
            return machine.passed

        async def sleep(self, seconds: float) -> None:
            nonlocal set_back
            machine.passes(seconds)
            machine.wall -= set_back
            set_back = 0.0

    unit = record(Phase.WAITING, wish()).having(until=until)
    shared: Any = type("S", (), {"ports": type("P", (), {"clock": Clock()})})
    begun = machine.passed
    step: Any = Step(shared, unit, None)  # type: ignore[arg-type]
    return asyncio.run(waiting.wake(step)), machine.passed - begun


@pytest.mark.parametrize(
    ("ahead", "back", "passes"),
    [(40.0, 0.0, 40.0), (5000.0, 0.0, 5000.0), (5000.0, 30 * YEAR, 5000.0), (30 * YEAR, 0.0, 0.0)],
)
def test_a_time_that_was_named_by_a_wild_clock_holds_nobody_up(
    machine: Machine, ahead: float, back: float, passes: float
) -> None:
    happened, took = wait(machine, SIGNED + ahead, back)
    assert happened.event is Event.DUE
    assert took == passes


def _asks(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "fetcher" for node in ast.walk(tree))


def test_expiry_is_looked_at_where_something_is_adopted_and_nowhere_else() -> None:
    """What resumes, reverts or serves asks neither the fetcher nor any document for its expiry."""
    steps = Path(interlock_agent.__file__).parent / "steps"
    trees = {path.name: ast.parse(path.read_text()) for path in steps.rglob("*.py")}
    assert {name for name, tree in trees.items() if _asks(tree)} == {"fetching.py"}
    for name, tree in trees.items():
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {"expires_at", "expires", "is_expired"} & names, name


async def test_what_is_complete_here_is_resumed_in_any_year() -> None:
    """An attempt that was interrupted after its payload was complete: no fetcher, no metadata, no clock."""
    manifest = the_manifest()
    raw = manifests.to_bytes(manifest)
    there = Staged("incoming/x", raw, manifest.payload_sha256())

    class Slots:
        async def staged(self, unit: str, manifest_sha256: str) -> Staged:
            del unit, manifest_sha256
            return there

    ports: Any = type("P", (), {"slots": Slots()})  # it has no fetcher and no clock to ask
    unit = record(Phase.FETCHING, wish())
    shared = Shared(ports=ports, config=Config(), device="press-7", stored=Stored())
    step = Step(shared, replace(unit, unit=manifest.model), Config().unit(manifest.model))
    happened = await fetching.fetch(step)
    assert happened.event is Event.FETCHED
