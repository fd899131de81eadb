"""A real host with candidates and incumbents loaded, and the shipped measuring on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlock_agent.adapters.clock import SystemClock
from interlock_agent.adapters.hardware import LocalHardware
from interlock_agent.adapters.host_client import HostClient
from interlock_agent.config import Unit, UnitGate
from interlock_agent.host import messages
from interlock_agent.ports import Host
from interlock_agent.steps.gate.fast import Measure
from interlock_agent.steps.gate.run import Baseline, Place, Run, Tried
from tests.agent.material import the_manifest
from tests.bench.gate.cells import LIMIT, TURNS, Cell
from tests.host import models
from tests.host.rig import Rig

GENERATION = 1
CROWD = 4  # busy threads beside a crowded candidate


class Crowd:
    """The host, with busy threads on the candidate's only CPU while the candidate is measured."""

    def __init__(self, host: HostClient) -> None:
        self._host = host
        self._worker = ""
        self._others: list[subprocess.Popen[bytes]] = []

    def around(self, worker: str, pid: int) -> None:
        """This worker is the crowded one."""
        cpu = {max(os.sched_getaffinity(0))}
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cpu)
        self._worker = worker
        self._others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CROWD)]
        self._signal(signal.SIGSTOP)
        for other in self._others:
            os.sched_setaffinity(other.pid, cpu)

    def _signal(self, number: signal.Signals) -> None:
        for other in self._others:
            other.send_signal(number)

    def end(self) -> None:
        """Nobody is there any more."""
        for other in self._others:
            other.kill()
            other.wait()

    async def request(self, order: Any) -> dict[str, Any]:
        """As the host's."""
        if not isinstance(order, messages.Probe) or order.worker != self._worker:
            return await self._host.request(order)
        self._signal(signal.SIGCONT)
        try:
            return await self._host.request(order)
        finally:
            self._signal(signal.SIGSTOP)

    async def event(self, unit: str, timeout_s: float) -> dict[str, Any] | None:
        """As the host's."""
        return await self._host.event(unit, timeout_s)

    def drop_events(self, unit: str) -> None:
        """As the host's."""
        self._host.drop_events(unit)


@dataclass
class Bed:
    """The host, and folders of releases by their cost."""

    folder: Path
    host: HostClient
    serving: str  # address of the model that serves, "" where none does
    crowds: list[Crowd] = field(default_factory=list)

    def slot(self, unit: str, turns: int) -> str:
        """A sealed folder of a model of that cost."""
        path = self.folder / "models" / f"{unit}-{turns}"
        if not path.exists():
            models.make_slot(path, unit, f"1.{turns}.0", GENERATION, slow=turns)
        return str(path)

    def run_of(
        self, cell: Cell, unit: str, host: Host | None = None, tell: Callable[..., None] = lambda **figures: None
    ) -> tuple[Run, Tried]:
        """A run of the gate for the cell; nothing is loaded yet."""
        manifest = the_manifest(golden=True, gates={"latency_ratio_max": LIMIT})
        place = Place(
            unit=unit,
            generation=GENERATION,
            settings=Unit(gate=UnitGate(latency_ratio_max=LIMIT)),
            listen="127.0.0.1:0",
            fingerprint={},
            host=host or (Crowd(self.host) if cell.crowded else self.host),
            clock=SystemClock(),
            hardware=LocalHardware(),
            tell=tell,
        )

        async def prepare(variant: str) -> str:
            del variant
            return await asyncio.to_thread(self.slot, unit, cell.turns)

        incumbent = Baseline("1.0.0", "0" * 64, self.slot(unit, TURNS))
        run = Run(place, manifest, "1" * 64, prepare, None, incumbent, manifest.variants)
        return run, Tried(manifest.reference)

    async def ready(self, cell: Cell, number: int) -> Measure:
        """The cell's candidate and incumbent, loaded and warm."""
        unit = f"cell-{number}"
        run, tried = self.run_of(cell, unit)
        await self.host.request(messages.Configure(unit, "127.0.0.1:0", run.place.settings.options()))
        tried.folder = self.slot(unit, cell.turns)
        loaded = await run.load(tried.folder, "candidate")
        tried.worker = str(loaded["worker"])
        if isinstance(run.place.host, Crowd):
            self.crowds.append(run.place.host)
            run.place.host.around(tried.worker, int(loaded["pid"]))
        await run.load_twin(tried)
        measure = Measure(run, tried)
        await measure.warm_up(tried.worker, "candidate")
        await measure.warm_up(run.twin, "incumbent")
        return measure


@contextlib.asynccontextmanager
async def bed(folder: Path, serving: int = 0) -> AsyncIterator[Bed]:
    """Started and ended. `serving`: the cost of a model that serves meanwhile; 0: none does."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    await asyncio.to_thread(folder.mkdir, parents=True)
    rig = Rig(folder, guarded=False)
    agent = await rig.start()
    if serving:
        await rig.configure()
        await rig.confirmed(1, slow=serving)
    await agent.close()
    host = HostClient(folder / "run" / "host.sock")
    host.start()
    made = Bed(folder, host, rig.address)
    try:
        await asyncio.wait_for(host.connected.wait(), 30)
        yield made
    finally:
        for crowd in made.crowds:
            crowd.end()
        await host.stop()
        with contextlib.suppress(ProcessLookupError):
            rig.process.terminate()
        await rig.process.wait()


async def measured(beds: Bed, cells: Sequence[Cell]) -> list[Measure]:
    """All of them, each with workers of its own."""
    return [await beds.ready(cell, number) for number, cell in enumerate(cells)]


def samples(measure: Measure) -> dict[str, Any]:
    """What the last pair left, by side; and nothing stays."""
    found = {
        f"{name}_{scale}": measure.tried.samples.pop(f"{name}_{scale}_ns", [])
        for name in ("candidate", "incumbent")
        for scale in ("wall", "work")
    }
    measure.tried.samples.clear()
    return found
