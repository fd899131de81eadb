"""The host's Workers and Fronts ports: no process, no socket, but the same answers, deaths and figures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.host.messages import Evaluation, Loaded, Looked, Probe, Promoted, Samples
from interlock_agent.host.ports import Upstream, WorkerError
from tests.fakes.disk import Disk
from tests.fakes.host_store import release_of
from tests.fakes.points import Point, nowhere

LOAD_S = 0.2
SWAP_S = 0.01
ENDS_S = 0.05  # from the word to end until a process has gone, and its memory with it


@dataclass
class Conduct:
    """How a release behaves in a worker. Times are seconds after it went live in a trial; below 0: never."""

    opens: bool = True
    golden: bool = False
    outside: int = 0  # golden values outside their tolerance
    ratio: float = 1.0  # of its time to the incumbent's
    noise: bool = False  # its times say nothing
    dies_after: float = -1.0
    non_finite_after: float = -1.0
    dies_in_gate: bool = False
    bad_after: float = -1.0  # it answers NaN from then on, in a trial and after it, whoever has started it
    kills_host: bool = False  # when it is loaded


@dataclass
class Running:
    """A worker."""

    version: str
    unit: str
    conduct: Conduct


@dataclass
class FakeWorkers:
    """`conduct(version)`; `dice()` for noise; `died(worker, reason)` is the engine's."""

    disk: Disk
    conduct: Callable[[str], Conduct]
    point: Point = nowhere
    dice: Callable[[], float] = lambda: 0.5
    started: Callable[[str, str], None] = lambda worker, version: None
    opened: Callable[[str], None] = lambda worker: None
    kill_host: Callable[[], None] = lambda: None
    running: dict[str, Running] = field(default_factory=dict)
    going: dict[str, float] = field(default_factory=dict)  # until when their memory is not free
    ended: set[str] = field(default_factory=set)

    async def start(
        self,
        worker: str,
        unit: str,
        folder: str,
        generation: int,
        options: dict[str, Any],
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> Loaded:
        """Takes LOAD_S."""
        await self.point(f"start worker {worker}")
        release = release_of(self.disk, folder)
        if release is None:
            raise WorkerError("corrupt", f"{folder} has no seal")
        self.started(worker, release.version)
        if room is not None:
            await asyncio.sleep(LOAD_S / 2)
            await room()
            self.opened(worker)
        await asyncio.sleep(LOAD_S)
        conduct = self.conduct(release.version)
        if conduct.kills_host:
            self.kill_host()
            await self.point(f"opened worker {worker}")
        if worker in self.ended:
            raise WorkerError("worker_died", "ended while it loaded")
        if not conduct.opens:
            raise WorkerError("load_failed", "it does not open")
        self.running[worker] = Running(release.version, unit, conduct)
        await self.point(f"started worker {worker}")
        tensor = {"dtype": "FP32", "shape": [-1, 4]}
        inputs, outputs = [{"name": "x", **tensor}], [{"name": "y", **tensor}]
        return Loaded(worker, 1, inputs, outputs, ["CPUExecutionProvider"], False, LOAD_S, 1000, "fake 1.0.0")

    def _alive(self, worker: str) -> Running:
        running = self.running.get(worker)
        if running is None:
            raise WorkerError("unknown_worker", f"no worker {worker}")
        return running

    async def probe(self, order: Probe) -> Samples:
        """Times by its conduct."""
        conduct, runs = self._alive(order.worker).conduct, order.runs
        if not conduct.golden:
            raise WorkerError("no_golden", "no golden data")
        await asyncio.sleep(0.01)
        one = 1000.0 * conduct.ratio * (0.5 + 2 * self.dice() if conduct.noise else 1.0)
        return Samples([int(one)] * runs, [int(one)] * runs, 1000, elapsed_ns=int(one) * runs // order.concurrency)

    async def evaluate(self, worker: str, timeout_s: float, answers: str = "", items: int = 0) -> Evaluation:
        """The golden set by its conduct."""
        conduct = self._alive(worker).conduct
        await asyncio.sleep(0.05)
        if conduct.dies_in_gate:
            self.running.pop(worker, None)
            raise WorkerError("worker_died", "killed by signal 11")
        output = {"name": "y", "compared": True, "max_abs": 0.0, "max_rel": 0.0, "outside": conduct.outside}
        score = {"metric": "top1", "better": "higher", "kind": "hits", "rows": "1111111110"}
        return Evaluation(10, [{**output, "non_finite": 0}], score, 0.05, 1000)

    async def look(self, worker: str, timeout_s: float) -> Looked:
        """Nothing is wrong with its answers."""
        self._alive(worker)
        return Looked()

    async def serves(self, worker: str) -> None:
        """No limits here."""

    async def end(self, worker: str) -> None:
        """It will be gone."""
        await self.point(f"end worker {worker}")
        self.ended.add(worker)
        if self.running.pop(worker, None) is not None:
            self.going[worker] = asyncio.get_running_loop().time() + ENDS_S

    async def gone(self, worker: str) -> None:
        """Wait until it is."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self.going.get(worker, 0.0) - loop.time()))
        self.going.pop(worker, None)

    def loaded(self) -> set[str]:
        """Whose models are in memory now."""
        now = asyncio.get_running_loop().time()
        return set(self.running) | {worker for worker, until in self.going.items() if until > now}

    def pid(self, worker: str) -> int:
        """Some number."""
        return 1 if worker in self.running or worker in self.going else 0

    def said(self, worker: str) -> list[str]:
        """Its last words."""
        return [f"{worker} says nothing"] if worker in self.running else []


@dataclass
class FakeFronts:
    """`serving[unit]` is who answers; `switched(unit, upstream)` sees each switch."""

    point: Point = nowhere
    switched: Callable[[str, Upstream | None], None] = lambda unit, live: None
    serving: dict[str, Upstream | None] = field(default_factory=dict)
    standby: dict[str, Upstream | None] = field(default_factory=dict)

    async def check(self, unit: str, options: dict[str, Any]) -> None:
        """Everything is possible."""

    async def limit(self, unit: str, options: dict[str, Any]) -> None:
        """Nobody asks."""

    async def move(self, unit: str, listen: str, access: dict[str, Any]) -> str:
        """Listen elsewhere."""
        return listen

    async def open(self, unit: str, listen: str, options: dict[str, Any]) -> str:
        """Listen."""
        await self.point("open front")
        self.serving.setdefault(unit, None)
        return listen

    async def serve(
        self,
        unit: str,
        live: Upstream | None,
        standby: Upstream | None,
        drain_s: float,
        wait_s: float = 0.0,
        expected_s: float = 0.0,
    ) -> Awaitable[Promoted]:
        """Switch."""
        await self.point(f"serve {live.release if live else '-'}")
        self.switched(unit, live)
        self.serving[unit], self.standby[unit] = live, standby
        await self.point(f"serves {live.release if live else '-'}")
        return asyncio.ensure_future(self._drained())

    @staticmethod
    async def _drained() -> Promoted:
        await asyncio.sleep(SWAP_S)
        return Promoted(0, 0, SWAP_S * 1000)

    async def settle(self, unit: str) -> None:
        """The front has told all it knew."""
        await asyncio.sleep(0)

    def lost(self, worker: str) -> None:
        """Its worker is gone: the standby takes over, before anybody is asked."""
        for unit, live in self.serving.items():
            if live is not None and live.worker == worker:
                self.serving[unit], self.standby[unit] = self.standby.get(unit), None


class NoHooks:
    """The Hooks port of an owner who has none."""

    async def run(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        """Never asked."""
        raise AssertionError(f"{hook} {facts}")

    async def lost(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        """Never asked."""
        raise AssertionError(f"{hook} {facts}")

    async def away(self, hook: Mapping[str, Any]) -> str:
        """Never asked."""
        raise AssertionError(f"{hook}")
