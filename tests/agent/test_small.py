"""Memory, leaks and energy: the judgements, and the gate's run with a host and a device that tell them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from interlock_agent.config import Config
from interlock_agent.core.gate import small
from interlock_agent.core.gate.small import Held, Spent
from interlock_agent.core.states import Event
from interlock_agent.core.statistics import Interval, slope_interval
from interlock_shared.documents import CheckResult
from tests.agent.material import UNIT, the_manifest
from tests.agent.test_gating import GOLDEN, Bench, ScriptedHost
from tests.fakes.fetcher import FakeHardware

NA = "not_applicable"
LATER = ("inconclusive", "too_little_free")
MIB = 2**20


def told(rows: list[CheckResult]) -> list[tuple[str, str]]:
    return [(row.outcome, row.reason) for row in rows]


@pytest.mark.parametrize(
    ("mine", "live", "leaving", "free", "limit", "peak", "headroom", "both"),
    [
        (Held(10, 10), None, 0, None, None, (NA, "no_limit"), (NA, "not_told"), (NA, "no_incumbent")),
        (Held(10, 10), None, 0, 0, 10, ("pass", "ok"), ("pass", "ok"), (NA, "no_incumbent")),
        (Held(11, 10), None, 0, 1, 10, ("fail", "too_large"), ("pass", "ok"), (NA, "no_incumbent")),
        (Held(12, 10), None, 0, 1, 100, ("pass", "ok"), LATER, (NA, "no_incumbent")),
        (Held(21, 10), None, 0, 1, 100, ("pass", "ok"), ("fail", "too_large"), (NA, "no_incumbent")),
        (Held(10, None), None, 0, 0, None, (NA, "no_limit"), ("pass", "ok"), (NA, "no_incumbent")),
        (Held(10, 8), Held(9, 7), 0, 4, None, (NA, "no_limit"), ("pass", "ok"), ("pass", "ok")),
        (Held(10, 8), Held(9, 7), 0, 3, None, (NA, "no_limit"), ("pass", "ok"), LATER),
        (Held(10, 8), Held(11, 7), 0, 3, None, (NA, "no_limit"), ("pass", "ok"), ("fail", "too_large")),
        (Held(10, 8), Held(9, 7), 1, 3, None, (NA, "no_limit"), ("pass", "ok"), ("pass", "ok")),
        (Held(10, 8), Held(9, 7), 1, None, None, (NA, "no_limit"), (NA, "not_told"), (NA, "not_told")),
        (Held(10, 8), Held(None, None), 0, 9, None, (NA, "no_limit"), ("pass", "ok"), (NA, "not_told")),
        (Held(None, None), Held(9, 7), 0, 9, 5, (NA, "not_told"), (NA, "not_told"), (NA, "not_told")),
    ],
)
def test_memory_alone_and_beside_what_serves(
    mine: Held, live: Held | None, leaving: int, free: int | None, limit: int | None,
    peak: tuple[str, str], headroom: tuple[str, str], both: tuple[str, str],
) -> None:  # fmt: skip
    rows = small.memory("gpu_", mine, live, leaving, (free, 20), limit)
    assert told(rows) == [peak, headroom, both]
    assert [row.check for row in rows] == ["gpu_memory_peak", "gpu_memory_headroom", "gpu_memory_both"]


def series(per_run: float, blocks: int, runs: int = 25, noise: int = 0, seed: int = 1) -> list[tuple[int, int]]:
    dice = random.Random(seed)
    return [
        (n, 100 * MIB + int(per_run * n) + (dice.randint(-noise, noise) if noise else 0))
        for n in range(runs, (blocks + 1) * runs, runs)
    ]


def stepped(blocks: int, at: int, step: int) -> list[tuple[int, int]]:
    """An allocator that takes one arena more."""
    return [(25 * n, 100 * MIB + (step if n >= at else 0)) for n in range(1, blocks + 1)]


@pytest.mark.parametrize(
    ("words", "points", "outcome", "reason"),
    [
        ("nothing", series(0, 12), "pass", "ok"),
        ("10 kB a run", series(10_000, 12), "fail", "leaks"),
        ("10 kB a run, under noise", series(10_000, 24, noise=500_000), "fail", "leaks"),
        ("noise alone", series(0, 24, noise=2 * MIB), "pass", "ok"),
        ("less than the limit", series(1_000, 192), "pass", "ok"),
        ("one step of 8 MiB", stepped(24, 12, 8 * MIB), "pass", "ok"),
        ("an allocator's step of a model with one run a block", series(20_000, 12, runs=1), "pass", "ok"),
        ("and a large step at its end", [*series(20_000, 11, runs=1), (12, 200 * MIB)], "pass", "ok"),
        ("too few", series(10_000, 7), NA, "too_few_blocks"),
        ("an older host", [(n, 0) for n in range(100)], NA, "not_told"),
        ("many blocks", series(10_000, 5_000), "fail", "leaks"),
    ],
)
def test_a_leak_is_a_slope_that_is_certain(
    words: str, points: list[tuple[int, int]], outcome: str, reason: str
) -> None:
    found = small.leak(points, MIB)
    assert (found.outcome, found.reason) == (outcome, reason), words
    if outcome != NA:
        assert found.low is not None
        assert found.high is not None
        assert found.low <= float(found.measured or 0) <= found.high


def test_of_many_blocks_so_many_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def watched(points: Sequence[tuple[float, float]], confidence: float) -> Interval:
        looked_at.append(len(points))
        return slope_interval(points, confidence)

    monkeypatch.setattr(small, "slope_interval", watched)
    small.leak(series(10_000, 1_000), MIB)
    assert looked_at == [250], "slopes between all of them would take seconds"


def test_a_leak_without_a_limit_is_told() -> None:
    found = small.leak(series(10_000, 20), None)
    assert (found.outcome, found.reason) == (NA, "no_limit")
    assert found.measured == pytest.approx(10_000_000)


@pytest.mark.parametrize(
    ("mine", "limit", "told"),
    [
        (Spent(), 1.0, (NA, "not_told", None)),
        (Spent(0.0, 100), 1.0, (NA, "not_told", None)),  # a counter that never moved
        (Spent(50.0, 100), None, (NA, "no_limit", 0.5)),
        (Spent(50.0, 100), 0.5, ("pass", "ok", 0.5)),
        (Spent(50.0, 100), 0.4, ("fail", "too_much_energy", 0.5)),
    ],
)
def test_energy_of_an_inference(mine: Spent, limit: float | None, told: tuple[str, str, float | None]) -> None:
    found = small.energy(mine, Spent(10.0, 100), limit)
    assert (found.outcome, found.reason, found.measured) == told
    assert found.incumbent == (None if told[2] is None else 0.1)


# --- in the gate's run ------------------------------------------------------------------------------------------------


@dataclass
class TellingHost(ScriptedHost):
    """`leak`: bytes that the candidate loses in a run."""

    leak: int = 0
    runs: int = 0

    def _load(self, order: Any, role: str) -> dict[str, Any]:
        return {**super()._load(order, role), "pid": {"candidate": 11, "twin": 12}[role]}

    def _probe(self, order: Any, role: str) -> dict[str, Any]:
        self.runs += order.runs if role == "candidate" else 0
        device.joules += order.runs * (0.5 if role == "candidate" else 0.25)
        return {**super()._probe(order, role), "resident_bytes": 50 * MIB + self.leak * self.runs}

    def _status(self, order: Any, role: str) -> dict[str, Any]:
        del order, role
        workers = [("live-1", 10, "live"), ("candidate-1", 11, "candidate"), ("twin-1", 12, "twin")]
        return {
            "units": [
                {"unit": "other", "workers": [{"worker": "live-9", "pid": 99, "role": "live"}]},
                {"unit": UNIT, "workers": [{"worker": w, "pid": p, "role": r} for w, p, r in workers]},
            ]
        }


@dataclass
class Device:
    joules: float = 0.0
    held: dict[int, dict[str, int]] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    energy: bool = True


device = Device()


class TellingHardware(FakeHardware):
    def free(self) -> dict[str, int]:
        return device.free

    def process(self, pid: int) -> dict[str, int]:
        return device.held.get(pid, {})

    def energy_j(self) -> float | None:
        return device.joules if device.energy else None


def bench(gate: dict[str, Any] | None = None, **host: Any) -> Bench:
    """A device on which all is told: the live worker (10), the candidate (11), its twin (12), a stranger (99)."""
    device.__init__()  # type: ignore[misc]
    sizes = {10: 40, 11: 60, 12: 40, 99: 500}
    device.held = {
        pid: {"peak_bytes": (size + 5) * MIB, "resident_bytes": size * MIB, "gpu_bytes": 2 * size * MIB}
        for pid, size in sizes.items()
    }
    device.free = {"memory_free_bytes": 1000 * MIB, "gpu_memory_free_bytes": 1000 * MIB}
    made = Bench(config=Config.model_validate({"defaults": {"gate": gate or {}}}))
    made.host = TellingHost(**host)
    made.shared.ports = replace(made.shared.ports, host=made.host, hardware=TellingHardware())
    return made


async def found(made: Bench) -> dict[str, CheckResult]:
    happened = await made.run()
    verdict = made.verdict(happened)
    assert happened.reason == verdict.reason
    assert (happened.event is Event.ACCEPT) == (verdict.outcome == "accept")
    return {row.check: row for stage in verdict.stages if stage.stage == "small" for row in stage.checks}


async def test_what_the_device_tells_is_in_the_verdict() -> None:
    rows = await found(bench())
    assert {name: (row.outcome, row.measured, row.incumbent) for name, row in rows.items()} == {
        "memory_peak": (NA, 65 * MIB, 45 * MIB),
        "memory_headroom": ("pass", 65 * MIB, None),
        "memory_both": ("pass", 110 * MIB, None),
        "gpu_memory_peak": (NA, 120 * MIB, 80 * MIB),
        "gpu_memory_headroom": ("pass", 120 * MIB, None),
        "gpu_memory_both": ("pass", 200 * MIB, None),
        "memory_leak_per_1000": ("pass", 0.0, None),
        "energy_per_inference": (NA, 0.5, 0.25),
    }
    assert rows["memory_both"].limit == (1000 + 60 + 40 + 40) * MIB, "as if neither were loaded, and the twin gone"


@pytest.mark.parametrize(
    ("gate", "host", "check", "reason"),
    [
        ({"memory_max_bytes": 65 * MIB - 1}, {}, "memory_peak", "too_large"),
        ({"gpu_memory_max_bytes": 120 * MIB - 1}, {}, "gpu_memory_peak", "too_large"),
        ({}, {"leak": 10_000}, "memory_leak_per_1000", "leaks"),
        ({"energy_max_j": 0.4}, {}, "energy_per_inference", "too_much_energy"),
    ],
)
async def test_what_is_too_much_is_refused(gate: dict[str, Any], host: dict[str, Any], check: str, reason: str) -> None:
    rows = await found(bench(gate, **host))
    assert [(name, row.reason) for name, row in rows.items() if row.outcome == "fail"] == [(check, reason)]


async def test_a_leak_that_the_publisher_allows_passes() -> None:
    made = bench(leak=10_000)
    generous = Bench(the_manifest(**GOLDEN, gates={"memory_leak_max_bytes_per_1000": 20 * MIB}))
    generous.host = made.host
    generous.shared.ports = replace(generous.shared.ports, host=made.host, hardware=TellingHardware())
    rows = await found(generous)
    assert rows["memory_leak_per_1000"].outcome == "pass"
    assert rows["memory_leak_per_1000"].measured == pytest.approx(10_000_000)


@pytest.mark.parametrize(("total", "outcome"), [(None, "inconclusive"), (4000, "inconclusive"), (1100, "fail")])
async def test_a_candidate_beside_which_the_live_one_does_not_fit_waits_or_never_fits(
    total: int | None, outcome: str
) -> None:
    made = bench()
    made.shared.fingerprint = {} if total is None else {"memory_bytes": total * MIB}
    device.held[11]["peak_bytes"] = 700 * MIB
    device.held[10]["peak_bytes"] = 500 * MIB
    rows = await found(made)
    assert [name for name, row in rows.items() if row.outcome == outcome] == ["memory_both"]


async def test_where_nothing_is_told_nothing_passes() -> None:
    made = bench()
    device.held, device.free, device.energy = {}, {}, False
    rows = await found(made)
    silent = {"memory_headroom", "memory_both", "gpu_memory_peak", "gpu_memory_headroom", "gpu_memory_both"}
    assert {row.reason for name, row in rows.items() if name in {*silent, "energy_per_inference"}} == {"not_told"}
    assert {row.outcome for name, row in rows.items() if name in silent} == {NA}


async def test_on_shared_memory_the_gpu_is_not_asked_apart() -> None:
    made = bench({"gpu_memory_max_bytes": 1})
    made.shared.fingerprint = {"gpu": "Orin (ga10b)", "gpu_integrated": True}
    rows = await found(made)
    assert rows["gpu_memory_peak"].reason == "integrated"
    assert "gpu_memory_both" not in rows


@pytest.mark.parametrize(
    ("alone", "outcome", "reason"),
    [(True, "fail", "too_much_energy"), (False, "inconclusive", "not_alone")],
)
def test_energy_beyond_the_limit_says_nothing_while_others_are_served(alone: bool, outcome: str, reason: str) -> None:
    row = small.energy(Spent(30.0, 10), Spent(), 1.0, alone=alone)
    assert (row.outcome, row.reason, row.measured) == (outcome, reason, 3.0)
