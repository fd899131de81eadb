"""A unit's turn at the gate, and its tries: which are spent, and which are given back."""

from __future__ import annotations

import pytest

from interlock_agent.core.states import ROWS, Event, Phase
from interlock_agent.steps import gating, switching
from interlock_shared.errors import InterlockError, NoSpace, Refused, Unreachable
from interlock_shared.limits import ATTEMPTS_MAX, UNJUDGED_MAX
from tests.agent.material import UNIT
from tests.agent.test_gating import Bench


async def test_what_never_comes_to_a_verdict_is_a_persons_to_decide_in_the_end() -> None:
    bench = Bench()
    bench.host.fails["load", "twin"] = Refused("it is dead", code="worker_died")
    key = f"{UNIT}:{bench.record.attempt.payload_sha256 if bench.record.attempt else ''}:w1"
    bench.shared.stored.spent["unjudged:" + key] = UNJUDGED_MAX - 2
    assert (await bench.run()).reason == "twin_failed"
    bench.shared.stored.spent["unjudged:" + key] = UNJUDGED_MAX - 1
    happened = await bench.run()
    assert (happened.event, happened.reason, happened.changes["until"]) == (Event.UNJUDGED, "operator", -1.0)
    assert happened.data["code"] == "twin_failed"


async def test_a_disk_that_does_not_take_what_passed_is_no_fault_of_the_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    async def full(*_: object) -> None:
        raise NoSpace("no space left")

    monkeypatch.setattr(bench.slots, "fill", full)
    happened = await switching.fill_slot(bench.step())
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "no_space")
    assert ROWS[Phase.PASSED, happened.event].spends == "unjudged"
    key = f"{UNIT}:{bench.record.attempt.payload_sha256 if bench.record.attempt else ''}:w1"
    bench.shared.stored.spent["unjudged:" + key] = UNJUDGED_MAX - 1
    happened = await switching.fill_slot(bench.step())
    assert (happened.reason, happened.changes["until"]) == ("operator", -1.0)


async def test_the_turn_at_the_gate_and_its_tries() -> None:
    bench = Bench()
    key = f"{UNIT}:{bench.record.attempt.payload_sha256 if bench.record.attempt else ''}:w1"
    happened = await gating.await_gate(bench.step())
    assert (happened.event, bench.shared.gate_owner) == (Event.GATE_FREE, UNIT)
    bench.shared.release_gate(UNIT)
    bench.shared.stored.spent["try:" + key] = ATTEMPTS_MAX
    happened = await gating.await_gate(bench.step())
    assert (happened.event, happened.reason) == (Event.EXHAUSTED, "exhausted")
    bench.shared.stored.spent["unjudged:" + key] = 2  # two of the three ended in order, without a judgement
    assert (await gating.await_gate(bench.step())).event is Event.GATE_FREE
    bench.shared.release_gate(UNIT)
    bench.shared.stored.spent["interruption:" + key] = 1
    assert (await gating.await_gate(bench.step())).event is Event.GATE_FREE


@pytest.mark.parametrize("fault", [None, Unreachable("away"), Refused("bit rot", code="corrupt")])
async def test_whatever_comes_of_it_the_next_ones_turn_comes(fault: InterlockError | None) -> None:
    bench = Bench()
    bench.host.fails = {("load", "candidate"): fault} if fault else {}
    await gating.await_gate(bench.step())
    assert bench.shared.gate_lock.locked()
    await bench.run()
    assert (bench.shared.gate_owner, bench.shared.gate_lock.locked()) == ("", False)
