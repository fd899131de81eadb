"""Measured by a command of the device's owner: the host as ever, but what is measured is asked of the command.

The candidate is loaded by the host all the same: it is the process that holds what will serve. Beside it, and in place
of the incumbent's twin, runs one process of the command each, with the folder of its release.
"""

from __future__ import annotations

from typing import Any

from interlock_agent.config import Unit
from interlock_agent.core.gate import command as said
from interlock_agent.host import messages
from interlock_agent.ports import Clock, Hardware, Host, Program, Programs
from interlock_shared.errors import Refused

TWIN = "by-command"  # in a worker's id: no process of the host


class ByCommand:
    """A Host port around another. `end` ends every process of the command."""

    def __init__(self, host: Host, programs: Programs, hardware: Hardware, clock: Clock, settings: Unit) -> None:
        self._host, self._programs, self._hardware, self._clock = host, programs, hardware, clock
        self._settings = settings
        self._running: dict[str, Program] = {}

    @staticmethod
    def where_wanted(
        settings: Unit, host: Host, programs: Programs, hardware: Hardware, clock: Clock
    ) -> ByCommand | None:
        """One, where the owner has configured a command for the unit."""
        return ByCommand(host, programs, hardware, clock, settings) if settings.gate.command else None

    async def event(self, unit: str, timeout_s: float) -> dict[str, Any] | None:
        """As the host's."""
        return await self._host.event(unit, timeout_s)

    def drop_events(self, unit: str) -> None:
        """As the host's."""
        self._host.drop_events(unit)

    async def request(self, order: Any) -> dict[str, Any]:
        """As the host's, but for what is measured. Raises Refused, Later, Unreachable."""
        if isinstance(order, messages.Load):
            return await self._load(order)
        worker = str(getattr(order, "worker", ""))
        if isinstance(order, messages.Retire):
            await self._end(worker)
            return {} if worker.startswith(TWIN) else await self._host.request(order)
        if isinstance(order, (messages.Probe, messages.Evaluate)):
            return await self._measure(worker, order)
        return await self._host.request(order)

    async def _load(self, order: messages.Load) -> dict[str, Any]:
        loaded: dict[str, Any] = {"worker": f"{TWIN}-{order.role}"}
        if order.role == "candidate":
            loaded = await self._host.request(order)
        began = self._clock.monotonic()
        environment = {"INTERLOCK_UNIT": order.unit, "INTERLOCK_ROLE": order.role, "INTERLOCK_FOLDER": order.folder}
        try:
            program = await self._programs.start(self._settings.gate.command, environment, order.folder)
            self._running[loaded["worker"]] = program
            ready = said.ready(await program.line(self._settings.load_timeout_s))
        except BaseException:  # also where it is given up: whoever asked does not know its name
            await self._end(loaded["worker"])
            if order.role == "candidate":
                await self._host.request(messages.Retire(loaded["worker"], order.generation))
            raise
        took = self._clock.monotonic() - began if ready.load_s is None else ready.load_s
        return {**loaded, "pid": program.pid, "load_s": took, "start_s": took, "runtime": ready.runtime or "command"}

    async def _measure(self, worker: str, order: messages.Probe | messages.Evaluate) -> dict[str, Any]:
        program = self._running.get(worker)
        if program is None:
            raise Refused(f"no process of the command for {worker}", code="worker_died")
        if isinstance(order, messages.Evaluate):
            found = said.evaluation(await program.ask(said.question("evaluate"), order.timeout_s))
        else:
            asked = said.question("measure", first=order.first, runs=order.runs, concurrency=order.concurrency)
            began = self._clock.monotonic()
            line = await program.ask(asked, order.timeout_s)
            found = said.samples(line, order.runs, round((self._clock.monotonic() - began) * 1e9))
        held = self._hardware.process(program.pid)
        memory = {"memory_bytes": held.get("peak_bytes", 0), "resident_bytes": held.get("resident_bytes", 0)}
        return {**found, **memory}

    async def _end(self, worker: str) -> None:
        program = self._running.pop(worker, None)
        if program is not None:
            await program.end()

    async def end(self) -> None:
        """End all that still run."""
        for worker in list(self._running):
            await self._end(worker)
