"""The standard stories, undisturbed: how each of them ends, and what the server hears."""

from __future__ import annotations

import pytest

from tests.simulation.machine import run
from tests.simulation.releases import UNIT
from tests.simulation.scenarios import SCENARIOS, late_alarm, late_alone, late_without_fallback, taken_at_its_word

pytestmark = pytest.mark.simulation

INSTALLED = ["accepted", "staged", "verdict", "switched", "confirmed"]
ALONE = ["accepted", "staged", "gap", "verdict", "switched", "confirmed"]
ENDS = {
    "first_install": ("confirmed", "1.0.0", []),
    "upgrade": ("confirmed", "1.1.0", INSTALLED),
    "rejected": ("rejected", "1.0.0", ["accepted", "staged", "verdict", "rejected"]),
    "unhealthy": ("failed", "1.0.0", [*INSTALLED[:4], "reverted", "accepted", "failed"]),
    "worker_death": ("failed", "1.0.0", [*INSTALLED[:4], "reverted", "accepted", "failed"]),
    "lease_lapse": ("confirmed", "1.1.0", [*INSTALLED[:4], "interrupted", *INSTALLED]),
    "superseded": ("confirmed", "1.2.0", ["accepted", "superseded", "accepted", "staged", "superseded", *INSTALLED]),
    "cancelled": ("cancelled", "1.0.0", ["accepted", "staged", "cancelled"]),
    "rollback": ("confirmed", "1.0.0", [*INSTALLED, "switched", "rolled_back"]),
    "night": ("confirmed", "1.1.0", [*INSTALLED[:2], "waiting", *INSTALLED]),
    "late_revert": (
        "failed",
        "1.0.0",
        [*INSTALLED, "unhealthy", "switched", "reverted", "accepted", "failed"],
    ),
    "late_alarm": ("confirmed", "4.1.0", [*INSTALLED, "unhealthy", "switched", "reverted", "unhealthy"]),
    "alone": ("reverted", "1.1.0", [*ALONE, "accepted", "staged", "gap", "verdict", "switched", "reverted"]),
    "alone_and_stalled": ("confirmed", "1.1.0", [*ALONE[:4], *ALONE]),
    "spared": ("confirmed", "1.1.0", INSTALLED),
    "host_killer": ("failed", "1.0.0", ["accepted", "staged", *["waiting", "accepted", "staged"] * 3, "failed"]),
    "late_without_fallback": ("failed", "4.0.0", [*INSTALLED, "unhealthy", "failed", "unhealthy"]),
    "taken_at_its_word": ("reverted", "1.0.0", [*INSTALLED[:4], "reverted"]),
    "late_alone": ("confirmed", "1.0.0", [*ALONE, "unhealthy", "switched", "reverted"]),
    "sideload": ("confirmed", "1.0.0", []),
    "late_orders": ("confirmed", "1.1.0", INSTALLED),
}


# Told once: what is its own in them is little, and every point of it would take long.
ONCE = (late_alarm, late_alone, late_without_fallback, taken_at_its_word)
STORIES = SCENARIOS | {story.__name__: story for story in ONCE}


@pytest.mark.parametrize("name", STORIES)
def test_the_story_ends_as_it_should(name: str) -> None:
    machine = run(STORIES[name])
    phase, version, told = ENDS[name]
    record = machine.journal.record(UNIT)
    assert (record.phase, record.confirmed.version) == (phase, version), machine.describe()
    assert machine.server.kinds() == INSTALLED + told


def test_what_was_seen_outlives_a_kill_right_after_the_judgement() -> None:
    """Of a trial and of a confirmed release; it reaches the server when there is a link again."""
    for name, event, kind in (("unhealthy", "unhealthy", "reverted"), ("late_revert", "turned-bad", "unhealthy")):
        calm = run(SCENARIOS[name])
        numbers = [int(line.split()[0]) for line in calm.trace if f"journaled {event}" in line]
        assert numbers, calm.trace
        for strike in ("agent", "power"):
            machine = run(SCENARIOS[name], plan={numbers[0]: strike})
            assert machine.struck == [
                f"{strike} at journaled {event} -> {'reverting' if name == 'unhealthy' else 'restoring'}"
            ]
            told = [one for one in machine.server.events.values() if one["kind"] == kind]
            seen = {row["check"]: row for row in told[0]["data"]["checks"]}
            assert seen["non_finite"]["outcome"] == "failing" or name == "unhealthy"
            assert told[0]["data"]["check"] == "non_finite"
            assert told[0]["data"]["last_words"], "the worker's last lines"


def test_an_agent_that_wakes_after_its_trial_has_ended_judges_nobody_by_the_figures_of_what_serves() -> None:
    """It was stopped while the host switched: by then the bad release serves again, with its own counters."""
    calm = run(SCENARIOS["late_revert"])
    numbers = [int(line.split()[0]) for line in calm.trace if line.endswith("link live a")]
    assert numbers, calm.trace
    for one in numbers:
        machine = run(SCENARIOS["late_revert"], plan={one: "stall"})
        assert "1.0.0" not in [entry.version for entry in machine.journal.quarantine]


def test_a_seed_replays_a_whole_run() -> None:
    plan = {150: "power", 190: "agent", 260: "stall", 300: "host"}
    one, two = (run(SCENARIOS["upgrade"], seed=7, plan=dict(plan)) for _ in range(2))
    assert one.trace == two.trace
    assert len(one.struck) > 1
