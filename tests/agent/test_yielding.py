"""The gate steps back in pairs that stay fair: against a host whose applications feel it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from interlock_agent.core.gate import fast as judge
from interlock_agent.core.gate.guest import NICE, REQUESTS_MIN
from interlock_agent.core.states import Event
from interlock_shared.errors import Refused
from tests.agent.material import UNIT, the_manifest
from tests.agent.test_gating import GOLDEN, Bench, ScriptedHost


@dataclass
class Felt(ScriptedHost):
    """`p99_ms(look)` of the model that serves; `undone`: whether a niceness can be."""

    undone: bool = True
    nices: list[tuple[str, int]] = field(default_factory=list)
    loads: list[tuple[str, int]] = field(default_factory=list)
    hung: int = 0  # first loads that take too long
    looks: int = 0
    every: int = 7  # looks after which the applications feel it, or no more

    def _status(self, order: Any, role: str) -> dict[str, Any]:
        del order, role
        felt = (self.looks // self.every) % 2
        self.looks += 1
        recent = {"count": REQUESTS_MIN, "p50_ms": 5.0, "p99_ms": 30.0 if felt else 10.0}
        return {"units": [{"unit": UNIT, "counters": {"requests": self.looks, "recent": recent}}]}

    def _load(self, order: Any, role: str) -> dict[str, Any]:
        self.loads.append((role, order.options.get("nice", 0)))
        if len(self.loads) <= self.hung:
            raise Refused("no answer within 120 s; killed", code="worker_hung")
        return super()._load(order, role)

    def _probe(self, order: Any, role: str) -> dict[str, Any]:
        self.nices.append((role, order.nice))
        return super()._probe(order, role) | {"nice": order.nice if self.undone else 0}


async def verdict_of(host: Felt, **gates: Any) -> tuple[Any, dict[str, Any], dict[str, list[int]]]:
    more: dict[str, Any] = {**GOLDEN, **({"gates": gates} if gates else {})}
    bench = Bench(the_manifest(**more))
    object.__setattr__(bench.shared.ports, "host", host)
    happened = await bench.run()
    samples = bench.disk.read(f"verdicts/{UNIT}/3.samples.json")
    assert samples is not None
    return happened, bench.verdict(happened).environment["live"], json.loads(samples)["samples"]


@pytest.mark.parametrize("every", [3, 5, 7])
async def test_both_of_a_pair_are_equally_nice(every: int) -> None:
    host = Felt(every=every)
    happened, live, samples = await verdict_of(host)
    assert happened.event is Event.ACCEPT
    warm_up = 2 * 2 * judge.WARM_UP_WINDOW
    alone = len(host.nices) - warm_up - 2 * (judge.SELF_TEST_PAIRS + judge.LOOKS[0])
    paired = host.nices[warm_up : len(host.nices) - alone]
    pairs = list(zip(paired[::2], paired[1::2], strict=True))
    assert all(one[1] == other[1] for one, other in pairs)
    assert {one[1] for one, _ in pairs} == {NICE}, "from the first one on"
    assert all(nice == NICE for _, nice in host.nices[:warm_up])
    assert all(nice == 0 for _, nice in host.nices[len(host.nices) - alone :])
    assert live["nice"] == NICE
    assert live["nice_blocks"] == sum(nice > 0 for _, nice in host.nices)
    assert live["yielded_s"] > 0
    for name in ("candidate", "incumbent"):
        assert len(samples[f"{name}_nice_wall_ns"]) % judge.BLOCK_RUNS_MAX == 0
    assert len(samples["candidate_wall_ns"]) >= judge.ABSOLUTE_RUNS, "limits are judged on what was not nice"


async def test_where_it_could_not_be_undone_nothing_is_told_of_it() -> None:
    happened, live, samples = await verdict_of(Felt(undone=False))
    assert (happened.event, live["nice"], live["nice_blocks"]) == (Event.ACCEPT, 0, 0)
    assert not [name for name in samples if "nice" in name]


@pytest.mark.parametrize(
    ("hung", "gates", "loads"),
    [
        (0, {}, [("candidate", NICE), ("twin", NICE)]),
        (1, {}, [("candidate", NICE), ("candidate", 0), ("twin", NICE)]),
        (0, {"load_s_max": 5.0}, [("candidate", 0), ("twin", 0)]),
    ],
    ids=["nice", "that took too long", "a load that has a limit"],
)
async def test_processes_are_started_nicer_where_that_hurts_nobody(
    hung: int, gates: dict[str, Any], loads: list[tuple[str, int]]
) -> None:
    host = Felt(hung=hung)
    happened, _, _ = await verdict_of(host, **gates)
    assert (happened.event, host.loads) == (Event.ACCEPT, loads)


async def test_where_nobody_is_served_nobody_is_nicer() -> None:
    host = Felt()
    host._status = lambda order, role: {"units": []}  # type: ignore[method-assign]
    happened, live, _ = await verdict_of(host)
    assert (happened.event, live["nice_blocks"], {nice for _, nice in host.nices + host.loads}) == (
        Event.ACCEPT,
        0,
        {0},
    )


async def test_the_picture_shows_both_of_equally_nice_processes() -> None:
    bench = Bench(the_manifest(**GOLDEN))
    object.__setattr__(bench.shared.ports, "host", Felt())
    verdict = bench.verdict(await bench.run())
    shown = verdict.distributions
    assert shown.candidate is not None
    assert shown.incumbent is not None
    assert shown.candidate.samples == shown.incumbent.samples
