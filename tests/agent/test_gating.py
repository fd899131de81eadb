"""The gate's run against a host that is told how its workers behave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from interlock_agent.adapters.programs import OwnersPrograms
from interlock_agent.config import Config
from interlock_agent.core import quarantine
from interlock_agent.core.gate import fast as judge
from interlock_agent.core.records import Installed, UnitRecord
from interlock_agent.core.states import Event, Phase
from interlock_agent.ports import Ports, Stored
from interlock_agent.steps import gating
from interlock_agent.steps.base import Happened, Shared, Step
from interlock_agent.steps.gate.stages import CRASHED, STAGES
from interlock_shared import canonical, seals, trust
from interlock_shared import manifest as manifests
from interlock_shared.documents import Verdict
from interlock_shared.errors import InterlockError, Refused, Unreachable
from interlock_shared.gates import Stage
from interlock_shared.manifest import Manifest
from tests.agent.material import UNIT, digest_of, record, the_manifest, wish
from tests.fakes.disk import Disk
from tests.fakes.fetcher import FakeFetcher, FakeHardware, FakeProbes, Shelf
from tests.fakes.journal import FakeJournal, Memory
from tests.fakes.slots import FakeSlots

NOW = 1_700_000_000.0


class Clock:
    def now(self) -> float:
        return NOW

    def floor(self) -> float:
        return 0.0

    def raise_floor(self, seconds: float) -> None:
        del seconds

    def forget_floor(self) -> None:
        raise AssertionError

    def behind(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 5.0

    async def sleep(self, seconds: float) -> None:
        del seconds

    def dice(self) -> float:
        return 0.5


class Key:
    def __init__(self) -> None:
        self.signer = CryptoSigner.generate_ed25519()

    async def sign_verdict(self, verdict: Verdict) -> bytes:
        return trust.seal(verdict, trust.VERDICT_TYPE, self.signer)


@dataclass
class ScriptedHost:
    """`fails`: (order, role) -> error; `ratio(pair)`: candidate ÷ incumbent."""

    fails: dict[tuple[str, str], InterlockError] = field(default_factory=dict)
    ratio: Callable[[int], float] = lambda pair: 1.0
    loaded: dict[str, Any] = field(default_factory=dict)
    hits: dict[str, str] = field(default_factory=lambda: {"candidate": "1" * 50, "twin": "1" * 50})
    outside: int = 0
    orders: list[tuple[str, str]] = field(default_factory=list)
    blocks: int = 0
    warm_up: int = 2 * judge.WARM_UP_WINDOW
    peak: int = 1000

    async def request(self, order: Any) -> dict[str, Any]:
        op = type(order).__name__.lower()
        role = order.role if op == "load" else str(getattr(order, "worker", "")).partition("-")[0]
        self.orders.append((op, role))
        if (op, role) in self.fails:
            raise self.fails[op, role]
        return dict(getattr(self, f"_{op}", lambda order, role: {"units": []})(order, role))

    def _load(self, order: Any, role: str) -> dict[str, Any]:
        shape = {"dtype": "FP32", "shape": ["N", 4]}
        usual: dict[str, Any] = {
            "worker": f"{role}-1",
            "inputs": [{"name": "x", **shape}],
            "outputs": [{"name": "y", **shape}],
        }
        usual |= {"providers": order.options["providers"], "fell_back": False, "load_s": 0.1, "runtime": "r 1"}
        return {**usual, "memory_bytes": self.peak, **(self.loaded if role == "candidate" else {})}

    def _evaluate(self, order: Any, role: str) -> dict[str, Any]:
        del order
        outputs = [{"name": "y", "compared": True, "outside": self.outside, "max_abs": 0.0, "max_rel": 0.0}]
        score = {"metric": "top1", "better": "higher", "kind": "hits", "rows": self.hits[role]}
        return {"items": 50, "outputs": outputs, "score": score, "memory_bytes": self.peak}

    def _probe(self, order: Any, role: str) -> dict[str, Any]:
        ns = 1_000_000
        if role == "candidate":
            warm = self.blocks - self.warm_up
            ns = int(ns * self.ratio(warm)) if warm >= 0 else ns
            self.blocks += 1
        return {"wall_ns": [ns] * order.runs, "work_ns": [ns] * order.runs, "memory_bytes": self.peak}

    async def event(self, unit: str, timeout_s: float) -> dict[str, Any] | None:
        del unit, timeout_s
        return None

    def drop_events(self, unit: str) -> None:
        del unit


GOLDEN: dict[str, Any] = {"golden": True, "labels": True}


class Bench:
    """A unit at its gate."""

    def __init__(self, manifest: Manifest | None = None, *, first: bool = False, config: Config | None = None) -> None:
        self.manifest = manifest or the_manifest(**GOLDEN)
        self.host, self.key, self.disk = ScriptedHost(), Key(), Disk()
        self.slots = FakeSlots(self.disk)
        digest = digest_of(self.manifest)
        self.put(f"incoming/{UNIT}/{digest}", self.manifest, 3)
        if not first:
            self.put(f"slots/{UNIT}/a", the_manifest("1.0.0", golden=True), 1)
            self.disk.symlink(f"slots/{UNIT}/confirmed", "a")
        fetcher = FakeFetcher(self.disk, Shelf({}, {}, self._nothing))
        journal = FakeJournal(Memory(), "press-7")
        ports = Ports(
            Clock(), journal, self.host, self.slots, fetcher, FakeHardware(), self.key, OwnersPrograms(), FakeProbes()
        )
        stored = Stored()
        self.shared = Shared(ports, config or Config(), "press-7", stored, fingerprint={"gpu": "none"})
        self.shared.fingerprint_sha256 = "f" * 64
        self.record = record(Phase.GATING, wish(manifest_sha256=digest))
        if not first:
            old = the_manifest("1.0.0", golden=True)
            self.record = replace(self.record, confirmed=Installed("1.0.0", digest_of(old), old.payload_sha256(), "a"))

    async def _nothing(self) -> bytes | None:
        return None

    def put(self, folder: str, manifest: Manifest, generation: int) -> None:
        self.disk.make(f"{folder}/.interlock")
        seal = seals.seal(manifest, digest_of(manifest), "fp32", generation)
        self.disk.write(f"{folder}/.interlock/manifest.json", manifests.to_bytes(manifest))
        self.disk.write(f"{folder}/.interlock/seal.json", seals.encode(seal))

    def step(self, unit: UnitRecord | None = None) -> Step:
        return Step(self.shared, unit or self.record, self.shared.config.unit(UNIT))

    async def run(self) -> Happened:
        return await gating.gate(self.step())

    def verdict(self, happened: Happened) -> Verdict:
        return trust.open_verdict(
            canonical.encode(happened.data["envelope"]), [self.key.signer.public_key], device="press-7"
        )


def outcomes(verdict: Verdict) -> dict[str, str]:
    return {check.check: check.outcome for stage in verdict.stages for check in stage.checks}


async def test_a_good_release_is_accepted_and_its_verdict_holds() -> None:
    bench = Bench()
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.ACCEPT, "ok")
    assert happened.changes["worker"] == "candidate-1"
    assert ("retire", "twin") in bench.host.orders
    assert ("retire", "candidate") not in bench.host.orders, "what passed is promoted, not loaded again"
    verdict = bench.verdict(happened)
    assert [stage.stage for stage in verdict.stages] == list(STAGES)
    assert verdict.payload_sha256 == bench.manifest.payload_sha256()
    assert verdict.incumbent is not None
    assert verdict.incumbent.baseline == "twin"
    kept = bench.disk.read(f"verdicts/{UNIT}/3.json")
    samples = bench.disk.read(f"verdicts/{UNIT}/3.samples.json")
    assert kept == canonical.encode(verdict.model_dump(mode="json", by_alias=True))
    assert samples is not None
    assert verdict.samples_sha256 == canonical.sha256(samples)
    raw = json.loads(samples)["samples"]
    assert len(raw["candidate_wall_ns"]) == len(raw["incumbent_work_ns"]) == judge.LOOKS[0] * judge.BLOCK_RUNS_MAX
    assert len(raw["self_test_one_wall_ns"]) == judge.SELF_TEST_PAIRS * judge.BLOCK_RUNS_MAX
    assert bench.shared.gate_owner == ""


async def test_a_first_install_has_no_pass_for_what_needs_an_incumbent() -> None:
    bench = Bench(first=True)
    happened = await bench.run()
    found = outcomes(bench.verdict(happened))
    assert happened.event is Event.ACCEPT
    for check in ("contract", "accuracy_drop", "latency_ratio"):
        assert found[check] == "not_applicable"
    assert bench.verdict(happened).incumbent is None
    assert ("load", "twin") not in bench.host.orders


@pytest.mark.parametrize("code", sorted(CRASHED))
@pytest.mark.parametrize(("op", "stage"), [("load", "loads"), ("evaluate", "right"), ("probe", "fast")])
async def test_a_candidate_that_fails_in_any_stage_is_rejected(op: str, stage: Stage, code: str) -> None:
    bench = Bench()
    bench.host.fails[op, "candidate"] = Refused("it is dead", code=code)
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.REJECT, code)
    assert happened.changes["failed_check"] == code
    stages: dict[str, str] = {one.stage: one.outcome for one in bench.verdict(happened).stages}
    assert stages[stage] == "fail"
    after = list(STAGES)[list(STAGES).index(stage) + 1 :]
    assert {stages[name] for name in after} == {"not_run"}


@pytest.mark.parametrize("op", ["load", "evaluate", "probe"])
@pytest.mark.parametrize("code", sorted(CRASHED - {"out_of_memory"}))  # of that, test_recorded.py tells
async def test_the_twins_trouble_is_not_the_candidates_fault(op: str, code: str) -> None:
    bench = Bench()
    bench.host.fails[op, "twin"] = Refused("it is dead", code=code)
    bench.host.fails["retire", "twin"] = Refused("what twin", code="unknown_worker")
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "twin_failed")
    assert happened.changes["until"] > NOW - 1


@pytest.mark.parametrize("op", ["configure", "load", "evaluate", "probe"])
async def test_a_host_that_is_away_says_nothing_of_the_candidate(op: str) -> None:
    bench = Bench()
    bench.host.fails[op, "" if op == "configure" else "candidate"] = Unreachable("away")
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.LATER, "unreachable")


async def test_a_refusal_that_is_not_the_candidates_own_is_later() -> None:
    bench = Bench()
    bench.host.fails["load", "candidate"] = Refused("bit rot", code="corrupt")
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "corrupt")


SHAPE = {"dtype": "FP32", "shape": ["N", 4]}


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        ({"fell_back": True}, "provider_fallback"),
        ({"providers": ["OtherProvider"]}, "provider_fallback"),
        ({"outputs": [{"name": "z", **SHAPE}]}, "signature_mismatch"),
    ],
)
async def test_a_model_that_does_not_load_as_asked_is_rejected(loaded: dict[str, Any], reason: str) -> None:
    bench = Bench()
    bench.host.loaded = loaded
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.REJECT, reason)
    assert ("evaluate", "candidate") not in bench.host.orders


@pytest.mark.parametrize(
    ("unit", "again"),
    [
        ({}, False),
        ({"trial": {"min_seconds": 90.0}}, False),
        ({"providers": ["OtherProvider"]}, True),
        ({"provider_options": {"CPUExecutionProvider": {"arena": "0"}}}, True),
        ({"threads": 2}, True),
        ({"gate": {"variants": ["fp16"]}}, True),
        ({"gate": {"command": ["/usr/local/lib/measure"]}}, True),
    ],
)
async def test_what_failed_is_tried_again_when_the_owner_runs_or_measures_it_otherwise(
    unit: dict[str, Any], again: bool
) -> None:
    bench = Bench()
    bench.host.loaded = {"fell_back": True}
    happened = await bench.run()
    after = replace(bench.record.having(**happened.changes), phase=Phase.REJECTED.value)
    entries = bench.shared.to_remember(bench.record, after, happened, "now")
    bench.shared.config = Config.model_validate({"units": {UNIT: unit}})
    around = bench.shared.surroundings(bench.record, bench.manifest)
    assert (quarantine.find(entries, bench.manifest.payload_sha256(), around) is None) == again


@pytest.mark.parametrize(
    ("change", "event", "reason"),
    [
        ({"outside": 2}, Event.REJECT, "golden_mismatch"),
        ({"hits": {"candidate": "1" * 40 + "0" * 10, "twin": "1" * 50}}, Event.REJECT, "accuracy_dropped"),
        ({"ratio": lambda pair: 2.0}, Event.REJECT, "too_slow"),
        ({"ratio": lambda pair: 2.0 if pair % 2 else 1.0}, Event.INCONCLUSIVE, "too_noisy"),
        ({"peak": 1 << 40}, Event.ACCEPT, "ok"),  # it is loaded already: what it has is not lacking
    ],
)
async def test_the_measured_decides(change: dict[str, Any], event: Event, reason: str) -> None:
    bench = Bench()
    bench.host = replace(bench.host, **change)
    bench.shared.ports = replace(bench.shared.ports, host=bench.host)
    happened = await bench.run()
    assert (happened.event, happened.reason) == (event, reason)


@pytest.mark.parametrize(
    ("ratio", "pairs"),
    [
        (lambda pair: 1.0, judge.LOOKS[0]),
        (lambda pair: 3.0, judge.LOOKS[0]),
        (lambda pair: 3.0 if pair < 4 else 1.0, judge.LOOKS[2]),
        (lambda pair: 3.0 if pair % 2 else 1.0, judge.LOOKS[-1]),
    ],
)
async def test_pairs_end_at_the_look_that_decides(ratio: Callable[[int], float], pairs: int) -> None:
    bench = Bench()
    bench.host.ratio = ratio
    await bench.run()
    assert bench.host.blocks - bench.host.warm_up == pairs


async def test_without_a_result_it_is_judged_again_and_then_a_person_decides() -> None:
    bench = Bench()
    bench.host.ratio = lambda pair: 3.0 if pair % 2 else 1.0
    for judgements in range(3):
        bench.record = bench.record.having(judgements=judgements)
        bench.host.blocks = 0
        happened = await bench.run()
        assert happened.event is Event.INCONCLUSIVE
        assert happened.changes["judgements"] == judgements + 1
        if judgements < 2:
            assert happened.changes["until"] > NOW + 299
        else:
            assert (happened.changes["until"], happened.reason) == (-1.0, "operator")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"gates": "none"}, "gates_none_forbidden"),
        ({"variants": [{"name": "fp32", "file": "model.onnx", "reference": True,
                        "requires": [{"fact": "gpu", "op": "==", "value": "orin"}]}]}, "requirement_unmet"),
        ({"signature": {"inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}],
                        "outputs": [{"name": "y", "dtype": "FP16", "shape": [-1, 4]}]}}, "contract_broken"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_is_rejected_before_it_is_loaded(more: dict[str, Any], reason: str) -> None:
    bench = Bench(the_manifest(**GOLDEN, **more))
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.REJECT, reason)
    assert [op for op, _ in bench.host.orders] == ["status"]


async def test_what_only_others_leave_too_little_of_is_asked_again() -> None:
    wanted = {"fact": "memory_free_bytes", "op": ">=", "value": 1 << 50}
    variants = [{"name": "fp32", "file": "model.onnx", "reference": True, "requires": [wanted]}]
    bench = Bench(the_manifest(**GOLDEN, variants=variants))
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.INCONCLUSIVE, "too_little_free")
    assert ("load", "candidate") not in bench.host.orders
    assert {stage.outcome for stage in bench.verdict(happened).stages[1:]} == {"not_run"}


async def test_a_release_without_golden_data_is_told_as_such() -> None:
    bench = Bench(the_manifest())
    happened = await bench.run()
    found = outcomes(bench.verdict(happened))
    assert happened.event is Event.ACCEPT
    assert found["parity"] == found["accuracy"] == found["latency_ratio"] == "not_applicable"


async def test_a_staged_folder_that_is_gone_is_later() -> None:
    bench = Bench()
    bench.disk.remove(f"incoming/{UNIT}/{digest_of(bench.manifest)}")
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "staging_lost")


async def test_the_confirmed_release_is_judged_again_alone() -> None:
    bench = Bench()
    bench.record = replace(bench.record, phase="regating", attempt=None)
    happened = await gating.regate(bench.step())
    assert happened.event is Event.ACCEPT
    verdict = bench.verdict(happened)
    assert (verdict.version, verdict.incumbent) == ("1.0.0", None)
    assert ("load", "twin") not in bench.host.orders
