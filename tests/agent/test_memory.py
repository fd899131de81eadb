"""What is remembered, wished, told: quarantine, wishes, records, reports, retries, the trial's judgement."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock_agent.core import quarantine, records, retry, times, trial, wishes
from interlock_agent.core.quarantine import Surroundings
from interlock_agent.core.records import Attempt, Installed, Quarantined, UnitRecord, Wish
from interlock_agent.core.reports import reports
from interlock_agent.core.states import BEFORE_SWITCH, RESTING, ROWS, SERVING_TRIAL, Event, Phase
from interlock_agent.steps.base import Happened
from interlock_shared.documents import EVENT_KINDS, Assignment
from interlock_shared.health import Check, Health
from tests.agent.material import NEW, OLD, OTHER, UNIT, record, wish

HERE = Surroundings("f" * 64, "orin", "540", "limits", "incumbent")
AT = "2026-01-01T00:00:00Z"


def entry(reason: str, around: Surroundings = HERE, *, in_trial: bool = False) -> Quarantined:
    return Quarantined(quarantine.key(reason, NEW, around, in_trial=in_trial), NEW, reason, "1.0.0", AT)


@pytest.mark.parametrize(
    ("reason", "in_trial", "changes", "forbids"),
    [
        ("worker_died", False, {}, True),
        ("worker_hung", False, {"limits_sha256": "other", "incumbent_payload": "other"}, True),
        ("load_failed", False, {"fingerprint_sha256": "other"}, True),
        ("out_of_memory", False, {"driver": "550"}, False),
        ("exhausted", False, {"gpu": "thor"}, False),
        ("too_slow", False, {}, True),
        ("too_slow", False, {"limits_sha256": "other"}, False),
        ("accuracy_dropped", False, {"incumbent_payload": "other"}, False),
        ("golden_mismatch", False, {"fingerprint_sha256": "other"}, False),
        ("non_finite", True, {"limits_sha256": "other", "incumbent_payload": "other"}, True),
        ("error_rate", True, {"fingerprint_sha256": "other"}, False),
        ("no_such_check", True, {"limits_sha256": "other"}, True),
        ("rolled_back", False, {"fingerprint_sha256": "o", "gpu": "o", "driver": "o", "limits_sha256": "o"}, True),
    ],
)
def test_a_failure_forbids_where_it_would_happen_again(
    reason: str, in_trial: bool, changes: dict[str, str], forbids: bool
) -> None:
    found = quarantine.find([entry(reason, in_trial=in_trial)], NEW, replace(HERE, **changes))
    assert (found is not None) is forbids
    assert quarantine.find([entry(reason, in_trial=in_trial)], OTHER, HERE) is None, "other content is tried"


def test_surroundings_of_a_device_without_a_gpu() -> None:
    around = quarantine.surroundings({"cpu": "x"}, "d" * 64)
    assert (around.gpu, around.driver) == ("none", "none")


# --- wishes -------------------------------------------------------------------------------------------------------


def wanted(assignment: str = "w1", version: str = "1.1.0") -> Assignment:
    return Assignment(version=version, manifest_sha256=NEW, assignment=assignment, rollout="r1")


FILE = {"origin": "sideload"}
CHOICES: list[tuple[str, UnitRecord, Assignment | None, Event | None]] = [
    ("nothing wanted, nothing there", record(), None, None),
    ("nothing wanted, confirmed", record(Phase.CONFIRMED, confirmed=True), None, None),
    ("a first wish", record(), wanted(), Event.WISH),
    ("the same wish, under way", record(Phase.FETCHING, wish()), wanted(), None),
    ("the same wish, waiting", record(Phase.WAITING, wish()), wanted(), None),
    ("another wish, under way", record(Phase.GATING, wish()), wanted("w2"), Event.SUPERSEDE),
    ("another wish, interrupted", record(Phase.INTERRUPTED, wish()), wanted("w2"), Event.SUPERSEDE),
    ("no longer wanted", record(Phase.FETCHING, wish()), None, Event.CANCEL),
    ("no longer wanted, interrupted", record(Phase.INTERRUPTED, wish()), None, Event.CANCEL),
    ("no longer wanted, a file", record(Phase.FETCHING, wish(**FILE)), None, None),
    ("a wish while a file is under way", record(Phase.GATING, wish("s", **FILE)), wanted(), None),
    ("a wish while a file waits", record(Phase.WAITING, wish("s", **FILE)), wanted(), Event.SUPERSEDE),
    ("an answered wish while a file waits", record(Phase.WAITING, wish("s", **FILE), done=("w1",)), wanted(), None),
    ("an answered wish again", record(Phase.CONFIRMED, wish(), confirmed=True, done=("w1",)), wanted(), None),
    ("an older answered wish again", record(Phase.REVERTED, wish("w2"), done=("w1", "w2")), wanted(), None),
    ("back to an answered wish, under way", record(Phase.STAGED, wish("w2"), done=("w1",)), wanted(), Event.CANCEL),
    ("a new wish after a rejected one", record(Phase.REJECTED, wish(), done=("w1",)), wanted("w2"), Event.WISH),
    ("a wish cut before its end was noted", record(Phase.FAILED, wish()), wanted(), Event.WISH),
]  # fmt: skip


@pytest.mark.parametrize(("words", "unit", "desired", "event"), CHOICES, ids=[row[0] for row in CHOICES])
def test_what_is_done_about_a_wish(
    words: str, unit: UnitRecord, desired: Assignment | None, event: Event | None
) -> None:
    del words
    choice = wishes.choose(unit, desired, 7.0)
    assert (choice.event if choice else None) is event
    if choice and choice.wish:
        assert (choice.wish.assignment, choice.wish.spread_s, choice.wish.origin) == (
            desired.assignment if desired else "", 7.0, "rollout",
        )  # fmt: skip
    if choice:
        assert (Phase(unit.phase), choice.event) in ROWS


@pytest.mark.parametrize("phase", [*SERVING_TRIAL, Phase.REGATING, Phase.RESTORING])
@pytest.mark.parametrize("desired", [None, wanted("w2")])
def test_past_the_switch_a_unit_is_left_to_finish(phase: Phase, desired: Assignment | None) -> None:
    assert wishes.choose(record(phase, wish()), desired, 0) is None


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.value)
@given(
    assignment=st.sampled_from(["w1", "w2", None]),
    origin=st.sampled_from(records.ORIGINS),
    done=st.lists(st.sampled_from(["w1", "w2"]), unique=True),
)
@settings(max_examples=30)
def test_a_choice_always_has_a_row(phase: Phase, assignment: str | None, origin: str, done: list[str]) -> None:
    unit = record(phase, wish(origin=origin), done=tuple(done))
    choice = wishes.choose(unit, None if assignment is None else wanted(assignment), 0)
    assert choice is None or (phase, choice.event) in ROWS
    if choice and choice.event is Event.WISH:
        assert phase in RESTING


def test_an_ended_wish_is_remembered_and_the_oldest_go() -> None:
    unit = record(Phase.REJECTED, wish("w1"))
    assert wishes.ended(unit).done == ("w1",)
    assert wishes.ended(wishes.ended(unit)).done == ("w1",)
    assert wishes.ended(record(Phase.REJECTED, wish(**FILE))).done == ()
    assert wishes.ended(record(Phase.IDLE)).done == ()
    full = replace(unit, done=tuple(f"o{n}" for n in range(wishes.DONE_MAX)))
    after = wishes.ended(full).done
    assert (len(after), after[0], after[-1]) == (wishes.DONE_MAX, "o1", "w1")


def test_a_unit_is_rebuilt_from_its_seals() -> None:
    seal = {"version": "1.0.0", "manifest_sha256": OLD, "payload_sha256": OTHER, "generation": 4}
    rebuilt = wishes.from_seals(UNIT, {"a": seal, "b": {**seal, "generation": 7}}, "a")
    assert rebuilt is not None
    assert (rebuilt.phase, rebuilt.generation) == ("confirmed", 7)
    assert rebuilt.confirmed == Installed("1.0.0", OLD, OTHER, "a")
    assert wishes.from_seals(UNIT, {"b": seal}, "a") is None
    assert wishes.from_seals(UNIT, {}, "") is None


def test_confirming_moves_the_former_release_into_the_spare() -> None:
    unit = record(Phase.CONFIRMED, wish(), confirmed=True)
    after = wishes.confirmed(unit, "fp")
    assert after.confirmed == Installed("1.1.0", NEW, OTHER, "b", fingerprint="fp", assignment="w1")
    assert after.previous == unit.confirmed
    assert after.fingerprint == "fp"
    assert wishes.confirmed(record(), "fp") == record()
    back = wishes.restoring(after, 9)
    assert back.attempt is not None
    assert (back.attempt.wish.origin, back.attempt.slot, back.generation) == ("rollback", "a", 9)
    with pytest.raises(ValueError, match="nothing to go back to"):
        wishes.restoring(record(), 1)


def test_tries_are_counted_across_generations() -> None:
    unit = record(Phase.STAGED, wish())
    key = wishes.budget_key(unit, "try")
    assert key == wishes.budget_key(replace(unit, generation=99), "try") == ("try", f"{UNIT}:{OTHER}:w1")
    assert wishes.budget_key(record(), "try") is None
    assert key != wishes.budget_key(record(Phase.STAGED, wish("w2")), "try")


# --- records, reports, retry --------------------------------------------------------------------------------------

TEXT = st.text(max_size=20)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
WISHES = st.builds(Wish, TEXT, TEXT, TEXT, TEXT, st.sampled_from(records.ORIGINS), NUMBER)
JSON = st.dictionaries(TEXT, st.integers() | TEXT | st.none() | st.lists(st.integers()), max_size=3)
ATTEMPTS = st.builds(Attempt, WISHES, TEXT, TEXT, TEXT, TEXT, st.integers(), st.integers(), NUMBER, TEXT, NUMBER, JSON)
INSTALLED = st.none() | st.builds(Installed, TEXT, TEXT, TEXT, TEXT)
UNITS = st.builds(
    UnitRecord,
    TEXT,
    st.sampled_from([phase.value for phase in Phase]),
    st.integers(),
    st.none() | ATTEMPTS,
    INSTALLED,
    INSTALLED,
    st.lists(TEXT, max_size=4).map(tuple),
    TEXT,
    TEXT,
)


@settings(deadline=None)
@given(UNITS, JSON)
def test_a_record_comes_back_as_it_was(unit: UnitRecord, unknown: dict[str, Any]) -> None:
    document = json.loads(json.dumps(records.to_document(unit)))
    assert records.from_document(document) == unit
    newer = {**{f"newer-{key}": value for key, value in unknown.items()}, **document}
    assert records.from_document(newer) == unit, "what a newer agent wrote besides is no trouble"


def test_a_change_needs_an_attempt() -> None:
    with pytest.raises(ValueError, match="no attempt"):
        record().having(worker="w")


@pytest.mark.parametrize(("phase", "event"), [(p, e) for p, e in ROWS if ROWS[p, e].next is not p])
def test_confirmed_is_told_by_the_hosts_yes_alone(phase: Phase, event: Event) -> None:
    before = record(phase, wish(), confirmed=True)
    after = replace(before, phase=ROWS[phase, event].next.value)
    told = reports(before, after, Happened(event, reason="r" * 5000, data={"figure": 1}), AT)
    kinds = [one["kind"] for one in told]
    if "confirmed" in kinds:
        assert event in (Event.YES, Event.ALREADY)
    assert set(kinds) <= set(EVENT_KINDS)
    for one in told:
        assert len(one["reason"]) <= 2000
        if event is not Event.TURNED_BAD:  # that tells of the release that is left
            assert (one["assignment"], one["generation"], one["data"]) == ("w1", 3, {"figure": 1})


def test_a_verdict_is_told_before_the_phase_it_led_to() -> None:
    before = record(Phase.GATING, wish())
    happened = Happened(Event.REJECT, reason="too_slow", data={"envelope": {"payload": "p"}, "message": "m"})
    first, second = reports(before, replace(before, phase="rejected"), happened, AT)
    assert (first["kind"], first["data"]) == ("verdict", {"envelope": {"payload": "p"}})
    assert (second["kind"], second["data"]) == ("rejected", {"message": "m"})


def test_a_rollback_is_told_as_one() -> None:
    before = record(Phase.CONFIRMING, wish(origin="rollback"))
    (told,) = reports(before, replace(before, phase="confirmed"), Happened(Event.YES), AT)
    assert told["kind"] == "rolled_back"
    regated = reports(record(Phase.REGATING), record(Phase.CONFIRMED), Happened(Event.ACCEPT), AT)
    assert regated == ()


@given(st.integers(-3, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_backoff_is_jittered_between_nothing_and_its_bound(failures: int, dice: float) -> None:
    bound = min(60.0, 2.0 ** min(max(failures, 1) - 1, 32))
    assert 0 <= retry.backoff(failures, dice) <= bound
    assert retry.backoff(failures, 0.5) == pytest.approx(bound / 2)


def test_a_spread_is_the_devices_own_place_and_even_over_a_fleet() -> None:
    places = [retry.spread(f"device-{n}", "w1", 100.0) for n in range(400)]
    assert places[7] == retry.spread("device-7", "w1", 100.0)
    assert all(0 <= place < 100 for place in places)
    assert sum(place < 50 for place in places) == pytest.approx(200, abs=50)
    assert retry.spread("device-7", "w2", 100.0) != places[7]


@given(st.floats(0, 4e9))
def test_times_come_back(moment: float) -> None:
    assert times.seconds(times.rfc3339(moment)) == pytest.approx(moment, abs=1e-5)


# --- the trial ----------------------------------------------------------------------------------------------------

QUICK = Health(min_seconds=1.0, min_requests=20)
LAX = Health(
    min_seconds=1.0, min_requests=0, checks=(Check(check="non_finite", max=2), Check(check="error_rate", max=0.5))
)
OFF = Health(min_seconds=0, min_requests=0, checks=(Check(check="non_finite", required=False), Check(check="error_rate", required=False)))  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("health", "elapsed", "requests", "errors", "non_finite", "golden", "outcome", "check"),
    [
        (QUICK, 0.5, 100, 0, 0, 0, "watching", ""),
        (QUICK, 1.0, 19, 0, 0, 0, "watching", ""),
        (QUICK, 1.0, 20, 0, 0, 0, "healthy", ""),
        (QUICK, 1.0, 0, 0, 0, 20, "healthy", ""),  # no traffic: the device's own
        (QUICK, 0.0, 1, 0, 1, 0, "unhealthy", "non_finite"),  # at once
        (QUICK, 0.5, 19, 19, 0, 0, "watching", ""),  # a rate of so few says nothing yet
        (QUICK, 0.5, 20, 1, 0, 0, "unhealthy", "error_rate"),
        (QUICK, 0.5, 100, 1, 0, 0, "watching", ""),  # exactly 1 %
        (QUICK, 1.0, 100, 1, 0, 0, "healthy", ""),
        (Health(min_seconds=1.0, min_requests=2), 1.0, 2, 1, 0, 0, "unhealthy", "error_rate"),  # at the end it counts
        (Health(min_seconds=1.0, min_requests=0), 1.0, 0, 3, 0, 0, "unhealthy", "error_rate"),
        (LAX, 1.0, 100, 50, 2, 0, "healthy", ""),
        (LAX, 1.0, 100, 0, 3, 0, "unhealthy", "non_finite"),
        (LAX, 1.0, 100, 51, 0, 0, "unhealthy", "error_rate"),
        (OFF, 0.0, 100, 99, 99, 0, "healthy", ""),
    ],
)
def test_the_trials_judgement(
    health: Health, elapsed: float, requests: int, errors: int, non_finite: int, golden: int, outcome: str, check: str
) -> None:
    judgement = trial.judge(health, trial.Seen(elapsed, requests, errors, non_finite, golden))
    assert (judgement.outcome, judgement.check) == (outcome, check)
    assert judgement.figures is not None
    assert judgement.figures["requests"] == requests


def test_a_phase_before_the_switch_is_one_that_can_be_cancelled() -> None:
    for phase in BEFORE_SWITCH:
        choice = wishes.choose(record(phase, wish()), None, 0)
        assert choice is not None
        assert choice.event is Event.CANCEL
