"""Several forms of one model at the gate, on a host that is told: which are tried, in which order, which is taken."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from interlock_agent.cli.report import variant_rows
from interlock_agent.config import Config
from interlock_agent.core.gate import fast
from interlock_agent.core.states import Event
from interlock_agent.steps import gating
from interlock_agent.steps.gate.variants import in_order
from interlock_shared import manifest as manifests
from interlock_shared import seals
from interlock_shared.documents import Verdict
from interlock_shared.errors import Refused, Unreachable
from interlock_shared.manifest import Manifest
from tests.agent.material import UNIT, digest_of, the_manifest
from tests.agent.test_gating import Bench, ScriptedHost

MS = 1_000_000


def variant(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "file": "model.onnx", **more}


def the_release(*others: str | dict[str, Any], golden: dict[str, Any] | None = None) -> Manifest:
    """fp32 as the reference, last in the manifest; its file is every variant's."""
    listed = [variant(one) if isinstance(one, str) else one for one in others]
    listed.append(variant("fp32", reference=True))
    whole = the_manifest(golden=True, variants=listed)
    if golden is None:
        return whole
    return manifests.from_document({**whole.model_dump(mode="json", by_alias=True), "golden": golden})


@dataclass
class Forms(ScriptedHost):
    """Workers are `candidate-NAME-N`, by the variant that their folder was sealed for. `ms`: of a run; `faults`: by
    (order, variant)."""

    bench: Any = None
    ms: dict[str, float] = field(default_factory=dict)
    faults: dict[tuple[str, str], Exception] = field(default_factory=dict)
    alive: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)  # evaluations: variant, answers
    compared: bool = True
    start_s: float = 0.2
    most: int = 0

    def _sealed(self, folder: str) -> str:
        document = json.loads(self.bench.disk.read(f"{folder}/.interlock/seal.json"))
        return str(document["variant"])

    async def request(self, order: Any) -> dict[str, Any]:
        name = str(getattr(order, "worker", "")).split("-")[1:2]
        fault = self.faults.get((type(order).__name__.lower(), "".join(name)))
        if fault is not None:
            raise fault
        return await super().request(order)

    def _load(self, order: Any, role: str) -> dict[str, Any]:
        name = self._sealed(order.folder.removeprefix("/"))
        if ("load", name) in self.faults and role == "candidate":
            raise self.faults["load", name]
        worker = f"{role}-{name}-{len(self.orders)}"
        self.alive.append(worker)
        self.most = max(self.most, len(self.alive))
        return {**super()._load(order, role), "worker": worker, "start_s": self.start_s}

    def _retire(self, order: Any, role: str) -> dict[str, Any]:
        del role
        if order.worker in self.alive:
            self.alive.remove(order.worker)
        return {}

    def _evaluate(self, order: Any, role: str) -> dict[str, Any]:
        self.asked.append((order.worker.split("-")[1], order.answers))
        found = super()._evaluate(order, role)
        found["outputs"][0]["compared"] = self.compared or order.answers == "compare"
        return {**found, "score": {}}

    def _probe(self, order: Any, role: str) -> dict[str, Any]:
        name = order.worker.split("-")[1] if role == "candidate" else "twin"
        ns = int(MS * self.ms.get(name, 1.0))
        return {"wall_ns": [ns] * order.runs, "work_ns": [ns] * order.runs, "memory_bytes": self.peak}


def bench_of(manifest: Manifest, owner: Any = "fastest", **told: Any) -> tuple[Bench, Forms]:
    config = Config.model_validate({"units": {UNIT: {"gate": {"variants": owner}}}})
    bench = Bench(manifest, config=config)
    host = Forms(bench=bench, **told)
    bench.host = host
    object.__setattr__(bench.shared.ports, "host", host)
    return bench, host


def sealed(bench: Bench) -> str:
    """The variant that the staged folder is sealed for."""
    digest = bench.record.attempt.wish.manifest_sha256 if bench.record.attempt else ""
    content = bench.disk.read(f"incoming/{UNIT}/{digest}/.interlock/seal.json")
    assert content is not None
    return str(json.loads(content)["variant"])


