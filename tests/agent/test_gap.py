"""Two releases that do not fit beside each other: decided and told before, and judged alone inside the gap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from interlock_agent.config import Config, Unit
from interlock_agent.core.gate import gap as judge
from interlock_agent.core.gate.gap import Plan
from interlock_agent.core.states import Event, Phase
from interlock_agent.steps import gating, switching
from interlock_agent.steps.gate.gap import plan
from interlock_shared.errors import Later, Refused
from interlock_shared.manifest import Requirement
from tests.agent.material import UNIT, the_manifest
from tests.agent.test_gating import Bench
from tests.agent.test_recorded import bench, judged

GIB = 1 << 30
FREE = {"memory_free_bytes": GIB, "gpu_memory_free_bytes": GIB}


# --- judged -----------------------------------------------------------------------------------------------------------


def took(**peaks: int) -> dict[str, Any]:
    return {"stages": [{"stage": "small", "checks": [{"check": k, "measured": float(v)} for k, v in peaks.items()]}]}


def needs(fact: str, value: int) -> tuple[Requirement, ...]:
    return (Requirement.model_validate({"fact": fact, "op": ">=", "value": value}),)


@pytest.mark.parametrize(
    ("verdict", "size", "requirements", "fits"),
    [
        (None, GIB, (), True),
        (None, GIB + 1, (), False),
        (took(memory_peak=GIB, gpu_memory_peak=GIB), 1, (), True),
        (took(memory_peak=GIB + 1), 1, (), False),
        (took(gpu_memory_peak=GIB + 1), 1, (), False),
        (None, 1, needs("memory_free_bytes", 2 * GIB), False),
        (None, 1, needs("memory_free_bytes", GIB), True),
        (None, 1, needs("memory_bytes", 2 * GIB), True),  # of the device, not of what is free: judged elsewhere
    ],
)
def test_what_does_not_fit(
    verdict: dict[str, Any] | None, size: int, requirements: tuple[Requirement, ...], fits: bool
) -> None:
    assert (judge.misfit(verdict, size, requirements, FREE) == "") is fits


def test_a_device_that_tells_nothing_has_room() -> None:
    assert judge.misfit(took(gpu_memory_peak=9 * GIB), GIB, (), {"memory_free_bytes": GIB}) == ""


def test_what_the_stages_took_is_what_is_expected() -> None:
    stages = [("compatible", 9.0), ("loads", 2.0), ("right", 3.0), ("fast", 8.0), ("small", 0.5)]
    verdict = {"stages": [{"stage": name, "seconds": seconds} for name, seconds in stages]}
    assert judge.expected_s(verdict, 30.0) == 9.5
    assert judge.expected_s(verdict, 5.0) == 5.0
    assert judge.expected_s(None, 30.0) == judge.expected_s({"stages": []}, 30.0) == 30.0


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "memory", "spare": "always"},
        {"spare": "always"},
        {"policy": "memory", "gate": {"baseline": "twin"}},
        {"gap_max_s": 0},
        {"policy": "both"},
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Unit.model_validate(settings)
    assert Unit.model_validate({"policy": "availability", "spare": "always"}).options()["spare"] == "always"


# --- decided ----------------------------------------------------------------------------------------------------------

SERVES = {"unit": UNIT, "confirmed": "detector/1.0.0", "ready": True, "gap": {"last_s": 0.0}, "workers": []}


class Free:
    def __init__(self, size: int) -> None:
        self.size = size

    def free(self) -> dict[str, int]:
        return {"memory_free_bytes": self.size}


@pytest.mark.parametrize(
    ("settings", "status", "free", "makes_room"),
    [
        ({}, SERVES, GIB, False),
        ({}, SERVES, 1, True),
        ({"policy": "availability"}, SERVES, 1, False),
        ({"policy": "memory"}, SERVES, GIB, True),
        ({"policy": "memory"}, SERVES | {"confirmed": ""}, GIB, False),
        ({"policy": "memory"}, None, GIB, False),
        ({"gate": {"baseline": "twin"}}, SERVES, 1, False),
        ({}, SERVES | {"gap": None}, 1, False),  # an older host would load both
    ],
)
def test_the_policy(settings: dict[str, Any], status: dict[str, Any] | None, free: int, makes_room: bool) -> None:
    manifest, hardware = the_manifest(), Free(free)
    found = plan(Unit.model_validate(settings), status, hardware, None, manifest, manifest.variants)  # type: ignore[arg-type]
    assert (found.makes_room, bool(found.document())) == (makes_room, makes_room)


def test_a_policy_that_an_older_host_does_not_know_waits() -> None:
    manifest, unit = the_manifest(), Unit(policy="memory")
    with pytest.raises(Later, match="too old"):
        plan(unit, SERVES | {"gap": None}, Free(GIB), None, manifest, ())  # type: ignore[arg-type]


def test_what_was_refused_memory_beside_what_serves_is_judged_alone() -> None:
    manifest = the_manifest()
    found = plan(Unit(), SERVES, Free(GIB), None, manifest, (), cramped=True)  # type: ignore[arg-type]
    assert found.makes_room


# --- the gate ---------------------------------------------------------------------------------------------------------


def alone(left_s: float = 25.0, **more: Any) -> Bench:
    """A bench of an owner whose policy is `memory`."""
    made = bench(**more)
    gate = made.shared.config.units[UNIT].gate
    unit = Unit(policy="memory", gap_max_s=30.0, gate=gate.model_copy(update={"baseline": "auto"}))
    made.shared.config = Config(units={UNIT: unit})
    status = {**SERVES, "gap": {"last_s": 0.0, "generation": 3, "left_s": left_s, "expected_s": 1.0}}
    made.host._status = lambda order, role: {"units": [status]}  # type: ignore[attr-defined]
    made.shared.gaps[UNIT] = Plan(True, "policy", 5.0, 30.0)
    return made


async def test_it_is_told_before_and_judged_alone() -> None:
    made = alone()
    made.record = replace(made.record, phase=Phase.STAGED.value)
    free = await gating.await_gate(made.step())
    assert (free.event, free.data["gap"]["at_most_s"]) == (Event.GATE_FREE, 30.0)
    made.shared.release_gate(UNIT)
    happened, verdict, rows = await judged(made)
    assert happened.event is Event.ACCEPT
    assert (rows["gap"].outcome, rows["gap"].limit) == ("pass", 30.0)
    assert rows["latency_ratio_work"].detail["baseline"] == "recorded"
    assert ("load", "twin") not in made.host.orders
    assert verdict.incumbent is not None
    assert verdict.incumbent.baseline == "recorded"


async def test_a_judgement_that_could_not_be_made_costs_no_gap() -> None:
    made = alone(fingerprint={"gpu": "another"})
    happened, _, rows = await judged(made)
    assert (happened.event, happened.reason) == (Event.INCONCLUSIVE, "no_baseline")
    assert rows["gap"].outcome == "inconclusive"
    assert not [order for order in made.host.orders if order[0] == "load"]


async def test_a_gap_that_is_over_is_not_the_candidates_fault() -> None:
    made = alone()
    made.host.fails["evaluate", "candidate"] = Refused("its time was up", code="gap_over")
    happened, _, rows = await judged(made)
    assert (happened.event, happened.reason) == (Event.INCONCLUSIVE, "gap_too_short")
    assert rows["right"].limit == 30.0
    assert ("probe", "candidate") not in made.host.orders


async def test_what_is_not_judged_within_the_gap_is_inconclusive() -> None:
    happened, _, _ = await judged(alone(left_s=1.0))  # the reserve leaves nothing
    assert (happened.event, happened.reason) == (Event.INCONCLUSIVE, "gap_too_short")


async def test_memory_refused_beside_what_serves_spends_no_try_and_is_remembered() -> None:
    made = bench()
    made.host._status = lambda order, role: {"units": [SERVES]}  # type: ignore[attr-defined]
    made.host.fails["load", "candidate"] = Refused("refused memory", code="out_of_memory")
    happened = await made.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "too_little_free")
    assert made.shared.cramped == {made.manifest.payload_sha256()}
    found = await switching.plan_of(made.step(), made.manifest, (), cramped=True)
    assert found.makes_room


async def test_a_limit_of_the_owners_is_not_helped_by_room() -> None:
    made = bench()
    made.shared.config = Config(units={UNIT: Unit(memory_limit_bytes=GIB)})
    made.host._status = lambda order, role: {"units": [SERVES]}  # type: ignore[attr-defined]
    made.host.fails["load", "candidate"] = Refused("refused memory", code="out_of_memory")
    happened = await made.run()
    assert (happened.event, happened.reason) == (Event.REJECT, "out_of_memory")
