"""The controller of the gate's pauses."""

from __future__ import annotations

from typing import Any

import pytest

from interlock_agent.core.gate.guest import NICE, PAUSE_MAX_S, PAUSE_MIN_S, REQUESTS_MIN, Guest


def status(p99_ms: float, requests: int, count: int = 500, unit: str = "detector") -> list[dict[str, Any]]:
    recent = {"count": count, "p50_ms": p99_ms / 2, "p99_ms": p99_ms}
    return [{"unit": unit, "counters": {"requests": requests, "recent": recent}}]


def test_pauses_double_while_it_is_felt_and_halve_afterwards() -> None:
    guest = Guest(1.25, {"detector": 10.0})
    felt = [guest.turn(status(15.0, n)) for n in range(1, 5)]
    assert felt == [PAUSE_MIN_S, 2 * PAUSE_MIN_S, 4 * PAUSE_MIN_S, 8 * PAUSE_MIN_S]
    over = [guest.turn(status(10.0, n)) for n in range(5, 9)]
    assert over == [4 * PAUSE_MIN_S, 2 * PAUSE_MIN_S, PAUSE_MIN_S, 0.0]
    assert guest.yielded_s == pytest.approx(sum(felt) + sum(over))
    assert guest.document()["slowdown_worst"] == 1.5


def test_it_is_nice_from_the_beginning_where_anybody_is_served() -> None:
    assert Guest(1.25).nice == 0
    guest = Guest(1.25, {"detector": 10.0})
    assert guest.nice == NICE
    guest.was_nice(NICE)
    guest.was_nice(0)
    assert (guest.document()["nice"], guest.document()["nice_blocks"]) == (NICE, 1)


def test_what_it_is_without_a_gate_is_seen_again_after_the_longest_pause() -> None:
    """Others disturb the applications too, and waiting does not undo that."""
    guest = Guest(1.25, {"detector": 10.0})
    pauses = [guest.turn(status(20.0, n)) for n in range(1, 20)]
    first = pauses.index(PAUSE_MAX_S)
    assert pauses[:first] == sorted(pauses[:first])
    assert 0 < pauses[-1] < PAUSE_MAX_S or pauses[-1] == 0.0, "it goes on"
    assert 16.0 <= guest.without["detector"] <= 20.0
    assert guest.document()["p99_before_ms"] == {"detector": 10.0}
    assert guest.document()["p99_without_ms"] == {"detector": pytest.approx(guest.without["detector"])}
    assert guest.turn(status(30.0, 50)) > 0, "and it is felt again"


def test_a_short_pause_says_nothing_of_what_it_is_without_a_gate() -> None:
    guest = Guest(1.25, {"detector": 10.0})
    while guest.turn(status(99.0, guest.looks + 1)) < PAUSE_MAX_S:
        assert guest.without == guest.before


def test_a_pause_has_an_end() -> None:
    guest = Guest(1.25, {"detector": 10.0})
    assert max(guest.turn(status(99.0, n)) for n in range(1, 50)) == PAUSE_MAX_S


def test_it_steps_back_before_the_limit_is_passed() -> None:
    assert Guest(1.25, {"detector": 10.0}).turn(status(12.4, 1)) == PAUSE_MIN_S
    assert Guest(1.25, {"detector": 10.0}).turn(status(12.0, 1)) == 0.0


def test_the_worst_of_all_models_counts() -> None:
    guest = Guest(1.25, {"detector": 10.0, "other": 10.0})
    assert guest.turn(status(10.0, 1) + status(30.0, 1, unit="other")) == PAUSE_MIN_S


@pytest.mark.parametrize("before", [{}, {"gone": 10.0}])
def test_without_traffic_before_nobody_is_disturbed(before: dict[str, float]) -> None:
    assert Guest(1.25, before).turn(status(99.0, 1)) == 0.0


def test_traffic_that_has_ended_is_no_slow_traffic() -> None:
    guest = Guest(1.25, {"detector": 10.0})
    assert guest.turn(status(99.0, 7)) == PAUSE_MIN_S
    assert guest.turn(status(99.0, 7)) == 0.0


def test_a_p99_of_few_is_none() -> None:
    assert Guest.p99s(status(10.0, 1, REQUESTS_MIN - 1)) == {}
    assert Guest.p99s(status(10.0, 1, REQUESTS_MIN)) == {"detector": 10.0}
    assert Guest.p99s([{"unit": "fresh", "counters": {}}]) == {}