async def judged(bench: Bench) -> tuple[Event, Verdict]:
    happened = await bench.run()
    return happened.event, bench.verdict(happened)


@pytest.mark.parametrize(
    ("ms", "chosen"),
    [
        ({"fp32": 1.0, "fp16": 0.5, "int8": 1.2}, "fp16"),
        ({"fp32": 1.0, "fp16": 0.5, "int8": 0.3}, "int8"),
        ({"fp32": 1.0, "fp16": 1.2, "int8": 1.24}, "fp32"),
        ({"fp32": 1.0, "fp16": 0.99, "int8": 0.98}, "fp32"),  # no gain that is worth it
    ],
)
async def test_the_fastest_that_is_right_is_taken(ms: dict[str, float], chosen: str) -> None:
    bench, host = bench_of(the_release("fp16", "int8"), ms=ms)
    event, verdict = await judged(bench)
    assert (event, verdict.variant) == (Event.ACCEPT, chosen)
    assert sealed(bench) == chosen, "what serves after a restart is what was chosen"
    assert [worker.split("-")[1] for worker in host.alive] == [chosen], "the others are gone, and so is the twin"
    assert {one.variant for one in verdict.others} == {"fp32", "fp16", "int8"} - {chosen}
    assert all(one.outcome == "accept" and one.distributions.candidate for one in verdict.others)
    assert len(verdict.comparisons) == 2
    assert verdict.comparisons[0].checks[0].limit == fast.FASTER


async def test_the_worker_that_is_promoted_is_the_chosen_ones() -> None:
    bench, host = bench_of(the_release("fp16"), ms={"fp16": 0.5})
    happened = await bench.run()
    assert host.alive == [happened.changes["worker"]]
    assert happened.changes["variant"] == "fp16"


async def test_one_that_fails_is_out_and_the_rest_is_still_judged() -> None:
    bench, host = bench_of(the_release("fp16", "int8"), ms={"fp16": 0.5, "int8": 9.0})
    host.faults["load", "fp16"] = Refused("no such kernel", code="load_failed")
    event, verdict = await judged(bench)
    assert (event, verdict.variant) == (Event.ACCEPT, "fp32")
    assert {one.variant: one.reason for one in verdict.others} == {"fp16": "load_failed", "int8": "too_slow"}
    assert verdict.comparisons == ()


async def test_where_none_passes_the_verdict_is_about_the_reference() -> None:
    bench, host = bench_of(the_release("fp16"), ms={"fp32": 3.0, "fp16": 2.0})
    event, verdict = await judged(bench)
    assert (event, verdict.variant, verdict.reason) == (Event.REJECT, "fp32", "too_slow")
    assert [one.variant for one in verdict.others] == ["fp16"]
    assert host.alive == []


async def test_what_crashed_is_not_why_the_whole_release_is_remembered() -> None:
    bench, host = bench_of(the_release("fp16", "int8"), ms={"fp16": 2.0, "int8": 3.0})
    host.faults["load", "fp32"] = Refused("too large for this device", code="out_of_memory")
    event, verdict = await judged(bench)
    assert (event, verdict.variant, verdict.reason) == (Event.REJECT, "fp16", "too_slow"), "not beside every incumbent"
    assert {one.variant: one.reason for one in verdict.others} == {"fp32": "out_of_memory", "int8": "too_slow"}


@pytest.mark.parametrize(("owner", "tried"), [(["int8", "fp32"], "int8"), (["fp32"], "fp32"), (["none-such"], "fp32")])
async def test_the_owners_order_takes_the_first_that_passes(owner: list[str], tried: str) -> None:
    bench, host = bench_of(the_release("fp16", "int8"), owner, ms={"int8": 1.2, "fp16": 0.1})
    event, verdict = await judged(bench)
    assert (event, verdict.variant, verdict.others) == (Event.ACCEPT, tried, ())
    assert host.asked == [(tried, "")]


async def test_the_owners_second_choice_where_the_first_does_not_pass() -> None:
    bench, _ = bench_of(the_release("fp16", "int8"), ["int8", "fp16"], ms={"int8": 9.0})
    event, verdict = await judged(bench)
    assert (event, verdict.variant) == (Event.ACCEPT, "fp16")
    assert [one.variant for one in verdict.others] == ["int8"]


