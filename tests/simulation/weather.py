"""Random runs: what is wanted, what fails and what strikes is drawn from one seed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from tests.simulation.machine import STRIKES, Faults, Machine, run
from tests.simulation.releases import UNIT
from tests.simulation.scenarios import person, phase, roll_out, until

GOOD = ("1.0.0", "1.1.0", "1.2.0", "1.1.0", "1.2.0", "1.1.0", "1.2.0")
VERSIONS = (
    *(*GOOD, "2.0.0", "2.1.0", "2.2.0", "2.3.0", "2.4.0", "2.5.0"),
    *("3.0.0", "3.1.0", "3.2.0", "4.0.0", "4.2.0", "9.0.0"),
)
OWNERS: tuple[tuple[Any, Any], ...] = (
    ("auto", "trial"),
    ("availability", "trial"),
    ("availability", "always"),
    ("memory", "trial"),
    ("memory", "trial"),
)


@dataclass
class Weather:
    """How bad it is: probabilities, each asked at every chance."""

    chance: random.Random
    bad: bool = True

    def __post_init__(self) -> None:
        pick = self.chance.choice
        self.network, self.space = pick((0.0, 0.05, 0.3)), pick((0.0, 0.0, 0.02, 0.1))
        self.disk, self.loss, self.slow = pick((0.0, 0.0, 0.03)), pick((0.0, 0.1, 0.3)), pick((0.0, 0.02, 0.1))

    def _now(self, rate: float) -> bool:
        return self.bad and rate > 0 and self.chance.random() < rate

    def faults(self) -> Faults:
        """As the machine asks."""
        return Faults(
            unreachable=lambda: self._now(self.network),
            full=lambda: self._now(self.space),
            host_disk=lambda: self._now(self.disk),
            pause=lambda: self.chance.random() * 0.1 if self._now(self.slow) else 0.0,
            lose=lambda: self._now(self.loss),
        )


async def _wish(machine: Machine) -> None:
    machine.server.want(machine.chance.choice(VERSIONS), spread_s=machine.chance.choice((0.0, 0.0, 2.0)))


async def _no_wish(machine: Machine) -> None:
    machine.server.want(None)


async def _again(machine: Machine) -> None:
    if machine.agent is not None and machine.agent.alive and machine.agent.ready:
        machine.server.tell(machine.agent, times=machine.chance.choice((1, 3)))
        for document in machine.server.said[-3:]:
            machine.agent.spawn(machine.agent.link.message("desired", document))


async def _sideload(machine: Machine) -> None:
    version = machine.chance.choice(VERSIONS)
    await person(machine, lambda m: m.agent.sideload(version) if m.agent else asyncio.sleep(0))


async def _rollback(machine: Machine) -> None:
    await person(machine, lambda m: m.agent.rollback() if m.agent else asyncio.sleep(0))


async def _network(machine: Machine) -> None:
    machine.server.set_online(not machine.server.online)


async def _strike(machine: Machine) -> None:
    if machine.powered:
        machine.strike(machine.chance.choice(STRIKES), "a moment")


async def _strike_at_a_point(machine: Machine) -> None:
    machine.plan[machine.count + machine.chance.randint(1, 60)] = machine.chance.choice(STRIKES)


async def _strike_in_a_phase(machine: Machine) -> None:
    wanted = machine.chance.choice(("gating", "passed", "switching", "trial", "trial", "confirming", "restoring"))
    machine.server.want(machine.chance.choice(VERSIONS))
    if await until(machine, lambda: phase(machine) == wanted, 5.0) and machine.powered:
        machine.strike(machine.chance.choice(STRIKES), wanted)


async def _settle(machine: Machine) -> None:
    await until(machine, machine.resting, 20.0)


async def _worker(machine: Machine) -> None:
    host = machine.host
    if host is not None and host.alive and host.workers.running:
        host.spawn(host.kill_worker(machine.chance.choice(sorted(host.workers.running))))


DEEDS = (_wish, _wish, _wish, _no_wish, _again, _sideload, _rollback, _rollback, _network, _settle, _settle)
BLOWS = (_strike, _strike_at_a_point, _strike_at_a_point, _strike_in_a_phase, _strike_in_a_phase, _worker)


def random_run(seed: int) -> Machine:
    """One whole run. Raises AssertionError where a rule does not hold."""
    weather: list[Weather] = []

    def faults(chance: random.Random) -> Faults:
        weather.append(Weather(chance, bad=False))
        return weather[0].faults()

    async def story(machine: Machine) -> None:
        chance = machine.chance
        owner = random.Random(seed)  # of his own: what was drawn before stays what it was
        machine.policy, machine.spare = owner.choice(OWNERS)
        machine.strike("agent", "the owner restarts it with his settings")
        if chance.random() < 0.9:
            await roll_out(machine, "1.0.0")
        weather[0].bad = True
        for _ in range(chance.randint(2, 10)):
            await chance.choice(DEEDS if chance.random() < 0.6 else BLOWS)(machine)
            await asyncio.sleep(chance.choice((0.0, 0.05, 0.3, 1.0, 3.0, 10.0)) * chance.random())
            machine.truth.raise_noted()
        weather[0].bad = False
        machine.plan.clear()
        machine.server.set_online(True)
        await machine.settled()
        if machine.truth.confirmed:
            assert machine.host is not None
            assert machine.host.status(UNIT) is not None

    return run(story, seed=seed, faults=faults)
