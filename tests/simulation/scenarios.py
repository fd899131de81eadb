"""The standard stories. Each begins on a fresh device, and each must end at rest whatever strikes in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

from interlock_agent.core.readings import Word
from tests.fakes.loop import EPOCH
from tests.simulation.machine import Machine
from tests.simulation.releases import UNIT

Scenario = Callable[[Machine], Coroutine[Any, Any, None]]


async def roll_out(machine: Machine, version: str | None, assignment: str = "") -> None:
    """The server wants it, and the device has come to rest over it."""
    machine.server.want(version, assignment)
    await machine.settled()


def phase(machine: Machine) -> str:
    """Where the journal says that the unit stands."""
    record = machine.journal.record(UNIT)
    return str(record.phase) if record is not None else "idle"


def confirmed(machine: Machine) -> str:
    """The version that the journal says to be confirmed."""
    record = machine.journal.record(UNIT)
    return record.confirmed.version if record is not None and record.confirmed is not None else ""


async def first_install(machine: Machine) -> None:
    """On a device that has nothing."""
    await roll_out(machine, "1.0.0")


async def upgrade(machine: Machine) -> None:
    """A good release replaces another."""
    await first_install(machine)
    await roll_out(machine, "1.1.0")


async def rejected(machine: Machine) -> None:
    """The gate says no."""
    await first_install(machine)
    await roll_out(machine, "2.0.0")


async def unhealthy(machine: Machine) -> None:
    """It answers NaN in its trial; the same bytes are wanted once more."""
    await first_install(machine)
    await roll_out(machine, "3.2.0")
    await roll_out(machine, "3.2.0")


async def worker_death(machine: Machine) -> None:
    """Its worker dies in the trial; the same bytes come again under another number."""
    await first_install(machine)
    await roll_out(machine, "3.0.0")
    await roll_out(machine, "3.1.0")


async def lease_lapse(machine: Machine) -> None:
    """The agent stands still in a trial; the release is innocent."""
    await first_install(machine)
    machine.server.want("1.1.0")
    await until(machine, lambda: phase(machine) == "trial")
    machine.strike("stall", "scenario")
    await machine.settled()


async def superseded(machine: Machine) -> None:
    """A newer wish, while the older one is being fetched; and again while it is judged."""
    await first_install(machine)
    machine.server.want("1.1.0")
    await until(machine, lambda: phase(machine) == "fetching")
    machine.server.want("2.0.0")
    await until(machine, lambda: phase(machine) == "gating")
    await roll_out(machine, "1.2.0")


async def cancelled(machine: Machine) -> None:
    """No longer wanted, while it is judged."""
    await first_install(machine)
    machine.server.want("1.1.0")
    await until(machine, lambda: phase(machine) == "gating")
    await roll_out(machine, None)


async def rollback(machine: Machine) -> None:
    """The owner goes back."""
    await upgrade(machine)
    await person(machine, lambda m: m.agent.rollback() if m.agent else _nobody())
    await machine.settled()


async def sideload(machine: Machine) -> None:
    """From a file, without a server."""
    machine.server.set_online(False)
    await person(machine, lambda m: m.agent.sideload("1.0.0") if m.agent else _nobody())
    await machine.settled()
    machine.server.set_online(True)


async def night(machine: Machine) -> None:
    """The owner wants no gate before a window that opens in ten minutes."""
    await first_install(machine)
    opens = datetime.fromtimestamp(EPOCH + machine.loop.virtual, UTC).astimezone() + timedelta(minutes=10)
    machine.window = (f"{opens:%H:%M}-{opens + timedelta(hours=2):%H:%M}",)
    machine.strike("agent", "the owner restarts it with other settings")
    await roll_out(machine, "1.1.0")


async def late_revert(machine: Machine) -> None:
    """A confirmed release turns bad: back to the one before; the same bytes come again under another number."""
    await first_install(machine)
    await roll_out(machine, "4.0.0")
    await until(machine, lambda: confirmed(machine) == "1.0.0", 30.0, 0.3)
    await roll_out(machine, "4.2.0")


async def late_alarm(machine: Machine) -> None:
    """The one before it has turned bad, too: the second that does stays, and alarms."""
    await roll_out(machine, "4.1.0")
    await roll_out(machine, "4.0.0")
    await until(machine, lambda: confirmed(machine) == "4.1.0", 30.0, 0.3)
    await until(machine, lambda: bool(machine.journal.meta.get("alarms")), 40.0, 0.3)


async def taken_at_its_word(machine: Machine) -> None:
    """The application finds fault with what is on trial; what comes back is not what it spoke of."""
    await first_install(machine)
    machine.server.want("1.1.0")
    await until(machine, lambda: phase(machine) == "trial")
    if machine.agent is not None and machine.agent.alive:
        machine.agent.engine.shared.words[UNIT] = Word(healthy=False, message="no detections")
    await machine.settled()
    await asyncio.sleep(5.0)


async def late_alone(machine: Machine) -> None:
    """A confirmed release turns bad where two do not fit: the one before is loaded in a gap."""
    await first_install(machine)
    await configured(machine, policy="memory")
    await roll_out(machine, "4.0.0")
    await until(machine, lambda: confirmed(machine) == "1.0.0", 30.0, 0.3)


async def configured(machine: Machine, **settings: str) -> None:
    """The owner writes other settings, and restarts the agent."""
    for name, value in settings.items():
        setattr(machine, name, value)
    machine.strike("agent", "the owner restarts it with other settings")
    await machine.settled()


async def alone(machine: Machine) -> None:
    """Two releases do not fit beside each other: one makes room for the other; and for one that fails in its trial."""
    await first_install(machine)
    await configured(machine, policy="memory")
    await roll_out(machine, "1.1.0")
    await roll_out(machine, "3.0.0")


async def alone_and_stalled(machine: Machine) -> None:
    """The agent stands still while nothing serves."""
    await first_install(machine)
    await configured(machine, policy="memory")
    machine.server.want("1.1.0")
    await until(machine, lambda: in_gap(machine))
    machine.strike("stall", "scenario")
    await machine.settled()


async def spared(machine: Machine) -> None:
    """A second worker stands by, also for the next release; and takes over."""
    await first_install(machine)
    await configured(machine, policy="availability", spare="always")
    await roll_out(machine, "1.1.0")
    host = machine.host
    if host is not None and host.alive and machine.resting():
        host.spawn(host.kill_worker(host.engine.seats[UNIT].unit.live))
    await machine.settled()


async def host_killer(machine: Machine) -> None:
    """The host ends whenever it is loaded."""
    await first_install(machine)
    await roll_out(machine, "2.5.0")


def in_gap(machine: Machine) -> bool:
    """Nothing serves, on purpose."""
    host = machine.host
    seat = host.engine.seats.get(UNIT) if host is not None and host.alive else None
    return seat is not None and seat.unit.gap is not None


async def late_without_fallback(machine: Machine) -> None:
    """The release before it is no longer intact when it is needed: what has turned bad stays, and alarms."""
    await first_install(machine)
    await roll_out(machine, "4.0.0")
    machine.disk.remove(f"slots/{UNIT}/a/.interlock/seal.json")
    await until(machine, lambda: bool(machine.journal.meta.get("alarms")), 60.0, 0.3)


async def late_orders(machine: Machine) -> None:
    """Every order of older generations arrives once more, late: a stray process, a copy of a message."""
    await upgrade(machine)
    await until(machine, machine.resting)
    host, agent = machine.host, machine.agent
    if host is not None and agent is not None and host.alive and agent.alive and agent.host.open:
        newest = max(order.get("generation", 0) for order in machine.truth.orders)
        late = [order for order in machine.truth.orders if 0 < order.get("generation", 0) < newest]
        for number, order in enumerate(late):
            there = {"folder": f"slots/{UNIT}/a"} if order["op"] == "load" else {}
            host.ask(agent.host, {**order, **there, "id": 1_000_000 + number})
    await machine.settled()


async def _nobody() -> None:
    """No agent runs."""


async def person(machine: Machine, work: Callable[[Machine], Awaitable[None]]) -> str:
    """Somebody asks the agent, once it runs."""
    await until(machine, lambda: machine.agent is not None and machine.agent.alive and machine.agent.ready)
    assert machine.agent is not None
    asked = machine.agent.person(lambda: work(machine))
    done, _ = await asyncio.wait([asked], timeout=60.0)
    return asked.result() if done and not asked.cancelled() else "killed"


async def until(machine: Machine, holds: Callable[[], bool], limit_s: float = 30.0, every_s: float = 0.02) -> bool:
    """Wait for something that a cut may keep from ever being so: then go on all the same."""
    end = machine.loop.virtual + limit_s
    while not holds() and machine.loop.virtual < end:  # noqa: ASYNC110 - virtual time costs nothing
        await asyncio.sleep(every_s)
    return holds()


SCENARIOS: dict[str, Scenario] = {
    story.__name__: story
    for story in (
        first_install,
        upgrade,
        rejected,
        unhealthy,
        worker_death,
        lease_lapse,
        superseded,
        cancelled,
        rollback,
        sideload,
        night,
        late_revert,
        alone,
        alone_and_stalled,
        spared,
        host_killer,
        late_orders,
    )
}
