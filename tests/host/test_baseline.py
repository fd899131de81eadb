"""A twin that is refused memory, in real processes: candidates are judged by what an earlier gate recorded."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.clock import SystemClock
from interlock_agent.adapters.host_client import HostClient
from interlock_agent.adapters.slots import SlotFolders
from interlock_agent.config import Unit, UnitGate
from interlock_agent.steps.gate.run import Baseline, Place, Run
from interlock_agent.steps.gate.variants import judge
from interlock_agent.steps.gate.verdict import samples_document, verdict
from interlock_shared import canonical
from interlock_shared.documents import Verdict
from tests.agent.material import the_manifest
from tests.fakes.fetcher import FakeHardware
from tests.host import models
from tests.host.rig import UNIT, Rig, running
from tests.host.test_gate_table import MIB, SCRIPT, client

pytestmark = pytest.mark.e2e

FINGERPRINT = {"gpu": "none"}
GATE: dict[str, Any] = {"budget_s": 10.0, "candidate_memory_bytes": 700 * MIB}
SLOW = 40  # products of matrices: a few milliseconds


async def judged(rig: Rig, host: HostClient, generation: int, slow: int, incumbent: Baseline | None) -> Verdict:
    """Of a candidate; kept as the agent keeps it."""
    folder = rig.folder / "candidates" / str(generation)
    await asyncio.to_thread(models.make_slot, folder, UNIT, f"1.{generation}.0", generation, scale=2.0, slow=slow)
    settings = Unit(worker_python=str(rig.folder.parent / "python"), gate=UnitGate(**GATE))
    gates = {"latency_ratio_max": 4.0}  # of pairs: tests run on busy machines
    manifest = the_manifest(f"1.{generation}.0", golden=True, labels=True, model=UNIT, gates=gates)

    async def prepare(variant: str) -> str:
        del variant
        return str(folder)

    def tell(**progress: Any) -> None:
        del progress

    place = Place(UNIT, generation, settings, "127.0.0.1:0", FINGERPRINT, host, SystemClock(), FakeHardware(), tell)
    run = Run(place, manifest, str(generation) * 64, prepare, None, incumbent, manifest.variants)
    await run.begin()
    found = await judge(run)
    made = await verdict(run, found, device="press-7", fingerprint_sha256="f" * 64, origin="rollout")
    await run.retire(run.twin)
    await run.retire(found.chosen.worker)
    document = canonical.encode(made.model_dump(mode="json", by_alias=True))
    await SlotFolders(rig.folder / "agent").keep_verdict(UNIT, generation, document, samples_document(found))
    return made


async def test_a_twin_without_room_leaves_the_candidate_to_what_is_recorded(short_path: Path) -> None:
    python = short_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SCRIPT}" "$@"\n')
    python.chmod(0o755)
    async with running(short_path / "host") as rig, client(rig) as host:
        first = await judged(rig, host, 1, SLOW, None)
        assert (first.outcome, first.reason) == ("accept", "ok")
        folder = rig.folder / "candidates" / "1"
        Path(f"{folder}.how").write_text("load memory")  # from now on: it takes memory until it is refused some
        slots = SlotFolders(rig.folder / "agent")
        record = partial(slots.recorded, UNIT, "a", "1" * 64)
        incumbent = Baseline("1.1.0", "1" * 64, str(folder), record=record)
        for generation, slow, outcome, reason in ((2, SLOW, "accept", "ok"), (3, 12 * SLOW, "reject", "too_slow")):
            made = await judged(rig, host, generation, slow, incumbent)
            assert (made.outcome, made.reason) == (outcome, reason), made.message
            assert made.incumbent is not None
            assert made.incumbent.baseline == "recorded"
            rows = {check.check: check for stage in made.stages for check in stage.checks}
            ratio = rows["latency_ratio_work"]
            assert (ratio.outcome, ratio.limit) == ("pass" if outcome == "accept" else "fail", 5.0)
            assert ratio.detail["recorded_version"] == "1.1.0"
            assert rows["accuracy_drop"].reason == "no_twin"
