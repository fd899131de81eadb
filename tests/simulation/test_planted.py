"""A simulator is attacked too: each of these bugs must be caught within a small fixed slice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from interlock_agent import engine as agent_engine
from interlock_agent.core import readings, reports, states
from interlock_agent.core.probes import FAIL, Probe, Reading
from interlock_agent.core.records import UnitRecord
from interlock_agent.core.states import Effect, Event, Phase, Resumption, Row
from interlock_agent.host import core as host_core
from interlock_agent.host import messages
from interlock_agent.host import states as host_states
from interlock_agent.host.effects import Effects
from interlock_agent.steps import fetching, table
from interlock_agent.steps.base import Happened, Shared, Step
from tests.fakes.disk import Disk
from tests.fakes.host_store import FakeStore
from tests.fakes.slots import FakeSlots
from tests.simulation.every_point import points
from tests.simulation.machine import run
from tests.simulation.scenarios import SCENARIOS

pytestmark = pytest.mark.simulation

Patch = pytest.MonkeyPatch
EVERY = 3  # of a story's points


def caught(names: tuple[str, ...], strikes: tuple[str, ...] = ()) -> str:
    """What the first run that fails says; "" when none does. Points are counted before the bug is planted."""
    for name in names:
        numbers = [point.number for point in points(name)][::EVERY] if strikes else []
        for plan in ({}, *({number: strike} for number in numbers for strike in strikes)):
            try:
                run(SCENARIOS[name], plan=plan)
            except AssertionError as failure:
                return str(failure)
    return ""


def effect_before_journal(patch: Patch) -> None:
    proper = agent_engine.Engine._apply

    async def hasty(self: agent_engine.Engine, unit: str, happened: Happened, wish: Any) -> tuple[Effect, ...]:
        before = self.record(unit)
        row = states.ROWS[(Phase(before.phase), happened.event)]
        if Effect.PROMOTE in row.effects:
            after = self._next(before, happened, row.next, wish)
            await table.EFFECTS[Effect.PROMOTE](Step(self.shared, after, self.config.unit(unit)))
        return await proper(self, unit, happened, wish)

    patch.setattr(agent_engine.Engine, "_apply", hasty)


def spend_after_start(patch: Patch) -> None:
    patch.setitem(states.ROWS, (Phase.STAGED, Event.GATE_FREE), Row(Phase.GATING, (Effect.GATE,)))
    patch.setitem(states.ROWS, (Phase.GATING, Event.ACCEPT), Row(Phase.PASSED, (Effect.FILL_SLOT,), spends="try"))


def folder_not_synced(patch: Patch) -> None:
    proper = Disk.replace_link

    def forgetful(self: Disk, path: str, target: str) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Disk, "sync_parent", lambda *_: None)
            proper(self, path, target)

    patch.setattr(Disk, "replace_link", forgetful)


def lease_not_looked_at(patch: Patch) -> None:
    patch.setattr(host_core, "first", lambda unit, event, now: None)
    patch.setattr(host_core, "wake_at", lambda unit: None)


def resumed_trial_has_passed(patch: Patch) -> None:
    patch.setitem(states.RESUME, Phase.TRIAL, Resumption(Phase.CONFIRMING, (Effect.CONFIRM,)))


def resumed_trial_promotes_again(patch: Patch) -> None:
    async def again(step: Step) -> Happened:
        folder = await step.ports.slots.folder(step.name, step.attempt.slot)
        load = messages.Load(step.name, step.record.generation, folder, "candidate", step.unit.options())
        worker = str((await step.ports.host.request(load))["worker"])
        return Happened(Event.CANDIDATE_HERE, changes={"worker": worker})

    patch.setitem(table.EFFECTS, Effect.ASK_HOST, again)
    patch.setitem(states.RESUME, Phase.TRIAL, Resumption(Phase.SWITCHING, (Effect.ASK_HOST,)))


def cold_start_serves_live(patch: Patch) -> None:
    proper = FakeStore.links

    async def live_first(self: FakeStore, unit: str) -> tuple[str, str]:
        confirmed, live = await proper(self, unit)
        return live or confirmed, live

    patch.setattr(FakeStore, "links", live_first)


def fills_the_confirmed_slot(patch: Patch) -> None:
    async def nothing(self: FakeSlots, unit: str) -> str:
        return ""

    patch.setattr(FakeSlots, "confirmed_slot", nothing)


def stale_generation_accepted(patch: Patch) -> None:
    patch.setattr(host_core, "_harmless", lambda unit, event: True)


def quarantine_forgotten(patch: Patch) -> None:
    patch.setattr(fetching, "refuse_quarantined", lambda *_: None)


def told_before_it_is_true(patch: Patch) -> None:
    patch.setitem(reports.ENTERED, Phase.CONFIRMING, "confirmed")


def revert_answered_before_it_is_durable(patch: Patch) -> None:
    key: tuple[host_states.Phase, type[host_states.Event]] = (host_states.Phase.TRIAL, host_states.Revert)
    proper = host_core.ROWS[key]

    def careless(*arguments: Any) -> Any:
        unit, effects = proper(*arguments)
        return unit, tuple(effect for effect in effects if not isinstance(effect, host_states.Record))

    patch.setitem(host_core.ROWS, key, careless)


def link_before_record(patch: Patch) -> None:
    key: tuple[host_states.Phase, type[host_states.Event]] = (host_states.Phase.SERVING, host_states.Promote)
    proper = host_core.ROWS[key]

    def backwards(*arguments: Any) -> Any:
        unit, effects = proper(*arguments)
        first = [effect for effect in effects if isinstance(effect, host_states.LinkLive)]
        return unit, (*first, *(effect for effect in effects if effect not in first))

    patch.setitem(host_core.ROWS, key, backwards)


def confirmed_without_asking(patch: Patch) -> None:
    async def sure(step: Step) -> Happened:
        return Happened(Event.YES)

    patch.setitem(table.EFFECTS, Effect.CONFIRM, sure)


def gate_kept(patch: Patch) -> None:
    patch.setattr(Shared, "release_gate", lambda *_: None)


def generation_falls_back(patch: Patch) -> None:
    proper = agent_engine.Engine._next

    def stuck(self: agent_engine.Engine, before: UnitRecord, *more: Any) -> UnitRecord:
        return replace(proper(self, before, *more), generation=1)

    patch.setattr(agent_engine.Engine, "_next", stuck)


def gap_never_ends(patch: Patch) -> None:
    gap = host_states.Phase.GAP
    key: tuple[host_states.Phase, type[host_states.Event]] = (gap, host_states.Lapsed)
    patch.setitem(host_core.ROWS, key, lambda unit, *_: (unit, ()))


def room_is_not_waited_for(patch: Patch) -> None:
    async def at_once(self: Effects, seat: Any) -> None:
        seat.leaving.clear()

    patch.setattr(Effects, "gone", at_once)


def silence_is_a_fault(patch: Patch) -> None:
    proper = readings.READERS["error_rate"]

    def hasty(probe: Probe, sight: readings.Sight) -> Reading | None:
        said = proper(probe, sight)
        return replace(said, outcome=FAIL) if said else None

    patch.setitem(readings.READERS, "error_rate", hasty)


BUGS: dict[Callable[[Patch], None], tuple[tuple[str, ...], tuple[str, ...], str]] = {
    effect_before_journal: (("first_install",), (), "journal"),
    spend_after_start: (("first_install",), (), "0 tries were spent"),
    folder_not_synced: (("first_install",), (), ""),
    lease_not_looked_at: (("lease_lapse",), (), "lease had lapsed"),
    resumed_trial_has_passed: (("upgrade",), ("agent",), "minimum of time"),
    resumed_trial_promotes_again: (("upgrade",), ("power", "agent"), ""),
    cold_start_serves_live: (("upgrade",), ("power",), ""),
    fills_the_confirmed_slot: (("upgrade",), (), "confirmed"),
    stale_generation_accepted: (("late_orders",), (), "stale"),
    quarantine_forgotten: (("worker_death",), (), "gated again"),
    told_before_it_is_true: (("first_install",), (), "told as confirmed before"),
    revert_answered_before_it_is_durable: (("unhealthy",), (), "before it was durable"),
    link_before_record: (("upgrade",), (), "no record would undo"),
    confirmed_without_asking: (("first_install",), (), "a confirmation that is none"),
    gate_kept: (("upgrade",), (), "does not converge"),
    gap_never_ends: (("alone_and_stalled",), (), "does not end"),
    room_is_not_waited_for: (("alone",), (), "did not make room"),
    generation_falls_back: (("upgrade",), (), "generation"),
    silence_is_a_fault: (("upgrade",), (), "is blamed"),
}


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: str(plant.__name__))
def test_the_planted_bug_is_caught(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    logging.getLogger("interlock").setLevel(logging.CRITICAL)
    names, strikes, words = BUGS[plant]
    for name in names:
        points(name)
    plant(monkeypatch)
    said = caught(names, strikes)
    assert said, "not caught"
    assert words in said, said
