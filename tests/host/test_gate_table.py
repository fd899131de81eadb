"""Every stage of the gate with candidates that pass, are refused, crash, hang and exhaust memory, in real processes;
and live requests to the incumbent all the while, of which none fails.

In *compatible* and *small* nothing of the candidate runs: there is nobody there to crash.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.clock import SystemClock
from interlock_agent.adapters.host_client import HostClient
from interlock_agent.config import Unit, UnitGate
from interlock_agent.core.contract import contract_of
from interlock_agent.host import messages
from interlock_agent.steps.gate.run import Baseline, Place, Run, Tried
from interlock_agent.steps.gate.stages import STAGES, judge_variant
from interlock_shared.errors import Later
from tests.agent.material import tensor, the_manifest
from tests.fakes.fetcher import FakeHardware
from tests.host import clients, models
from tests.host.rig import UNIT, Rig, running

pytestmark = pytest.mark.e2e

MIB = 2**20
SCRIPT = Path(__file__).with_name("misbehaving.py")
GATE: dict[str, Any] = {"budget_s": 3.0, "latency_ratio_max": 1000.0, "candidate_memory_bytes": 700 * MIB}


@dataclass(frozen=True)
class Row:
    """`how`: WHERE HOW of misbehaving.py, for the candidate or the `twin`. `words`: in what the verdict says."""

    stage: str
    reason: str
    how: str = ""
    gate: dict[str, Any] = field(default_factory=dict)
    unit: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    words: str = ""
    twin: bool = False


WIDER = {"signature": {"inputs": [tensor("x")], "outputs": [tensor("y", dtype="FP16")]}}
OTHER = {"signature": {"inputs": [tensor("x")], "outputs": [tensor("y"), tensor("z")], "added": ["z"]}}
TABLE = [
    Row("", "ok"),  # passes them all
    Row("compatible", "contract_broken", manifest=WIDER),
    Row("loads", "signature_mismatch", manifest=OTHER),
    Row("loads", "worker_died", "load crash", words="SIGSEGV"),
    Row("loads", "worker_hung", "load hang", unit={"load_timeout_s": 2.0}),
    Row("loads", "out_of_memory", "load memory"),
    Row("right", "golden_mismatch", model={"wrong_scale": 2.0}),
    Row("right", "worker_died", "evaluate crash", words="SIGSEGV"),
    Row("right", "out_of_time", "evaluate hang", {"stage_s": {"right": 1.5}}),
    Row("right", "out_of_memory", "evaluate memory"),
    Row("fast", "too_slow", gate={"latency_ms": {"p95": 0.000001}}),
    Row("fast", "worker_died", "probe crash", words="SIGSEGV"),
    Row("fast", "out_of_time", "probe hang", {"stage_s": {"fast": 1.5}}),
    Row("fast", "out_of_memory", "probe memory"),
    Row("loads", "starts_too_slowly", gate={"load_s_max": 0.001}),
    Row("fast", "too_few_per_second", gate={"throughput_min": {"4": 1e9}}),
    Row("small", "too_large", gate={"memory_max_bytes": 1}),
    Row("small", "leaks", "probe leak"),
    # What is not the candidate's fault: later, not never.
    Row("later", "twin_failed", "load crash", twin=True),
    Row("later", "twin_failed", "evaluate crash", twin=True),
    Row("later", "twin_failed", "probe memory", {"baseline": "twin"}, twin=True),
    Row("", "ok", "probe memory", twin=True, words="latency_ratio"),  # nothing is recorded of it
    Row("later", "out_of_time", "evaluate hang", {"stage_s": {"right": 2.0}}, twin=True),
]


@asynccontextmanager
async def client(rig: Rig) -> AsyncIterator[HostClient]:
    made = HostClient(rig.folder / "run" / "host.sock")
    made.start()
    try:
        await asyncio.wait_for(made.connected.wait(), 30)
        yield made
    finally:
        await made.stop()


async def judged(rig: Rig, host: HostClient, row: Row, generation: int, python: Path) -> tuple[str, str, str]:
    """(stage, reason, words)."""
    folder = rig.folder / "candidates" / str(generation)
    twin = rig.folder / "candidates" / f"{generation}-twin"
    for made in (folder, twin):
        version = "1.0.0" if made == twin else f"1.{generation}.0"
        await asyncio.to_thread(models.make_slot, made, UNIT, version, generation, scale=2.0)
    if row.model:
        await asyncio.to_thread(models.make_model, folder / "model.onnx", row.model["wrong_scale"] * 2)
        seal = models.golden(folder, 2.0)
        await asyncio.to_thread(models.seal, folder, UNIT, f"1.{generation}.0", generation, golden=seal)
    if row.how:
        file = twin if row.twin else folder
        await asyncio.to_thread(Path(f"{file}.how").write_text, row.how)
    settings = Unit(worker_python=str(python), gate=UnitGate(**{**GATE, **row.gate}), **row.unit)
    manifest = the_manifest(f"1.{generation}.0", golden=True, labels=True, **{"model": UNIT, **row.manifest})

    async def prepare(variant: str) -> str:
        del variant
        return str(folder)

    clock, hardware = SystemClock(), FakeHardware()
    place = Place(
        UNIT, generation, settings, "127.0.0.1:0", {"gpu": "none"}, host, clock, hardware, lambda **progress: None
    )
    contract = contract_of(the_manifest(golden=True).signature)
    run = Run(place, manifest, "0" * 64, prepare, contract, Baseline("1.0.0", "1" * 64, str(twin)), manifest.variants)
    tried = Tried(manifest.reference)
    await run.begin()
    try:
        stages = await judge_variant(run, tried)
    except Later as later:
        return "later", later.code, later.message
    finally:
        await run.retire(run.twin)
        await run.retire(tried.worker)
    assert [one.stage for one in stages] == list(STAGES)
    failed = [(one.stage, check) for one in stages for check in one.checks if check.outcome == "fail"]
    if not failed:
        unsure = [check.check for one in stages for check in one.checks if check.outcome == "inconclusive"]
        return "", "ok", f"inconclusive: {unsure}"
    stage, check = failed[0]
    after = stages[[one.stage for one in stages].index(stage) + 1 :]
    assert {one.outcome for one in after} <= {"not_run"}
    return stage, check.reason, " ".join(check.detail.get("problems", ()))


async def test_every_stage_with_every_candidate_under_live_requests(short_path: Path) -> None:
    python = short_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SCRIPT}" "$@"\n')
    python.chmod(0o755)
    async with running(short_path / "host") as rig, client(rig) as host:
        await rig.confirmed(1)
        async with clients.Load(rig.address, busy=1, idle=1, fresh=1) as load:
            for generation, row in enumerate(TABLE, start=2):
                before = load.answers.total()
                stage, reason, words = await judged(rig, host, row, generation, python)
                assert (stage, reason) == (row.stage, row.reason), (row, words)
                assert row.words in words, (row, words)
                await load.served(3)
                assert load.answers.total() > before
        assert load.failures == []
        assert set(load.answers) == {f"{UNIT}/1.1.0"}
        status = await rig.agent.order(messages.Status())
        assert [one["role"] for one in status["units"][0]["workers"]] == ["live"]
