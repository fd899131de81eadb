"""The host as a process: the real engine and the real control protocol, over fakes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from interlock_agent.host.control import Control
from interlock_agent.host.engine import Engine
from interlock_agent.host.ports import Upstream
from interlock_agent.host.states import Phase
from tests.fakes.host_store import FakeStore
from tests.fakes.host_world import FakeFronts, FakeWorkers, NoHooks
from tests.fakes.loop import HostClock
from tests.simulation.life import Life
from tests.simulation.releases import UNIT

if TYPE_CHECKING:
    from tests.simulation.machine import Machine


class Wire:
    """The host's end of a connection: what it writes arrives at the agent, if that still lives."""

    def __init__(self, host: HostLife, client: Any) -> None:
        self._host, self._client = host, client
        self.transport = self

    def is_closing(self) -> bool:
        """The agent's process is gone."""
        return not self._client.open

    def get_write_buffer_size(self) -> int:
        """It always reads."""
        return 0

    def write(self, frame: bytes) -> None:
        """One frame."""
        if self._host.alive:
            document = json.loads(frame[4:])
            self._host.machine.truth.answered(document)
            self._client.arrive(document)


class HostLife(Life):
    """One run of the host."""

    kind = "host"

    def __init__(self, machine: Machine, number: int) -> None:
        super().__init__(machine, number)
        self.store = FakeStore(machine.disk, self.point, self._fails, machine.truth.linked)
        self.workers = FakeWorkers(
            machine.disk,
            lambda version: machine.conducts[version],
            self.point,
            machine.chance.random,
            machine.truth.started,
            machine.truth.opened,
            lambda: machine.strike("host", "a candidate that takes the host with it"),
        )
        self.fronts = FakeFronts(self.point, self._switched)
        self.clock = HostClock(machine.loop, machine.chance)
        self.control = Control(lambda: self.engine, dict, "sim")
        world = (self.store, self.workers, self.fronts, self.clock, self.control)
        self.engine = Engine(*world, f"l{number}-", NoHooks())
        self.clients: list[Any] = []
        self.bad: set[str] = set()  # workers that have turned bad, or will

    def _fails(self, what: str) -> None:
        if self.machine.faults.host_disk():
            raise OSError(28, f"no space for {what}")

    async def main(self) -> None:
        """Cold start; then the socket is there."""
        await self.engine.start()
        self.ready = True

    def connect(self, client: Any) -> None:
        """An agent has connected."""
        self.clients.append(client)
        wire = Wire(self, client)
        client.wire = wire
        self.control._writers.add(wire)  # type: ignore[arg-type]

    def ask(self, client: Any, request: dict[str, Any]) -> None:
        """A request arrives: a task of its own, which goes on when the agent dies."""
        self.machine.truth.asked(request)
        self.spawn(self.control._request(request, client.wire))

    def died(self) -> None:
        """Fronts and workers end with it; its socket closes."""
        self.machine.truth.host_gone(self)
        for client in self.clients:
            client.lost()

    # --- conduct of a release in its trial ------------------------------------------------------------------------

    def _switched(self, unit: str, live: Upstream | None) -> None:
        self.machine.truth.switched(unit, live)
        running = self.workers.running.get(live.worker) if live else None
        seat = self.engine.seats.get(unit)
        if live is None or running is None or seat is None:
            return
        if running.conduct.bad_after >= 0 and live.worker not in self.bad:
            self.bad.add(live.worker)
            self.spawn(self._turn_bad(unit, live.worker))
        if seat.unit.trial is not None and seat.unit.trial.worker == live.worker:
            self.spawn(self._behave(unit, live.worker))

    async def _behave(self, unit: str, worker: str) -> None:
        conduct = self.workers.running[worker].conduct
        if conduct.dies_after >= 0:
            await asyncio.sleep(conduct.dies_after)
            await self.kill_worker(worker)
        if conduct.non_finite_after >= 0:
            await asyncio.sleep(conduct.non_finite_after)
            self.engine.counted(unit, worker, {"requests": 5, "errors": 0, "non_finite": 1, "last_errors": []})

    async def _turn_bad(self, unit: str, worker: str) -> None:
        """One answer a second, and from some moment on each is NaN, as long as it serves."""
        bad_from = self.machine.loop.virtual + self.workers.running[worker].conduct.bad_after
        requests = bad = 0
        while worker in self.workers.running:
            await asyncio.sleep(1.0)
            live = self.fronts.serving.get(unit)
            if live is None or live.worker != worker:
                continue  # a front counts for whoever answers
            requests, bad = requests + 1, bad + (self.machine.loop.virtual >= bad_from)
            figures = {"requests": requests, "errors": 0, "non_finite": bad, "last_errors": ["non_finite_output"]}
            self.engine.counted(unit, worker, figures)

    async def kill_worker(self, worker: str) -> None:
        """SIGKILL of a worker: the front's standby answers, the engine is told."""
        known = self.engine.seats[UNIT].unit.workers.get(worker)
        if self.workers.running.pop(worker, None) is not None:
            self.machine.truth.worker_died(worker, known.release.version if known else "")
            self.fronts.lost(worker)
            await self.engine.worker_died(worker, "killed by signal 9")

    # --- a look from outside ----------------------------------------------------------------------------------------

    def resting(self) -> bool:
        """No trial, nothing loads, and the confirmed release serves where there is one."""
        for seat in self.engine.seats.values():
            unit = seat.unit
            if unit.phase in (Phase.TRIAL, Phase.STARTING, Phase.GAP) or any(
                not w.ready for w in unit.workers.values()
            ):
                return False
            if unit.unrecorded or unit.adrift or unit.doubtful:
                return False
        return True

    def status(self, unit: str) -> dict[str, Any] | None:
        """The unit's status."""
        return next((status for status in self.engine.status() if status["unit"] == unit), None)
