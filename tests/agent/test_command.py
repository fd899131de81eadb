"""The owner's command at the gate: how it is asked, and what its faults mean. The program is the documented example."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.programs import OwnersPrograms, ProgramProcess
from interlock_agent.config import Config
from interlock_agent.core.gate import command
from interlock_agent.core.states import Event
from interlock_shared.documents import Verdict
from interlock_shared.errors import Refused
from tests.agent.material import UNIT, the_manifest
from tests.agent.test_gating import Bench
from tests.e2e.test_command import example

CANDIDATE = '    if __import__("os").environ["INTERLOCK_ROLE"] == "candidate": '


class InFolder(OwnersPrograms):
    """Starts programs in a real folder, whatever the fakes call it, and keeps them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.started = folder, list[ProgramProcess]()

    async def start(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> ProgramProcess:
        del folder
        self.started.append(await super().start(command, environment, str(self._folder)))
        return self.started[-1]


class Measured:
    """A unit at its gate whose owner's command is this program."""

    def __init__(self, folder: Path, program: str, **settings: Any) -> None:
        (folder / "model.txt").write_text("3.0\n")
        (folder / "measure.py").write_text(program)
        gate = {"command": [sys.executable, str(folder / "measure.py")], **settings}
        variants = [{"name": "fp32", "file": "model.onnx", "reference": True, "runtime": "external"}]
        config = Config.model_validate({"units": {UNIT: {"gate": gate, "load_timeout_s": 30.0}}})
        # Two processes of one program differ by more than is usual for a model, on a machine with other work.
        manifest = the_manifest(variants=variants, gates={"latency_ratio_max": 10.0})
        self.bench = Bench(manifest, config=config)
        self.programs = InFolder(folder)
        self.bench.shared.ports = replace(self.bench.shared.ports, programs=self.programs)

    async def run(self) -> tuple[Event, Verdict]:
        happened = await self.bench.run()
        for program in self.programs.started:
            assert not Path(f"/proc/{program.pid}").exists(), "no process of the command is left"
        return happened.event, self.bench.verdict(happened)


def changed(old: str, new: str) -> str:
    """The example with one line changed."""
    assert example().count(old) == 1
    return example().replace(old, new)


FAULTS = {
    "its own check": (
        '"passed": same',
        '"passed": False, "message": "the boxes are elsewhere"',
        "command_refused",
        "the boxes are elsewhere",
    ),
    "an error when it loads": (
        "scale = float",
        'print(json.dumps({"error": "no kernel"}), flush=True)\n    scale = float',
        "load_failed",
        "no kernel",
    ),
    "an end when it measures": (
        "    wall, work = [], []",
        f"{CANDIDATE}sys.exit('out of luck')\n    wall, work = [], []",
        "worker_died",
        "exit code 1): out of luck",
    ),
    "fewer runs than asked for": (
        '    return {"wall_ms": wall, "work_ms": work}',
        '    return {"wall_ms": wall[:-1] or [1.0, 1.0], "work_ms": work}',
        "inference_failed",
        "runs were asked for",
    ),
    "nonsense": (
        '    return {"wall_ms": wall',
        f'{CANDIDATE}print("well…", flush=True)\n    return {{"wall_ms": wall',
        "inference_failed",
        "said no JSON",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_command_that_finds_fault_or_fails_refuses_the_release(tmp_path: Path, fault: str) -> None:
    old, new, reason, words = FAULTS[fault]
    event, verdict = await Measured(tmp_path, changed(old, new)).run()
    assert (event, verdict.reason) == (Event.REJECT, reason)
    assert words in verdict.message


async def test_silence_is_the_candidates_when_it_is_its_process_that_is_silent(tmp_path: Path) -> None:
    silent = changed("    hits = ", f"{CANDIDATE}time.sleep(3600)\n    hits = ")
    measured = Measured(tmp_path, silent, stage_s={"right": 3.0})
    measured.bench.shared.ports = replace(measured.bench.shared.ports, clock=Ticking())
    event, verdict = await measured.run()
    assert (event, verdict.reason) == (Event.REJECT, "out_of_time")


class Ticking:
    """A clock that goes."""

    def now(self) -> float:
        return 1_700_000_000.0

    def floor(self) -> float:
        return 0.0

    def raise_floor(self, seconds: float) -> None:
        del seconds

    def forget_floor(self) -> None:
        raise AssertionError

    def behind(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        import time

        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        del seconds

    def dice(self) -> float:
        return 0.5


async def test_the_candidate_is_loaded_by_the_host_all_the_same(tmp_path: Path) -> None:
    measured = Measured(tmp_path, example())
    event, verdict = await measured.run()
    assert event is Event.ACCEPT, verdict.message
    orders = measured.bench.host.orders
    assert ("load", "candidate") in orders, "it is what will be promoted"
    assert ("load", "twin") not in orders
    assert ("retire", "candidate") not in orders
    assert not [op for op, _ in orders if op in ("probe", "evaluate")], "what is measured is asked of the command"
    assert len(measured.programs.started) == 2


def test_without_a_time_of_work_the_wall_is_both_scales() -> None:
    found = command.samples(b'{"wall_ms": [1.5, 2.0]}', 2, 99)
    assert found == {"wall_ns": [1_500_000, 2_000_000], "work_ns": [1_500_000, 2_000_000], "elapsed_ns": 99}
    found = command.samples(b'{"wall_ms": [1.5, 2.0], "work_ms": [1.0, 3.0], "elapsed_ms": 2.5}', 2, 99)
    assert (found["work_ns"], found["elapsed_ns"]) == ([1_000_000, 3_000_000], 2_500_000), "as the command tells them"


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{}", b'{"wall_ms": []}', b'{"wall_ms": [-1]}', b'{"wall_ms": [1e999]}', b'{"wall_ms": "1"}',
     b'{"wall_ms": [1], "work_ms": [1, 2]}', b"{" * 100_000, b'{"error": "x"}'],
)  # fmt: skip
def test_what_makes_no_sense_is_the_releases_fault_and_never_a_figure(line: bytes) -> None:
    with pytest.raises(Refused) as refused:
        command.samples(line, 1, 1)
    assert refused.value.code == "inference_failed"
