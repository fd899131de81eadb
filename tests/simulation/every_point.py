"""Every point of a story, struck once: which there are, and what happens when something strikes there."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from tests.simulation.machine import run
from tests.simulation.scenarios import SCENARIOS

QUIET = ("journal pending", "journal load", "journal facts report", "journaled facts")  # nothing durable is at stake


class Point(NamedTuple):
    """A point of a story: its number, and whose effect it stands before or after."""

    number: int
    label: str


def points_of(trace: list[str]) -> list[Point]:
    """From a run that nothing has disturbed."""
    found = []
    for line in (line for line in trace if "***" not in line):
        number, _, label = line.split(maxsplit=2)
        if not any(label.endswith(quiet) for quiet in QUIET):
            found.append(Point(int(number), label))
    return found


@cache
def points(name: str) -> tuple[Point, ...]:
    """The points of a story that are its own: what every story begins with is struck in the first."""
    mine = points_of(run(SCENARIOS[name]).trace)
    if name in ("first_install", "sideload"):
        return tuple(mine)
    begun = len(points_of(run(SCENARIOS["first_install"]).trace))
    return tuple(mine[begun:])


def strike(name: str, number: int, what: str) -> None:
    """Run the story with one strike. Raises AssertionError when a rule does not hold."""
    machine = run(SCENARIOS[name], plan={number: what})
    assert machine.struck, f"{name}: point {number} was not reached"
