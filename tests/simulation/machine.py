"""One simulated device: a disk, a power switch, an agent and a host that live and die on it, and a server far away.

Rules of the file:
- Agent and host are the real engines; everything below their ports is a fake that says a *point* before and after
  each effect. `plan` says what happens at which point: the power goes, a process is killed, the agent stands still.
- A process that is dead does nothing any more: its next call of a port raises Killed.
- Everything runs in one virtual loop; chance comes from one seed.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.fakes.disk import Disk
from tests.fakes.host_world import Conduct
from tests.fakes.journal import Memory
from tests.fakes.loop import VirtualLoop
from tests.simulation import releases
from tests.simulation.agent_life import AgentLife
from tests.simulation.host_life import HostLife
from tests.simulation.life import Killed, Life
from tests.simulation.server import Server
from tests.simulation.truth import Truth

LEASE_S = 3.0
GAP_S = 2.0
BOOT_S = 1.0
RESTART_S = 0.5
CONVERGES_S = 3000.0  # virtual

STRIKES = ("power", "power-keep", "agent", "host", "stall")


@dataclass
class Faults:
    """What goes wrong besides cuts; each is asked at every chance."""

    unreachable: Callable[[], bool] = lambda: False
    full: Callable[[], bool] = lambda: False
    host_disk: Callable[[], bool] = lambda: False
    pause: Callable[[], float] = lambda: 0.0  # seconds at a point: other orders of events
    lose: Callable[[], bool] = lambda: False  # a message to or from the broker


@dataclass
class Machine:
    """The device and its world. `plan`: number of a point -> what strikes there."""

    loop: VirtualLoop
    chance: random.Random = field(default_factory=random.Random)
    plan: dict[int, str] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    lease_s: float = LEASE_S
    gap_s: float = GAP_S
    window: tuple[str, ...] = ()  # of the gate; an agent that starts reads it, as it does the next two
    policy: Literal["auto", "availability", "memory"] = "auto"
    spare: Literal["trial", "always"] = "trial"
    conducts: dict[str, Conduct] = field(default_factory=lambda: {v: c for v, (_, c) in releases.CATALOGUE.items()})

    def __post_init__(self) -> None:
        self.disk, self.journal = Disk(), Memory()
        self.truth = Truth(self)
        self.server = Server(self)
        self.count = 0
        self.struck: list[str] = []
        self.trace: list[str] = []
        self.lives = itertools.count(1)
        self.agent: AgentLife | None = None
        self.host: HostLife | None = None
        self.powered = True
        self.context = contextvars.copy_context()
        self.on_point: Callable[[str], None] = lambda label: None

    # --- points and strikes -------------------------------------------------------------------------------------

    async def point(self, life: Life, label: str) -> None:
        """An effect is about to be, or was, carried out by `life`."""
        life.check()
        self.count += 1
        self.trace.append(f"{self.count:5d} {self.loop.virtual:9.3f} {life.name}: {label}")
        self.truth.instant()
        strike = self.plan.get(self.count)
        if strike:
            self.strike(strike, label)
            life.check()
        self.on_point(label)
        life.check()
        pause = self.faults.pause()
        if pause > 0:
            await asyncio.sleep(pause)
        await life.thawed()
        life.check()

    def strike(self, what: str, label: str) -> None:
        """Something happens to the device, now."""
        self.struck.append(f"{what} at {label}")
        self.trace.append(f"      *** {what}")
        if what in ("power", "power-keep"):
            self.power_cut(keep=what == "power-keep")
        elif what == "agent" and self.agent is not None:
            self.agent.kill()
            self.later(RESTART_S, self.start_agent)
        elif what == "host" and self.host is not None:
            self.host.kill()
            self.later(RESTART_S, self.start_host)
        elif what == "stall" and self.agent is not None:
            self.agent.freeze(2 * self.lease_s)

    def power_cut(self, keep: bool) -> None:
        """Everything ends; the disk forgets what was not synced; later the power is back."""
        self.powered = False
        for life in (self.agent, self.host):
            if life is not None:
                life.kill()
        self.disk.cut(keep)
        self.truth.after_cut()
        self.later(BOOT_S, self.boot)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """In the world outside the processes."""
        self.loop.call_later(seconds, what, context=self.context)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the world outside."""
        return self.loop.create_task(work, context=self.context)

    # --- life ---------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Both services start."""
        self.powered = True
        self.start_host()
        self.start_agent()

    def start_agent(self) -> None:
        """Unless the power is off, or one runs."""
        if self.powered and not (self.agent and self.agent.alive):
            self.agent = AgentLife(self, next(self.lives))
            self.agent.begin()

    def start_host(self) -> None:
        """Unless the power is off, or one runs."""
        if self.powered and not (self.host and self.host.alive):
            self.host = HostLife(self, next(self.lives))
            self.host.begin()

    # --- what a scenario asks for ---------------------------------------------------------------------------------

    def resting(self) -> bool:
        """Both run, nothing is under way, and the server knows everything."""
        agent, host = self.agent, self.host
        if not (self.powered and agent and host and agent.alive and host.alive and agent.ready and host.ready):
            return False
        return not agent.frozen() and agent.resting() and host.resting() and self.server.knows_all()

    async def settled(self, limit_s: float = CONVERGES_S) -> None:
        """Until the device rests; it has to."""
        until = self.loop.virtual + limit_s
        calm = 0
        while calm < 2:
            await asyncio.sleep(0.7)
            self.truth.raise_noted()
            calm = calm + 1 if self.resting() else 0
            if self.loop.virtual > until:
                raise AssertionError(f"does not converge: {self.describe()}")

    def describe(self) -> str:
        """Where everything stands, for a failure."""
        record = self.journal.record(releases.UNIT)
        host = self.host.status(releases.UNIT) if self.host and self.host.alive else None
        return f"agent {record}\nhost {host}\nstruck {self.struck}\n" + "\n".join(self.trace[-60:])


def run(
    scenario: Callable[[Machine], Coroutine[Any, Any, None]],
    *,
    seed: int = 0,
    plan: dict[int, str] | None = None,
    faults: Callable[[random.Random], Faults] | None = None,
) -> Machine:
    """One whole run; the machine as it was at the end. Raises AssertionError where an invariant does not hold."""
    loop = VirtualLoop()
    chance = random.Random(seed)
    machine = Machine(loop, chance, plan or {}, faults(chance) if faults else Faults())
    strays: list[str] = []

    def stray(_: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            strays.append(f"{context.get('message')}: {error!r}")

    loop.set_exception_handler(stray)
    loop.set_task_factory(Life.factory)
    try:
        loop.run_until_complete(_story(machine, scenario))
        machine.truth.at_rest()
        assert not strays, strays
    except AssertionError as failure:
        failure.add_note(machine.describe())
        raise
    finally:
        _finish(loop, machine)
    return machine


async def _story(machine: Machine, scenario: Callable[[Machine], Coroutine[Any, Any, None]]) -> None:
    machine.boot()
    await machine.settled()
    await scenario(machine)
    await machine.settled()
    machine.truth.raise_noted()


def _finish(loop: VirtualLoop, machine: Machine) -> None:
    for life in (machine.agent, machine.host):
        if life is not None:
            life.kill()
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()