NOTHING_EXPECTED: dict[str, Any] = {"file": "golden.npz", "inputs": {"x": "x"}}


async def test_of_what_nothing_is_expected_the_references_answers_are() -> None:
    bench, host = bench_of(the_release("fp16", golden=NOTHING_EXPECTED), compared=False)
    await judged(bench)
    assert host.asked == [("fp32", "keep"), ("fp16", "compare")]


async def test_the_reference_is_asked_even_where_it_is_not_tried() -> None:
    bench, host = bench_of(the_release("fp16", golden=NOTHING_EXPECTED), ["fp16"], compared=False)
    event, verdict = await judged(bench)
    assert (event, verdict.variant) == (Event.ACCEPT, "fp16")
    assert host.asked == [("fp32", "keep"), ("fp16", "compare")]
    assert sealed(bench) == "fp16"
    assert [worker.split("-")[1] for worker in host.alive] == ["fp16"]


async def test_a_host_that_is_older_than_comparing_compares_nothing() -> None:
    bench, _ = bench_of(the_release("fp16", golden=NOTHING_EXPECTED), ms={"fp16": 0.2}, start_s=0.0)
    event, verdict = await judged(bench)
    assert (event, verdict.variant) == (Event.ACCEPT, "fp32")
    assert [(one.outcome, one.reason) for one in verdict.others] == [("inconclusive", "host_too_old")]


async def test_where_one_may_still_pass_the_verdict_is_about_that_one() -> None:
    ms = {"fp32": 3.0, "fp16": 0.2}
    bench, _ = bench_of(the_release("fp16", golden=NOTHING_EXPECTED), ms=ms, start_s=0.0)
    event, verdict = await judged(bench)
    assert (event, verdict.variant, verdict.reason) == (Event.INCONCLUSIVE, "fp16", "host_too_old"), "asked again later"
    assert [(one.variant, one.reason) for one in verdict.others] == [("fp32", "too_slow")]


async def test_a_form_that_can_be_compared_with_nothing_is_refused() -> None:
    bench, host = bench_of(the_release("fp16", golden=NOTHING_EXPECTED), ["fp16"], compared=False)
    host.faults["load", "fp32"] = Refused("too large for this device", code="out_of_memory")
    event, verdict = await judged(bench)
    assert (event, verdict.reason) == (Event.REJECT, "no_reference")
    assert sealed(bench) == "fp16"


@pytest.mark.parametrize(("gpu", "reason"), [("Orin", "ok"), ("Xavier", "built_for_another")])
async def test_a_compiled_form_runs_only_where_it_was_built_for(gpu: str, reason: str) -> None:
    engine = variant("engine", compiled_context=True, built_for={"gpu": gpu, "driver": "540.3", "tensorrt": "10.3.0"})
    bench, host = bench_of(the_release(engine), ms={"engine": 0.2})
    bench.shared.fingerprint = {"gpu": "Orin", "driver": "540.3", "tensorrt": "10.3.0"}
    event, verdict = await judged(bench)
    assert event is Event.ACCEPT
    assert verdict.variant == ("engine" if reason == "ok" else "fp32")
    if reason != "ok":
        (other,) = verdict.others
        assert (other.outcome, other.reason) == ("reject", reason)
        assert other.message == "compatible: built_for: gpu 'Xavier': this device has 'Orin'"
        assert not any(name == "engine" for name, _ in host.asked)


async def test_a_host_that_goes_away_between_two_leaves_no_worker() -> None:
    bench, host = bench_of(the_release("fp16"))
    host.faults["probe", "fp16"] = Unreachable("away")
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.LATER, "unreachable")
    assert host.alive == []


