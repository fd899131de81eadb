"""From every phase, every event and a restart lead to a phase with a good model live."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock_agent.core import states
from interlock_agent.core.states import (
    ASKED,
    BEFORE_SWITCH,
    EMITS,
    RESTING,
    RESUME,
    ROWS,
    SERVING_TRIAL,
    Effect,
    Event,
    Phase,
)
from interlock_agent.steps.table import EFFECTS

WAITS_FOR_A_PERSON = (Phase.WAITING,)  # no effect under way after INTERRUPTED's budget is spent


@dataclass
class Unit:
    """A unit and, beside it, what its host does: the table never sees the second half."""

    phase: Phase = Phase.IDLE
    trial_serves: bool = False  # an unjudged release answers
    judged_good: bool = False  # the host confirmed what the attempt brought
    effects: tuple[Effect, ...] = ()

    def possible(self) -> list[Event]:
        """Events that can reach this unit now: orders from outside, ends of its effects by the host's truth."""
        found = [Event.WISH, Event.ROLLBACK, Event.CANCEL, Event.SUPERSEDE, Event.CHANGED]
        for effect in self.effects:
            emitted = ASKED.get(self.phase, ()) if effect is Effect.ASK_HOST else EMITS[effect]
            found += [event for event in emitted if self._true(event)]
        return [event for event in found if (self.phase, event) in ROWS]

    def _true(self, event: Event) -> bool:
        if event is Event.CANDIDATE_HERE:
            return not self.trial_serves
        if event is Event.PROMOTED:
            return self.phase in (Phase.SWITCHING, Phase.TRIAL)
        return True

    def happens(self, event: Event) -> None:
        """The host's side first, then the row."""
        if event is Event.PROMOTED:
            self.trial_serves = True
        if event in (Event.HOST_REVERTED, Event.LAPSED, Event.GONE):
            self.trial_serves = False  # that is what these words mean: the host is back
        if event is Event.YES:
            self.trial_serves, self.judged_good = False, True
        row = ROWS[self.phase, event]
        if row.next is Phase.ACCEPTED:
            self.judged_good = False
        self.phase, self.effects = row.next, row.effects

    def restarts(self) -> None:
        """The agent was killed and starts: the host may have done anything by itself meanwhile, but not confirm."""
        again = states.resume(self.phase.value)
        self.phase, self.effects = again.phase, again.effects

    def check(self) -> None:
        if self.trial_serves:
            assert self.phase in SERVING_TRIAL, f"{self.phase}: an unjudged release serves and nobody watches it"
        if self.phase not in RESTING and self.phase not in WAITS_FOR_A_PERSON:
            assert self.effects, f"{self.phase}: nothing is under way and the unit does not rest"


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_walk_leaves_an_unjudged_release_serving_unwatched(data: st.DataObject) -> None:
    unit = Unit()
    for _ in range(data.draw(st.integers(1, 40), label="steps")):
        possible = unit.possible()
        if not possible or data.draw(st.integers(0, 6), label="restart") == 0:
            unit.restarts()
        else:
            unit.happens(data.draw(st.sampled_from(possible), label="event"))
        unit.check()


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
def test_a_restart_in_any_phase_keeps_the_good_release(phase: Phase) -> None:
    again = RESUME[phase]
    if phase in SERVING_TRIAL:
        assert again.phase is phase, "a trial is never forgotten"
        assert again.effects[0] in (Effect.ASK_HOST, Effect.CONFIRM, Effect.REVERT), "the host is asked first"
    else:
        assert again.phase not in SERVING_TRIAL, "a restart never begins a trial by itself"
    if phase in RESTING:
        assert again.phase is phase


@pytest.mark.parametrize(("phase", "event"), list(ROWS), ids=lambda one: one.value)
def test_every_row_keeps_the_good_release(phase: Phase, event: Event) -> None:
    row = ROWS[phase, event]
    if phase in SERVING_TRIAL and row.next not in SERVING_TRIAL:
        assert event in (Event.YES, Event.HOST_REVERTED, Event.LAPSED, Event.GONE), "the host has said who serves"
    if phase not in SERVING_TRIAL and row.next in SERVING_TRIAL:
        assert (phase, event) in {(Phase.PASSED, Event.SLOT_FILLED), (Phase.RESTORING, Event.LOADED)}
        assert row.effects[0] is Effect.PROMOTE
    if row.next is Phase.CONFIRMED and event not in (Event.YES, Event.ALREADY):
        assert phase is Phase.REGATING, "confirmed is what the host says"
    if row.next is Phase.TRIAL:
        assert event is Event.PROMOTED
    if row.next is Phase.PASSED and event is not Event.CANDIDATE_HERE:
        assert event is Event.ACCEPT


