"""Broker, server and agent go away and come back, in every order: everything converges, and no event is lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from interlock_agent.core.reports import ENTERED
from interlock_agent.core.states import Phase
from tests.e2e.world import MODEL, Watcher, eventually, rows, watched, world

pytestmark = pytest.mark.e2e

# Each of them comes back first, second and last in the orders that `make test` runs; `make test-long` has the others.
TURNS = (("broker", "server", "agent"), ("server", "agent", "broker"), ("agent", "broker", "server"))
ORDERS = tuple(
    pytest.param(order, marks=() if order in TURNS else pytest.mark.long)
    for order in itertools.permutations(("broker", "server", "agent"))
)


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with world() as made:
        found = watched(made, "press-7", {"listen": "127.0.0.1:0"})
        with found.web, found.broker:
            found.device.start()
            made.first(found.device)
            yield found
            found.between.close()


class Parts:
    """What goes away, abruptly, and comes back. The embedded broker is the server's; alone, its connections break."""

    def __init__(self, one: Watcher) -> None:
        self._one = one

    def away(self, name: str) -> None:
        if name == "broker":
            self._one.broker.close()
        elif name == "server":
            assert self._one.world.server is not None
            self._one.world.server.kill()
        else:
            self._one.device.agent.kill()

    def back(self, name: str) -> None:
        if name == "broker":
            self._one.broker.open()
        elif name == "server":
            self._one.world.start_server()
        else:
            self._one.device.start_agent()


def to_be_told(one: Watcher) -> list[tuple[str, int]]:
    """(kind, generation) of every transition in the agent's journal that the server hears of, in order."""
    told = []
    query = "SELECT before, after, generation, event FROM history WHERE unit = ? ORDER BY id"
    before_generation = 0
    for before, after, generation, event in rows(one.device, query, MODEL):
        kind = ENTERED.get(Phase(after))
        if kind and (before != after or generation != before_generation) and event != "resume":
            told.append((kind, generation))
        before_generation = generation
    return told


def all_told(one: Watcher) -> None:
    """Every event is at the server exactly once, without a gap in the numbers; nothing waits at the device."""
    eventually(lambda: one.device.ask("status")["outbox"]["waiting"] == 0, "an empty outbox")
    events = one.world.events(one.device)
    numbers = sorted(event["number"] for event in events)
    assert len({event["epoch"] for event in events}) == 1
    assert numbers == list(range(1, len(numbers) + 1))
    seen = [(e["kind"], e["generation"]) for e in sorted(events, key=lambda e: e["number"]) if e["kind"] != "verdict"]
    assert seen == to_be_told(one)
    detail = one.world.ask("GET", f"/v1/devices/{one.device.name}")
    assert detail["events_gap"] is None
    assert detail["events"][0]["upto"] == len(numbers)


@pytest.mark.parametrize("back", ORDERS, ids="-".join)
def test_all_three_die_in_the_middle_of_a_rollout_and_come_back_in_any_order(
    one: Watcher, back: tuple[str, ...]
) -> None:
    parts = Parts(one)
    with one.traffic() as traffic:
        with one.between.stop("evaluate") as stop:
            version = one.world.release()
            rollout = one.wish(version)
            stop.wait()
            for name in reversed(back):
                parts.away(name)
        traffic.answered(20)
        for name in back:
            parts.back(name)
        one.settles(version, rollout)
    all_told(one)


@pytest.mark.parametrize("name", ["broker", "server"])
def test_what_happens_while_the_network_is_away_is_told_afterwards(one: Watcher, name: str) -> None:
    parts = Parts(one)
    with one.between.stop("promote") as stop:
        version = one.world.release()
        rollout = one.wish(version)
        stop.wait()
        parts.away(name)
    unit = one.rests(version)  # the device needs nobody for it
    assert unit["phase"] == "confirmed"
    assert one.device.ask("status")["outbox"]["waiting"] > 0
    one.device.agent.kill()
    one.device.start_agent()
    parts.back(name)
    one.world.server_says(rollout, "confirmed")
    all_told(one)


def test_a_server_that_restarts_twice_sends_nothing_anew(one: Watcher) -> None:
    before = one.device.ask("status")
    for _ in range(2):
        assert one.world.server is not None
        assert one.world.server.stop() == 0
        one.world.start_server()
        eventually(lambda: one.world.ask("GET", f"/v1/devices/{one.device.name}")["online"], "the device online")
    after = one.device.ask("status")
    assert after["desired"] == before["desired"]
    assert after["units"][MODEL]["generation"] == before["units"][MODEL]["generation"]
    all_told(one)
