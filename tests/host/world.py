"""Fakes of every port of the host's engine, and an engine over them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from interlock_agent.host.engine import Engine
from interlock_agent.host.messages import Evaluation, Load, Loaded, Looked, Probe, Promoted, Samples
from interlock_agent.host.ports import Upstream, WorkerError
from interlock_agent.host.states import Release

ONE = Release("filetype", "1.0.0", "m1", 1)
TWO = Release("filetype", "1.1.0", "m2", 2)


class World:
    """Fakes of every port in one; `trace` is what was done, in order. `fails` names what the disk refuses."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.fails: set[str] = set()
        self.documents: dict[str, dict[str, Any]] = {}
        self.slots: dict[str, Release] = {"a": ONE}
        self.pointing = {"confirmed": "a", "live": "a"}
        self.serving: tuple[str, str] = ("", "")
        self.events: list[dict[str, Any]] = []
        self.time = 100.0
        self.ended: set[str] = set()
        self.told: list[dict[str, str]] = []
        self.hook_troubles: list[str] = []
        self.hook_lost = self.hook_away = ""
        self.looked: list[dict[str, str]] = []
        self.may_go = asyncio.Event()  # processes that were told to end
        self.may_go.set()

    def _do(self, what: str) -> None:
        self.trace.append(what)
        if what.partition(" ")[0] in self.fails:
            raise OSError(28, f"no space for {what}")

    async def units(self) -> list[str]:
        return sorted(self.documents)

    async def read(self, unit: str) -> dict[str, Any] | None:
        return self.documents.get(unit)

    async def write(self, unit: str, document: dict[str, Any]) -> None:
        self._do("record")
        self.documents[unit] = document

    async def links(self, unit: str) -> tuple[str, str]:
        return self.pointing["confirmed"], self.pointing["live"]

    async def link(self, unit: str, name: str, slot: str) -> None:
        self._do(f"{name} {slot}")
        self.pointing[name] = slot

    async def seal(self, unit: str, slot: str) -> Release | None:
        return self.slots.get(slot)

    async def seal_of(self, folder: str) -> Release | None:
        return {"/one": ONE, "/two": TWO}.get(folder)

    def slot_folder(self, unit: str, slot: str) -> str:
        return f"/slots/{slot}"

    async def start(
        self,
        worker: str,
        unit: str,
        folder: str,
        generation: int,
        options: dict[str, Any],
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> Loaded:
        if room is not None:
            await room()
        self.trace.append(f"open {folder}")
        if "fork" in self.fails:
            raise OSError(11, "no process")
        if folder in self.fails:
            raise WorkerError("load_failed", "it does not open")
        return Loaded(worker, 1, [], [], [], False, 0.0, 0, "fake")

    async def probe(self, order: Probe) -> Samples:
        return Samples([1] * order.runs, [1] * order.runs, 0)

    async def evaluate(self, worker: str, timeout_s: float, answers: str = "", items: int = 0) -> Evaluation:
        return Evaluation(0, [], {}, 0.0, 0)

    async def look(self, worker: str, timeout_s: float) -> Looked:
        return Looked()

    async def serves(self, worker: str) -> None:
        pass

    async def end(self, worker: str) -> None:
        self.ended.add(worker)

    async def gone(self, worker: str) -> None:
        await self.may_go.wait()
        self.trace.append(f"gone {worker}")

    def pid(self, worker: str) -> int:
        return 1

    def said(self, worker: str) -> list[str]:
        return []

    async def move(self, unit: str, listen: str, access: dict[str, Any]) -> str:
        self.trace.append(f"move {listen}")
        return listen

    async def check(self, unit: str, options: dict[str, Any]) -> None:
        pass

    async def limit(self, unit: str, options: dict[str, Any]) -> None:
        self.trace.append(f"limit {options.get('access') or {}}")

    async def open(self, unit: str, listen: str, options: dict[str, Any]) -> str:
        if "open" in self.fails:
            raise OSError(98, "in use")
        return listen.replace(":0", ":8500")

    async def serve(
        self,
        unit: str,
        live: Upstream | None,
        standby: Upstream | None,
        drain_s: float,
        wait_s: float = 0.0,
        expected_s: float = 0.0,
    ) -> Awaitable[Promoted]:
        self.serving = (live.release if live else "", standby.release if standby else "")
        self.trace.append(f"serve {self.serving[0] or '-'}")
        done: asyncio.Future[Promoted] = asyncio.get_running_loop().create_future()
        done.set_result(Promoted(0, 0, 0.1))
        return done

    async def settle(self, unit: str) -> None:
        pass

    def now(self) -> float:
        return self.time

    def utc(self) -> float:
        return 1e9 + self.time

    async def sleep(self, seconds: float) -> None:
        until = self.time + seconds
        while self.time < until:  # noqa: ASYNC110 - the test moves the time by hand
            await asyncio.sleep(0)

    def push(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    async def run(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        self.trace.append(f"hook {facts['RELEASE'] or '-'}")
        self.told.append(dict(facts))
        return self.hook_troubles.pop(0) if self.hook_troubles else ""

    async def lost(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        self.looked.append(dict(facts))
        return self.hook_lost

    async def away(self, hook: Mapping[str, Any]) -> str:
        return self.hook_away


async def turn(times: int = 50) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def make(world: World) -> Engine:
    engine = Engine(world, world, world, world, world, "x", world)
    await engine.configure("filetype", "127.0.0.1:0", {})
    await turn()
    assert world.serving[0] == "filetype/1.0.0"
    return engine


async def trial(world: World) -> tuple[Engine, str]:
    engine = await make(world)
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}))
    world.slots["b"] = TWO
    world.trace.clear()
    await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    return engine, loaded.worker