async def test_one_that_dies_when_it_is_compared_is_asked_again_later() -> None:
    bench, host = bench_of(the_release("fp16"), ms={"fp16": 0.5})
    probes = 0
    inner = host._probe

    def dies(order: Any, role: str) -> dict[str, Any]:
        nonlocal probes
        if order.worker.startswith("candidate-fp32") and any("fp16" in worker for worker in host.alive):
            probes += 1
            raise Refused("killed", code="worker_died")
        return inner(order, role)

    host._probe = dies  # type: ignore[method-assign]
    happened = await bench.run()
    assert (happened.event, happened.reason, probes) == (Event.UNJUDGED, "worker_died", 1)
    assert host.alive == []


async def test_one_that_dies_beside_the_best_so_far_does_not_cost_that_its_place() -> None:
    bench, host = bench_of(the_release("fp16", "int8"), ms={"fp16": 0.5, "int8": 0.4})
    inner = host._probe

    def dies(order: Any, role: str) -> dict[str, Any]:
        judged_alone = host.orders.count(("status", "")) < 3  # at the beginning, and at the end of each form's stages
        if order.worker.startswith("candidate-fp16") and not judged_alone:
            raise Refused("the kernel wanted its memory", code="out_of_memory")
        return inner(order, role)

    host._probe = dies  # type: ignore[method-assign]
    event, verdict = await judged(bench)
    assert (event, verdict.variant) == (Event.ACCEPT, "int8"), "compared with fp32, which had kept its place"
    first, second = verdict.comparisons
    assert (first.variant, first.against, first.faster) == ("fp16", "fp32", False)
    assert [(check.outcome, check.reason) for check in first.checks] == [("inconclusive", "out_of_memory")]
    assert (second.variant, second.against, second.faster) == ("int8", "fp32", True)
    assert [worker.split("-")[1] for worker in host.alive] == ["int8"]
    words = {row[0]: row[2] for row in variant_rows(verdict.model_dump(mode="json", by_alias=True))}
    assert words["fp16"] == "not measured beside fp32: the kernel wanted its memory"


async def test_never_more_than_the_best_the_next_and_the_twin_are_loaded() -> None:
    bench, host = bench_of(the_release("fp16", "int8", "bf16"), ms={"fp16": 0.5, "int8": 0.3, "bf16": 0.2})
    await judged(bench)
    assert host.most == 3


async def again(bench: Bench, manifest: Manifest, name: str) -> Verdict:
    """Judge what is confirmed, sealed for a variant, once more."""
    seal = seals.seal(manifest, digest_of(manifest), name, 3)
    bench.put(f"slots/{UNIT}/a", manifest, 1)
    bench.disk.write(f"slots/{UNIT}/a/.interlock/seal.json", seals.encode(seal))
    return bench.verdict(await gating.regate(bench.step()))


async def test_the_same_release_again_is_about_the_form_that_serves() -> None:
    manifest = the_release("fp16")
    bench, host = bench_of(manifest, ms={"fp16": 0.5})
    verdict = await again(bench, manifest, "fp16")
    assert (verdict.variant, verdict.others) == ("fp16", ())
    assert {name for name, _ in host.asked} == {"fp16"}


async def test_the_form_that_serves_is_judged_again_whatever_the_owner_names_since() -> None:
    manifest = the_release("fp16")
    bench, _ = bench_of(manifest, ["fp32"])
    verdict = await again(bench, manifest, "fp16")
    assert (verdict.outcome, verdict.variant) == ("accept", "fp16")


@pytest.mark.parametrize("name", ["fp16", "fp32"])
async def test_what_serves_is_not_compared_with_itself_nor_is_its_slot_written_to(name: str) -> None:
    manifest = the_release("fp16", golden=NOTHING_EXPECTED)
    bench, host = bench_of(manifest, compared=False)
    verdict = await again(bench, manifest, name)
    assert host.asked == [(name, "")], "the slot is sealed for one form: the reference cannot be opened there"
    (parity,) = (check for stage in verdict.stages for check in stage.checks if check.check == "parity")
    assert (verdict.outcome, parity.outcome, parity.reason) == ("accept", "not_applicable", "no_golden")


def test_the_order_of_trying() -> None:
    variants = the_release("fp16", "int8").variants
    assert [one.name for one in in_order(variants, "fastest")] == ["fp32", "fp16", "int8"]
    assert [one.name for one in in_order(variants, ("int8", "fp32"))] == ["int8", "fp32"]
