"""A power cut, a kill, a standstill at every point of every story leaves a device that serves what it confirmed.

Each strike is a run of its own, checked at the instant of the strike, at every point after it, and at rest. A cut that
keeps what was not synced is tried where it would leave something else than one that forgets it.
"""

from __future__ import annotations

import logging

import pytest

from tests.simulation.every_point import points, strike
from tests.simulation.scenarios import SCENARIOS

pytestmark = pytest.mark.simulation


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("interlock").setLevel(logging.CRITICAL)


def some(name: str, every: int, first: int) -> list[int]:
    """Every so-manieth point: the soak takes them all, of every kind."""
    return [point.number for point in points(name)][first % every :: every]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_at_any_point(name: str) -> None:
    for number in some(name, 2, 0):
        strike(name, number, "power")


@pytest.mark.parametrize("place", range(len(SCENARIOS)))
def test_a_cut_that_forgets_nothing(place: int) -> None:
    name = list(SCENARIOS)[place]
    for number in some(name, 12, place):
        strike(name, number, "power-keep")


@pytest.mark.parametrize("place", range(len(SCENARIOS)))
@pytest.mark.parametrize("what", ["agent", "host", "stall"])
def test_a_process_killed_or_stopped(what: str, place: int) -> None:
    name = list(SCENARIOS)[place]
    for number in some(name, 6, place):
        strike(name, number, what)
