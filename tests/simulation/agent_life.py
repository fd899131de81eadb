"""The agent as a process: the real engine, steps, link and host client, over fakes; joined as `__main__` joins them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock_agent.adapters.host_client import HostClient
from interlock_agent.config import Config, Unit, UnitGate, UnitHealth, UnitTrial
from interlock_agent.core.records import Wish
from interlock_agent.core.states import RESTING, Phase
from interlock_agent.description import Describer
from interlock_agent.engine import Engine
from interlock_agent.guard import Guard
from interlock_agent.host import messages
from interlock_agent.link import Link
from interlock_agent.ports import Ports
from interlock_shared import canonical
from interlock_shared.errors import InterlockError
from tests.fakes.fetcher import FakeFetcher, FakeHardware, FakeProbes, FakeSigner, NoPrograms
from tests.fakes.journal import FakeJournal
from tests.fakes.loop import VirtualClock
from tests.fakes.slots import FakeSlots
from tests.simulation import releases
from tests.simulation.life import Killed, Life

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

DEVICE = "device-1"


class SimHostClient(HostClient):
    """The real client; only its socket is another one."""

    def __init__(self, life: AgentLife) -> None:
        super().__init__(Path("/sim"))
        self._life = life
        self.open = False
        self.wire: Any = None
        self._frames: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def _session(self) -> None:
        host = self._life.machine.host
        if host is None or not host.alive or not host.ready:
            raise ConnectionRefusedError("no host")
        self._frames = asyncio.Queue()
        self.open = True
        host.connect(self)
        self.version = "sim"
        self._writer = self  # type: ignore[assignment]
        self._to = host
        self.connected.set()
        background = [asyncio.create_task(call()) for call in self.on_connect]
        self._push_all({"event": "back"})
        try:
            while (frame := await self._frames.get()) is not None:
                await self._life.thawed()
                self._receive(frame)
            raise asyncio.IncompleteReadError(b"", 4)
        finally:
            self.open, self._writer = False, None
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

    def write(self, frame: bytes) -> None:
        """What the client sends arrives, if the host lives."""
        if self._life.alive and self._to.alive:
            document = canonical.decode(frame[4:], limit=1 << 20, what="order")
            self._life.machine.loop.call_soon(self._to.ask, self, document, context=self._to.context)

    def arrive(self, frame: dict[str, Any]) -> None:
        """A frame of the host."""
        if self._life.alive:
            self._frames.put_nowait(frame)

    def lost(self) -> None:
        """The host's end is closed."""
        if self._life.alive:
            self._frames.put_nowait(None)

    async def request(self, order: Any) -> dict[str, Any]:
        kind = type(order).__name__.lower()
        if isinstance(order, messages.Status | messages.Probe):
            self._life.check()
            return await super().request(order)
        await self._life.point(f"order {kind}")
        answer = await super().request(order)
        await self._life.point(f"answer {kind}")
        return answer

    async def event(self, unit: str, timeout_s: float) -> dict[str, Any] | None:
        event = await super().event(unit, timeout_s)
        await self._life.thawed()
        self._life.check()
        return event


class SimBroker:
    """The MQTT connection, seen from the agent."""

    def __init__(self, life: AgentLife) -> None:
        self._life = life
        self.trouble = ""

    @property
    def connected(self) -> bool:
        """Whether the server can be reached."""
        return self._life.alive and self._life.machine.server.online

    async def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        """To the server."""
        await self._life.thawed()
        self._life.check()
        self._life.machine.server.receive(self._life, kind, payload)


class AgentLife(Life):
    """One run of the agent."""

    kind = "agent"

    def __init__(self, machine: Machine, number: int) -> None:
        super().__init__(machine, number)
        self.clock = VirtualClock(machine.loop, machine.chance)
        self.journal = FakeJournal(machine.journal, DEVICE, self.point, machine.truth.committed, machine.faults.full)
        self.slots = FakeSlots(machine.disk, self.point, machine.faults.full)
        self.host = SimHostClient(self)
        fetcher = FakeFetcher(machine.disk, machine.server.shelf, self.point)
        self.hardware = FakeHardware()
        world = (self.clock, self.journal, self.host, self.slots, fetcher, self.hardware)
        self.ports = Ports(*world, FakeSigner(), NoPrograms(), FakeProbes())
        trial = UnitTrial(lease_s=machine.lease_s, drain_max_s=1.0)
        health = UnitHealth(late_period_s=1.0, late_failures=2)
        gate = UnitGate(inconclusive_max=2, inconclusive_wait_s=5.0, window=machine.window)
        ways = {"policy": machine.policy, "spare": machine.spare, "gap_max_s": machine.gap_s}
        self.config = Config(units={releases.UNIT: Unit(trial=trial, gate=gate, health=health, **ways)})
        self.engine = Engine(self.ports, self.config, DEVICE)
        self.engine.on_fault = lambda unit, fault: machine.truth.note(f"{self.name}: a fault: {fault!r}")
        self.describer = Describer(self.engine, self.ports, self.host, self.config)
        self.guard = Guard(self.engine, self.ports, self.config)
        self.broker = SimBroker(self)
        self.link = Link(self.ports, self.engine, self.broker, self.describer.reported, 900.0)

    async def main(self) -> None:
        """As interlock_agent.__main__.Agent.run."""
        fingerprint = await self.hardware.fingerprint("")
        self.engine.shared.fingerprint = fingerprint
        self.engine.shared.fingerprint_sha256 = canonical.sha256(canonical.encode(fingerprint))
        self.host.on_connect.append(self._host_connected)
        self.host.listeners.append(self.describer.host_event)
        self.host.start()
        await self.engine.load()
        self.engine.on_change = self.link.changed
        self.describer.on_serving = self.link.changed
        await self.engine.start()
        self.spawn(self.link.run(), name="life link")
        self.spawn(self.guard.run(), name="life guard")
        await self.link.resume()
        self.ready = True
        self.machine.server.greet(self)

    async def _host_connected(self) -> None:
        try:
            for unit in sorted(set(self.config.units) | set(self.engine.stored.units)):
                await self.engine.configure(unit)
            await self.describer.look()
        except InterlockError:
            return

    def resting(self) -> bool:
        """No runner has anything to do before somebody asks."""
        if any(not task.done() for task in (*self.engine._runners.values(), *self.engine._asking)):
            return False
        if self.engine.shared.gate_lock.locked():
            return False
        for record in self.engine.stored.units.values():
            rests = Phase(record.phase) in RESTING
            waits = record.phase == Phase.WAITING.value and record.attempt is not None and record.attempt.until < 0
            if not (rests or waits):
                return False
        return True

    # --- what people do -------------------------------------------------------------------------------------------

    async def sideload(self, version: str) -> None:
        """`interlock-agent install FILE`, as local_api does it. Raises InterlockError, Killed."""
        place = list(self.machine.server.shelf.releases).index(version)
        source = await self.ports.fetcher.archive(place)
        head = await source.manifest()
        wish = Wish(version, head["manifest_sha256"], f"sideload-{self.machine.count}", origin="sideload")
        await self.engine.sideload(head["model"], wish, source)

    async def rollback(self) -> None:
        """`interlock-agent rollback`."""
        await self.engine.rollback(releases.UNIT)

    def person(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[Any]:
        """Somebody asks; a refusal is theirs to read."""

        async def asked() -> str:
            try:
                await work()
            except InterlockError as refused:
                return refused.code
            except Killed:
                return "killed"
            return ""

        return self.spawn(asked())
