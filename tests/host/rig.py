"""A real host in a folder of its own, an agent's end of its control socket, and clients that never stop asking.

Nothing here waits for a time to pass: everything waits for a condition, with a deadline that only a failure reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlock_agent.host import messages
from tests.guard import guarded_environment
from tests.host import models

DEADLINE_S = 30.0
UNIT = "filetype"


async def until(condition: Callable[[], Any], what: str = "condition") -> Any:
    """The first true value of the condition."""
    end = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {DEADLINE_S} s: {what}")
        await asyncio.sleep(0.005)


def free_port() -> str:
    """An address that nobody listens on, and that the kernel gives nobody as the near end of a connection: a client
    that tries again while nobody listens could else be connected to itself."""
    while True:
        address = "127.0.0.1", random.randrange(15_000, 30_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(address)
            return f"{address[0]}:{address[1]}"


class OrderError(Exception):
    """The host refused."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Agent:
    """The agent's end: orders, and the events that came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def connect(cls, path: Path) -> Agent:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(messages.encode(messages.hello("0", "agent")))
        await messages.read_frame(reader)
        return cls(reader, writer)

    async def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                frame = await messages.read_frame(self._reader)
                if "event" in frame:
                    self.events.append(frame)
                elif not self._answers[frame["id"]].done():
                    self._answers[frame["id"]].set_result(frame)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(ConnectionError("the host has gone"))
                future.exception()

    async def order(self, order: Any) -> dict[str, Any]:
        """Ask; the answer. Raises OrderError."""
        self._number += 1
        future = self._answers[self._number] = asyncio.get_running_loop().create_future()
        self._writer.write(messages.encode(messages.to_request(self._number, order)))
        answer = await asyncio.wait_for(future, DEADLINE_S)
        if "error" in answer:
            raise OrderError(answer["error"]["code"], answer["error"]["message"])
        return dict(answer["ok"])

    async def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for an event with those fields."""

        def look() -> dict[str, Any] | None:
            for event in self.events:
                if event["event"] == kind and all(event.get(k) == v for k, v in fields.items()):
                    return event
            return None

        return dict(await until(look, f"event {kind} {fields}; came: {self.events[-5:]}"))

    async def status(self, unit: str = UNIT) -> dict[str, Any]:
        answer = await self.order(messages.Status())
        return dict(next(u for u in answer["units"] if u["unit"] == unit))

    async def close(self) -> None:
        self._writer.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Rig:
    """A host process; may be killed and started again in the same folder."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    guarded: bool = True  # measurements do without the guards, which look at every opened file
    process: asyncio.subprocess.Process = field(init=False)
    agent: Agent = field(init=False)
    address: str = ""

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def slots(self) -> Path:
        return self.state / "slots" / UNIT

    async def start(self) -> Agent:
        config = {"state_dir": str(self.state), "run_dir": str(self.folder / "run"), **self.settings}
        file = self.folder / "host.toml"
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items())
        await asyncio.to_thread(file.write_text, lines)
        log = await asyncio.to_thread((self.folder / "host.log").open, "ab")
        command = [sys.executable, "-m", "interlock_agent.host", "run", "--config", str(file)]
        with log:
            self.process = await self.spawn(command, guarded_environment() if self.guarded else dict(os.environ), log)
        control = self.folder / "run" / "host.sock"

        async def connect() -> Agent:
            while True:
                assert self.process.returncode is None, (self.folder / "host.log").read_text()
                with contextlib.suppress(OSError, EOFError):
                    return await Agent.connect(control)
                await asyncio.sleep(0.01)

        self.agent = await asyncio.wait_for(connect(), DEADLINE_S)
        return self.agent

    async def spawn(self, command: list[str], environment: dict[str, str], log: Any) -> asyncio.subprocess.Process:
        """The host's process."""
        return await asyncio.create_subprocess_exec(*command, stderr=log, env=environment)

    async def configure(self, listen: str = "127.0.0.1:0", unit: str = UNIT, **options: Any) -> str:
        self.address = (await self.agent.order(messages.Configure(unit, listen, options)))["address"]
        return self.address

    async def load(self, generation: int, role: str = "candidate", **model: Any) -> dict[str, Any]:
        """A worker on a new folder in incoming/; version 1.<generation>.0 unless said otherwise. `gap_s`: alone."""
        options = model.pop("options", {})
        gap = (model.pop("gap_s", 0.0), model.pop("expected_s", 0.0), 10.0)
        version = model.pop("version", f"1.{generation}.0")
        folder = self.state / "incoming" / f"{generation}-{version}"
        model.setdefault("scale", float(generation))
        await asyncio.to_thread(models.make_slot, folder, UNIT, version, generation, **model)
        return await self.agent.order(messages.Load(UNIT, generation, str(folder), role, options, *gap))

    async def promote(self, generation: int, lease_s: float = 30.0, drain_max_s: float = 10.0, **model: Any) -> str:
        """Load, put into the spare slot, promote; the worker."""
        worker = (await self.load(generation, **model))["worker"]
        status = await self.agent.status()
        slot = "b" if status["confirmed_slot"] == "a" else "a"
        version = model.get("version", f"1.{generation}.0")
        await asyncio.to_thread(self.place, self.state / "incoming" / f"{generation}-{version}", slot)
        await self.agent.order(messages.Promote(UNIT, generation, worker, slot, lease_s, drain_max_s))
        return str(worker)

    def place(self, folder: Path, slot: str) -> None:
        self.slots.mkdir(parents=True, exist_ok=True)
        target = self.slots / slot
        if target.exists():
            target.rename(self.state / "incoming" / f"old-{time.monotonic_ns()}")
        folder.rename(target)

    async def confirmed(self, generation: int, **model: Any) -> str:
        """Promote and confirm; the worker."""
        worker = await self.promote(generation, **model)
        assert await self.agent.order(messages.Confirm(UNIT, generation)) == {"confirmed": True}
        return worker

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    async def live_pid(self) -> int:
        status = await self.agent.status()
        return int(next(w["pid"] for w in status["workers"] if w["role"] == "live"))

    async def kill_host(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        await self.agent.close()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        await self.agent.close()
        if self.process.returncode is None:
            self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), DEADLINE_S)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
                raise
        return self.process.returncode or 0

    def children(self) -> list[int]:
        """Processes of this rig that live: every process whose command line or parent is ours."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    environment = (entry / "environ").read_bytes()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    if f"PYTHONPATH={self.folder}/run/packages".encode() in environment and state != "Z":
                        found.append(int(entry.name))
        return found


@contextlib.asynccontextmanager
async def running(folder: Path, *, guarded: bool = True, **settings: Any) -> AsyncIterator[Rig]:
    """A host with one configured unit; ended in any case, and nothing left of it."""
    rig = Rig(folder, settings, guarded)
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    await rig.start()
    try:
        await rig.configure()
        yield rig
    finally:
        code = await rig.stop()
        await until(lambda: not rig.children(), f"children left: {rig.children()}")
    assert code in (0, -signal.SIGKILL)