def test_an_order_from_outside_never_leaves_a_trial_by_itself() -> None:
    for phase in SERVING_TRIAL:
        for event in (Event.WISH, Event.CANCEL, Event.SUPERSEDE, Event.CHANGED):
            assert (phase, event) not in ROWS, (phase, event)


def _where(effects: tuple[Effect, ...], phase: Phase) -> list[tuple[Phase, Effect, Event]]:
    rows = []
    for effect in effects:
        emitted = ASKED[phase] if effect is Effect.ASK_HOST else EMITS[effect]
        rows += [(phase, effect, event) for event in emitted]
    return rows


ENDS = sorted(
    {
        end
        for effects, phase in [
            *((row.effects, row.next) for row in ROWS.values()),
            *((again.effects, again.phase) for again in RESUME.values()),
        ]
        for end in _where(effects, phase)
    },
    key=lambda end: tuple(one.value for one in end),
)


@pytest.mark.parametrize(("phase", "effect", "event"), ENDS, ids=lambda one: one.value)
def test_what_an_effect_ends_in_has_a_row(phase: Phase, effect: Effect, event: Event) -> None:
    del effect
    assert (phase, event) in ROWS


def test_what_waits_for_the_network_or_the_disk_is_in_a_phase_that_can_wait() -> None:
    patient = {effect for effect in Effect if Event.LATER in EMITS[effect]}
    assert {Effect.FETCH, Effect.GATE, Effect.FILL_SLOT, Effect.RESTORE} <= patient
    for row in ROWS.values():
        if patient & set(row.effects):
            assert (row.next, Event.LATER) in ROWS, row.next


def test_the_second_table_is_total_and_an_unknown_phase_rests() -> None:
    assert set(RESUME) == set(Phase)
    assert set(EMITS) == set(Effect)
    assert set(EFFECTS) | {Effect.SETTLE} == set(Effect)
    again = states.resume("pondering")
    assert again.phase is Phase.IDLE
    assert Effect.SETTLE in again.effects
    assert not {Effect.PROMOTE, Effect.CONFIRM, Effect.GATE, Effect.FETCH} & set(again.effects)


def test_every_phase_can_come_to_rest() -> None:
    resting = set(RESTING)
    while True:
        more = {phase for (phase, _), row in ROWS.items() if row.next in resting} - resting
        if not more:
            break
        resting |= more
    assert resting == set(Phase)


def test_every_phase_is_reached() -> None:
    assert {row.next for row in ROWS.values()} | {Phase.IDLE} == set(Phase)


def test_what_can_loop_is_counted() -> None:
    assert ROWS[Phase.STAGED, Event.GATE_FREE].spends == "try"
    for (phase, event), row in ROWS.items():
        if row.next is Phase.INTERRUPTED:
            assert row.spends == "interruption", (phase, event)
        if row.next is Phase.GATING:
            assert row.spends == "try"
        if phase is Phase.GATING and event in (Event.INCONCLUSIVE, Event.UNJUDGED):
            assert row.spends == "unjudged", "it was no fault of the candidate: the try is given back"


def test_what_failed_is_remembered() -> None:
    for (phase, event), row in ROWS.items():
        if row.next in (Phase.REJECTED, Phase.REVERTED) or (event is Event.EXHAUSTED and phase is Phase.STAGED):
            assert row.remembers, (phase, event)
        if row.next in (Phase.CANCELLED, Phase.SUPERSEDED, Phase.WAITING, Phase.INTERRUPTED):
            assert not row.remembers, (phase, event)


def test_before_the_switch_a_wish_can_be_taken_back() -> None:
    for phase in (*BEFORE_SWITCH, Phase.INTERRUPTED):
        assert ROWS[phase, Event.CANCEL].next is Phase.CANCELLED
        assert Effect.RETIRE in ROWS[phase, Event.CANCEL].effects


def test_the_picture_has_every_phase_and_event() -> None:
    picture = states.mermaid()
    assert picture.startswith("stateDiagram-v2")
    for (phase, event), row in ROWS.items():
        if phase is not row.next:
            lines = [line for line in picture.splitlines() if f" {phase.value} --> {row.next.value}:" in line]
            assert len(lines) == 1
            assert event.value in lines[0]


@pytest.mark.parametrize("phase", Phase)
def test_no_restart_takes_a_step_that_needs_a_living_worker_without_asking_the_host(phase: Phase) -> None:
    """What was measured is the very process that then serves: after a restart only the host knows whether it lives."""
    first = next(iter(RESUME[phase].effects), None)
    assert first not in (Effect.FILL_SLOT, Effect.PROMOTE, Effect.WATCH, Effect.GATE)
    assert (phase is Phase.GATING) <= (RESUME[phase].phase is Phase.STAGED)  # half a measurement is none
