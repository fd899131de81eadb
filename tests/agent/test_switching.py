"""The steps around a switch, against a host that is told what to answer: who is to blame for what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from interlock_agent.core.records import Attempt, Wish
from interlock_agent.core.states import Event, Phase
from interlock_agent.steps import switching
from interlock_shared.errors import Never, Refused
from tests.agent.material import UNIT, digest_of, the_manifest
from tests.agent.test_gating import Bench

PREVIOUS = the_manifest("0.9.0", golden=True)
SERVES: dict[str, Any] = {"unit": UNIT, "generation": 3, "confirmed": f"{UNIT}/1.0.0", "trial": 0, "outcome": {}}
CANDIDATE = {"worker": "candidate-1", "role": "candidate", "pid": 5, "release": f"{UNIT}/1.1.0", "generation": 3}


class Switch:
    """A unit whose candidate waits to be promoted, or whose previous release is wanted back. `refusals`: of the next
    orders of a kind; when they are spent the order is carried out."""

    def __init__(self, phase: Phase, origin: str = "rollout") -> None:
        self.bench = Bench()
        self.refusals: dict[str, list[str]] = {}
        self.orders: list[Any] = []
        self.status = SERVES | {"workers": [CANDIDATE], "gap": {"last_s": 0.0}}
        made, wanted = self.bench, PREVIOUS if origin != "rollout" else self.bench.manifest
        made.put(f"slots/{UNIT}/b", wanted, 2)
        wish = Wish(wanted.version, digest_of(wanted), "w1", origin=origin)
        attempt = Attempt(wish, payload_sha256=wanted.payload_sha256(), slot="b", worker="candidate-1")
        made.record = replace(made.record, phase=phase.value, attempt=attempt)
        scripted = made.host.request

        async def request(order: Any) -> dict[str, Any]:
            self.orders.append(order)
            op = type(order).__name__.lower()
            if self.refusals.get(op):
                raise Refused("no", code=self.refusals[op].pop(0))
            if op == "status":
                return {"units": [self.status]}
            return {"swap_ms": 1.0, "cut": 0} if op == "promote" else await scripted(order)

        made.host.request = request  # type: ignore[method-assign]

    def sent(self, op: str) -> list[Any]:
        return [order for order in self.orders if type(order).__name__.lower() == op]


@pytest.mark.parametrize("code", ["hook_away", "io"])
async def test_a_server_that_is_down_or_a_disk_that_is_full_is_waited_for(code: str) -> None:
    """Nothing was changed, so the candidate is still there: it is promoted when the rest is back."""
    one = Switch(Phase.SWITCHING)
    one.refusals["promote"] = [code, code]
    happened = await switching.promote(one.bench.step())
    assert happened.event is Event.PROMOTED
    assert len(one.sent("promote")) == 3
    assert {order.worker for order in one.sent("promote")} == {"candidate-1"}


async def test_a_candidate_that_ends_while_its_server_is_down_is_gone() -> None:
    one = Switch(Phase.SWITCHING)
    one.refusals["promote"] = ["hook_away"]
    one.status = {**one.status, "workers": []}
    happened = await switching.promote(one.bench.step())
    assert (happened.event, happened.reason) == (Event.GONE, "candidate_gone")
    assert len(one.sent("promote")) == 1


async def test_a_hook_that_failed_is_a_failed_switch() -> None:
    one = Switch(Phase.SWITCHING)
    one.refusals["promote"] = ["hook_failed"]
    outcome = {"generation": 3, "outcome": "reverted", "reason": "hook_failed"}
    one.status = {**one.status, "outcome": outcome, "workers": []}
    happened = await switching.promote(one.bench.step())
    assert (happened.event, happened.reason) == (Event.HOST_REVERTED, "hook_failed")
    assert len(one.sent("promote")) == 1, "it is not tried again: what the owner's hook says stands"


@pytest.mark.parametrize("code", sorted(switching.NOT_ITS_FAULT))
async def test_what_cannot_come_back_now_stays_the_one_to_go_back_to(code: str) -> None:
    one = Switch(Phase.RESTORING, "late")
    one.refusals["load"] = [code]
    happened = await switching.restore(one.bench.step())
    assert (happened.event, happened.reason) == (Event.LATER, code)


@pytest.mark.parametrize("code", ["corrupt", "load_failed", "worker_died"])
async def test_what_is_broken_is_not_gone_back_to(code: str) -> None:
    one = Switch(Phase.RESTORING, "late")
    one.refusals["load"] = [code]
    with pytest.raises(Never, match="no") as refused:
        await switching.restore(one.bench.step())
    assert refused.value.code == code


async def test_what_does_not_fit_beside_what_serves_comes_back_in_its_place() -> None:
    one = Switch(Phase.RESTORING, "late")
    one.refusals["load"] = ["out_of_memory"]
    happened = await switching.restore(one.bench.step())
    assert happened.event is Event.LOADED
    beside, alone = one.sent("load")
    assert (beside.gap_s, alone.gap_s > 0) == (0.0, True)


async def test_what_does_not_fit_alone_either_is_no_way_back() -> None:
    one = Switch(Phase.RESTORING, "late")
    one.refusals["load"] = ["out_of_memory", "out_of_memory"]
    with pytest.raises(Never) as refused:
        await switching.restore(one.bench.step())
    assert refused.value.code == "out_of_memory"
