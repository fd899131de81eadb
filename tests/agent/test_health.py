"""Health as pure tables: what a check says, what a row of results means, which checks there may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_agent.config import Config, OwnersProbe, UnitHealth
from interlock_agent.core import trial
from interlock_agent.core.probes import (
    FAIL,
    FAILING,
    PASS,
    PASSING,
    PENDING,
    UNAVAILABLE,
    Board,
    Probe,
    Reading,
    Standing,
    after_confirmation,
    of_check,
    take,
)
from interlock_agent.core.readings import READERS, Memory, Sight, Word
from interlock_agent.core.records import Attempt, Installed, UnitRecord, Wish
from interlock_agent.core.reports import reports
from interlock_agent.core.states import Event, Phase
from interlock_agent.core.wishes import confirmed, restoring
from interlock_agent.steps.base import Happened
from interlock_agent.steps.probing import ASKERS
from interlock_shared.health import KINDS, Check, Health

GOOD, BAD, DUMB = Reading(PASS), Reading(FAIL, message="no"), Reading(UNAVAILABLE)
LETTERS = {"g": GOOD, "b": BAD, "u": DUMB}

# --- standings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "failures", "successes", "standing"),
    [
        ("", 1, 1, PENDING),
        ("g", 1, 1, PASSING),
        ("b", 1, 1, FAILING),
        ("u", 1, 1, UNAVAILABLE),
        ("bb", 3, 1, PENDING),  # not often enough, and never well
        ("bbb", 3, 1, FAILING),
        ("bbgbb", 3, 1, PASSING),  # in a row
        ("bbub", 4, 1, UNAVAILABLE),
        ("bbub", 3, 1, FAILING),  # what could not be read neither counts nor forgives
        ("g", 1, 2, PENDING),
        ("gg", 1, 2, PASSING),
        ("gbg", 1, 2, FAILING),  # well again only after as many
        ("gbgg", 1, 2, PASSING),
        ("gu", 1, 1, UNAVAILABLE),  # told, not taken for well
        ("bu", 1, 1, FAILING),  # silence heals nothing
    ],
)
def test_a_row_of_results_is_a_standing(results: str, failures: int, successes: int, standing: str) -> None:
    probe = Probe("p", "exec", 10.0, 1.0, failures, successes)
    now = Standing(due=0.0)
    for number, letter in enumerate(results):
        now = take(probe, now, LETTERS[letter], asked=10.0 * number, now=10.0 * number + 0.5)
    assert now.outcome == standing


@given(st.text("gbu", max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_failing_takes_a_row_of_failures_and_ends_with_a_row_of_successes(
    results: str, failures: int, successes: int
) -> None:
    probe = Probe("p", "exec", 10.0, 1.0, failures, successes)
    now = Standing(due=0.0)
    for number, letter in enumerate(results):
        before, now = now, take(probe, now, LETTERS[letter], 10.0 * number, 10.0 * number)
        heard = results[: number + 1].replace("u", "")
        if now.outcome == FAILING and before.outcome != FAILING:
            assert heard.endswith("b" * failures)
        if before.outcome == FAILING and now.outcome != FAILING:
            assert heard.endswith("g" * successes)
        assert now.due == 10.0 * number + 10.0


def test_a_probe_is_due_after_its_delay_and_then_every_period_from_when_it_was_asked() -> None:
    board = Board([Probe("slow", "exec", 10.0, 5.0, initial_delay_s=3.0), Probe("quick", "exec", 1.0, 1.0)], now=100.0)
    assert [probe.name for probe in board.due(100.0)] == ["quick"]
    assert [probe.name for probe in board.due(103.0)] == ["slow", "quick"]
    board.take("slow", GOOD, asked=103.0, now=107.0)
    assert [probe.name for probe in board.due(112.9)] == ["quick"]
    assert "slow" in [probe.name for probe in board.due(113.0)]
    board.take("slow", GOOD, asked=113.0, now=140.0)  # it took longer than its period: asked again at once, not twice
    assert board.standings["slow"].due == 140.0
    (slow, quick) = board.rows(141.0)
    assert (slow["check"], slow["outcome"], slow["seconds_ago"]) == ("slow", PASSING, 1.0)
    assert quick["outcome"] == PENDING
    assert "seconds_ago" not in quick


def test_wanted_probes_are_told_and_judge_nothing() -> None:
    board = Board([Probe("wish", "exec", 1.0, 1.0, required=False)], now=0.0)
    assert board.pending() == []
    board.take("wish", BAD, 0.0, 0.0)
    assert board.failing() == ""
    assert board.rows(0.0)[0]["outcome"] == FAILING


def test_after_the_confirmation_probes_are_cheaper_and_more_patient_but_the_applications_word_holds_at_once() -> None:
    owner = UnitHealth(late_period_s=10.0, late_failures=3)
    quick, slow = (
        of_check(Check(check="non_finite")),
        of_check(Check(check="golden", period_s=60.0, failure_threshold=5)),
    )
    (one, two, word) = after_confirmation([quick, slow, *owner.owners()], owner.late_period_s, owner.late_failures)
    assert (one.period_s, one.failure_threshold, one.initial_delay_s) == (10.0, 3, 10.0)
    assert (two.period_s, two.failure_threshold) == (60.0, 5)
    assert (word.kind, word.failure_threshold) == ("application", 1)
    assert word.period_s < 1.0


# --- the trial --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "outcome", "check"),
    [
        ({}, trial.WATCHING, ""),  # a required probe has not said how it is
        ({"app": GOOD}, trial.WATCHING, ""),
        ({"app": GOOD, "xid": GOOD}, trial.HEALTHY, ""),
        ({"app": GOOD, "xid": DUMB}, trial.HEALTHY, ""),  # this device does not tell
        ({"app": BAD, "xid": GOOD}, trial.UNHEALTHY, "app"),
        ({"app": GOOD, "xid": GOOD, "wish": BAD}, trial.HEALTHY, ""),
    ],
)
def test_a_trial_waits_for_every_required_probe(results: dict[str, Reading], outcome: str, check: str) -> None:
    probes = [Probe("app", "exec", 1.0, 1.0), Probe("xid", "gpu_faults", 1.0, 1.0)]
    board = Board([*probes, Probe("wish", "http", 1.0, 1.0, required=False)], now=0.0)
    for name, reading in results.items():
        board.take(name, reading, 0.0, 0.0)
    health = Health(min_seconds=1.0, min_requests=0)
    judgement = trial.judge(health, trial.Seen(2.0, 0, 0, 0), board)
    assert (judgement.outcome, judgement.check) == (outcome, check)
    early = trial.judge(health, trial.Seen(0.5, 0, 0, 0), board)
    assert early.outcome == (trial.UNHEALTHY if check else trial.WATCHING), "a failure is not waited for"


@pytest.mark.parametrize(
    ("results", "outcome"),
    [("gb", trial.WATCHING), ("gbb", trial.WATCHING), ("gbbb", trial.UNHEALTHY), ("gbg", trial.HEALTHY),
     ("gbu", trial.HEALTHY)],
)  # fmt: skip
def test_a_trial_is_not_confirmed_on_a_bad_result(results: str, outcome: str) -> None:
    board = Board([Probe("app", "exec", 1.0, 1.0, 3)], now=0.0)
    for letter in results:
        board.take("app", LETTERS[letter], 0.0, 0.0)
    assert trial.judge(Health(min_seconds=1.0, min_requests=0), trial.Seen(2.0, 0, 0, 0), board).outcome == outcome


# --- readings ---------------------------------------------------------------------------------------------------------


def recent(count: int = 100, **figures: float) -> dict[str, Any]:
    return {"requests": 100, "recent": {"count": count, **figures}}


def memory(*sizes: int, seconds: float = 60.0, requests: int = 500) -> tuple[Memory, ...]:
    return tuple(Memory(number * seconds, number * requests, size * 1000) for number, size in enumerate(sizes))


LOOKED = {"looked": 100, "constant": 95, "outside": {"y": 3}}


@pytest.mark.parametrize(
    ("check", "sight", "outcome", "figure"),
    [
        ({"check": "worker_alive"}, Sight({}, live="w1"), PASS, None),
        ({"check": "worker_alive"}, Sight({}), FAIL, None),
        ({"check": "worker_alive"}, Sight({}, live="w2", crashes=2, crashes_before=1), FAIL, 2.0),
        ({"check": "worker_alive"}, Sight({}, live="w2", crashes=1, crashes_before=2), PASS, None),
        ({"check": "worker_alive"}, Sight({}, live="w2", crashes=2, crashes_before=2, crashes_lately=2), PASS, None),
        ({"check": "worker_alive"}, Sight({}, live="w2", crashes=3, crashes_before=3, crashes_lately=3), FAIL, 3.0),
        ({"check": "error_rate"}, Sight({"requests": 19, "errors": 19}), UNAVAILABLE, None),
        ({"check": "error_rate"}, Sight({"requests": 100, "errors": 1}), PASS, 0.01),
        ({"check": "error_rate"}, Sight({"requests": 100, "errors": 2}), FAIL, 0.02),
        ({"check": "error_rate"}, Sight({"requests": 200, "errors": 2}, {"requests": 150, "errors": 1}), FAIL, 0.02),
        ({"check": "error_rate"}, Sight({"requests": 200, "errors": 2}, {"requests": 190}), UNAVAILABLE, None),
        ({"check": "non_finite"}, Sight({"non_finite": 1}), FAIL, 1.0),
        ({"check": "non_finite"}, Sight({"non_finite": 1}, {"non_finite": 1}), PASS, 0.0),
        ({"check": "latency", "max": 5.0}, Sight(recent(p99_ms=5.0)), PASS, 5.0),
        ({"check": "latency", "max": 5.0}, Sight(recent(p99_ms=5.1)), FAIL, 5.1),
        ({"check": "latency", "max": 5.0}, Sight(recent(19, p99_ms=9.0)), UNAVAILABLE, None),
        ({"check": "latency", "max": 5.0}, Sight(recent(p99_ms=9.0), before={"requests": 100}), UNAVAILABLE, None),
        ({"check": "latency", "max": 5.0, "quantile": "p95"}, Sight(recent(p99_ms=9.0)), UNAVAILABLE, None),
        ({"check": "latency", "ratio_max": 1.5}, Sight(recent(p99_ms=9.0)), UNAVAILABLE, None),
        ({"check": "latency", "ratio_max": 1.5}, Sight(recent(p99_ms=9.0), incumbent={"p99_ms": 6.0}), PASS, 1.5),
        ({"check": "latency", "ratio_max": 1.5}, Sight(recent(p99_ms=9.6), incumbent={"p99_ms": 6.0}), FAIL, 1.6),
        ({"check": "latency", "ratio_max": 3, "max": 8}, Sight(recent(p99_ms=9), incumbent={"p99_ms": 6}), FAIL, 9.0),
        ({"check": "constant_output"}, Sight(LOOKED), FAIL, 0.95),
        ({"check": "constant_output", "max": 0.95}, Sight(LOOKED), PASS, 0.95),
        ({"check": "constant_output"}, Sight({"looked": 9, "constant": 9}), UNAVAILABLE, None),
        ({"check": "constant_output"}, Sight(LOOKED, {"looked": 50, "constant": 48}), FAIL, 0.94),
        ({"check": "out_of_range", "output": "y", "low": 0.0}, Sight(LOOKED), FAIL, 0.03),
        ({"check": "out_of_range", "output": "y", "low": 0.0, "max": 0.05}, Sight(LOOKED), PASS, 0.03),
        ({"check": "out_of_range", "output": "z", "low": 0.0}, Sight(LOOKED), PASS, 0.0),
        (
            {"check": "out_of_range", "output": "y", "high": 1.0},
            Sight({"looked": 40, "outside": {"y": 3}}, {"looked": 20, "outside": {"y": 3}}),
            PASS,
            0.0,
        ),
        ({"check": "memory_growth", "max": 100.0}, Sight({}, memory=memory(9, 9, 9, 9, 9)), UNAVAILABLE, None),
        (
            {"check": "memory_growth", "max": 100.0},
            Sight({}, memory=memory(9, 9, 9, 9, 9, 9, requests=1000)),
            PASS,
            0.0,
        ),
        (
            {"check": "memory_growth", "max": 100.0},
            Sight({}, memory=memory(9, 9, 9, 9, 99, 9, requests=1000)),
            PASS,
            0.0,
        ),
        ({"check": "memory_growth", "max": 100.0}, Sight({}, memory=memory(9, 8, 9, 12, 12, 12, 12)), FAIL, 3000.0),
        (
            {"check": "memory_growth", "max": 100.0},
            Sight({}, memory=memory(1, 2, 3, 4, 5, 6, requests=100)),
            UNAVAILABLE,
            None,
        ),
        (
            {"check": "memory_growth", "max": 1e5, "per": "hour"},
            Sight({}, memory=memory(9, 9, 9, 15, 15, 15, requests=0)),
            FAIL,
            360_000.0,
        ),
        ({"check": "gpu_faults"}, Sight({}, gpu_faults=None), UNAVAILABLE, None),
        ({"check": "gpu_faults"}, Sight({}, gpu_faults=0), PASS, 0.0),
        ({"check": "gpu_faults"}, Sight({}, gpu_faults=1), FAIL, 1.0),
    ],
)
def test_what_a_check_reads(check: dict[str, Any], sight: Sight, outcome: str, figure: float | None) -> None:
    probe = of_check(Check(**check))
    reading = READERS[probe.kind](probe, sight)
    assert reading is not None
    assert reading.outcome == outcome
    assert reading.figure == (None if figure is None else pytest.approx(figure))
    assert bool(reading.message) == (outcome != PASS), "what is not well says why"


@pytest.mark.parametrize(
    ("word", "must_speak", "outcome"),
    [
        (None, False, UNAVAILABLE),
        (None, True, None),  # waited for
        (Word(healthy=True), True, PASS),
        (Word(healthy=False, message="no detections"), False, FAIL),
    ],
)
def test_the_applications_word(word: Word | None, must_speak: bool, outcome: str | None) -> None:
    (probe,) = UnitHealth().owners(must_speak=must_speak)
    reading = READERS[probe.kind](probe, Sight({}, word=word))
    assert (reading and reading.outcome) == outcome


def test_every_kind_of_check_is_read_or_asked() -> None:
    assert set(KINDS) <= set(READERS) | set(ASKERS)
    assert {"exec", "http", "systemd"} <= set(ASKERS)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "problem"),
    [
        ({"name": "a"}, "one of exec, systemd and http"),
        ({"name": "a", "http": "http://x", "systemd": "x.service"}, "one of exec"),
        ({"name": "a", "exec": ("check",)}, "no absolute path"),
        ({"name": "a", "systemd": "--root=/"}, "pattern"),
        ({"name": "a", "http": "file:///etc/shadow"}, "pattern"),
        ({"name": "a", "http": "http://x:99999/"}, "Port out of range"),
        ({"name": "a", "http": "http://x", "period_s": 0}, "greater"),
        ({"name": "A b", "http": "http://x"}, "pattern"),
    ],
)
def test_an_owners_probe_is_one_thing_that_can_be_asked(probe: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        OwnersProbe.model_validate(probe)


def test_a_unit_names_each_probe_once() -> None:
    twice = {"units": {"detector": {"health": {"probes": [{"name": "a", "http": "http://x"}] * 2}}}}
    with pytest.raises(ValueError, match="a name occurs twice"):
        Config.model_validate(twice)


# --- late -------------------------------------------------------------------------------------------------------------


def installed(version: str, slot: str, assignment: str) -> Installed:
    return Installed(version, version[0] * 64, version[0] * 64, slot, "fp", assignment)


def test_a_late_revert_is_told_of_the_release_that_is_left() -> None:
    good, bad = installed("1.0.0", "a", "w1"), installed("2.0.0", "b", "w2")
    old = UnitRecord("detector", Phase.REJECTED.value, 7, Attempt(Wish("3.0.0", "3" * 64, "w3")), bad, good)
    seen = {"check": "golden", "checks": [{"check": "golden", "outcome": "failing"}]}
    leaving = replace(restoring(old, 8, seen), phase=Phase.RESTORING.value)
    (said,) = reports(old, leaving, Happened(Event.TURNED_BAD, reason="golden", data=seen), "t")
    assert (said["kind"], said["version"], said["assignment"]) == ("unhealthy", "2.0.0", "w2")
    assert (said["reason"], said["data"]) == ("golden", {**seen, "action": "revert"})
    assert leaving.attempt is not None
    assert (leaving.attempt.wish.origin, leaving.attempt.slot, leaving.generation) == ("late", "a", 8)
    on = replace(leaving, phase=Phase.CONFIRMING.value)
    back = replace(confirmed(on, "fp"), phase=Phase.CONFIRMED.value)
    (told,) = reports(on, back, Happened(Event.YES), "t")
    assert (told["kind"], told["version"], told["assignment"]) == ("reverted", "2.0.0", "w2")
    assert (told["reason"], told["data"]["serves"], told["data"]["checks"]) == ("golden", "1.0.0", seen["checks"])
