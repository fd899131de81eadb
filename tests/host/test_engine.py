"""The engine over fakes: what it does when the disk refuses, and that it never does an effect before its record."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

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
        self.trace.append(f"gone {worker}")

    def pid(self, worker: str) -> int:
        return 1

    def said(self, worker: str) -> list[str]:
        return []

    async def move(self, unit: str, listen: str, access: dict[str, Any]) -> str:
        self.trace.append(f"move {listen}")
        return listen

    async def limit(self, unit: str, access: dict[str, Any]) -> None:
        self.trace.append(f"limit {access}")

    async def open(self, unit: str, listen: str, access: dict[str, Any]) -> str:
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


@pytest.fixture
def world() -> World:
    return World()


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


async def test_the_order_of_a_switch_and_its_confirmation(world: World) -> None:
    engine, _ = await trial(world)
    assert world.trace == ["record", "live b", "serve filetype/1.1.0"]
    world.trace.clear()
    assert await engine.confirm("filetype", 2) == {"confirmed": True}
    assert world.trace == ["confirmed b", "record", "serve filetype/1.1.0"]
    await engine.close()


async def test_a_trial_that_cannot_be_recorded_does_not_begin(world: World) -> None:
    engine = await make(world)
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}))
    world.slots["b"] = TWO
    world.fails = {"record"}
    with pytest.raises(WorkerError, match="io"):
        await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    assert (world.pointing["live"], world.serving[0]) == ("a", "filetype/1.0.0")
    world.fails = set()
    await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    assert world.serving == ("filetype/1.1.0", "filetype/1.0.0")
    await engine.close()


async def test_a_switch_whose_link_fails_is_taken_back(world: World) -> None:
    engine = await make(world)
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}))
    world.slots["b"] = TWO
    world.fails = {"live"}
    with pytest.raises(WorkerError, match="io"):
        await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    assert world.serving[0] == "filetype/1.0.0"
    assert world.documents["filetype"]["trial"] is None
    assert world.documents["filetype"]["outcome"]["outcome"] == "interrupted"
    await engine.close()


async def test_a_commit_that_fails_changes_nothing_and_may_be_tried_again(world: World) -> None:
    engine, _ = await trial(world)
    world.fails = {"confirmed"}
    with pytest.raises(WorkerError, match="io"):
        await engine.confirm("filetype", 2)
    (status,) = engine.status()
    assert (status["confirmed"], status["trial"]) == ("filetype/1.0.0", 2)
    world.fails = set()
    assert await engine.confirm("filetype", 2) == {"confirmed": True}
    await engine.close()


async def test_after_a_failed_commit_the_link_is_put_right_before_the_trial_is_forgotten(world: World) -> None:
    engine, _ = await trial(world)
    world.fails = {"confirmed"}
    with pytest.raises(WorkerError):
        await engine.confirm("filetype", 2)
    await engine.revert("filetype", 2, "x")
    assert world.serving[0] == "filetype/1.0.0"
    assert world.documents["filetype"]["trial"] is not None  # not forgotten while the link is in doubt
    world.fails, world.trace = set(), []
    await turn()
    world.time += 2.0  # the timer tries again
    await turn()
    assert world.trace[:2] == ["confirmed a", "record"]
    assert world.documents["filetype"]["trial"] is None
    await engine.close()


async def test_a_death_is_dealt_with_also_when_the_disk_refuses(world: World) -> None:
    engine, worker = await trial(world)
    world.fails = {"record", "live"}
    await engine.worker_died(worker, "SIGKILL")
    assert world.serving[0] == "filetype/1.0.0"
    assert (await engine.confirm("filetype", 2))["outcome"] == "reverted"
    world.fails = set()
    await turn()
    world.time += 2.0
    await turn()
    assert world.pointing["live"] == "a"
    assert world.documents["filetype"]["outcome"]["reason"] == "worker_died"
    await engine.close()


async def test_the_timer_ends_a_lapsed_trial(world: World) -> None:
    engine, _ = await trial(world)
    world.time += 29.0
    await turn()
    assert world.serving[0] == "filetype/1.1.0"
    await engine.renew("filetype", 2)
    world.time += 29.0
    await turn()
    assert world.serving[0] == "filetype/1.1.0"
    world.time += 1.0
    await turn()
    assert world.serving[0] == "filetype/1.0.0"
    assert [e["reason"] for e in world.events if e["event"] == "outcome"] == ["lease_lapsed"]
    await engine.close()


async def test_settings_that_the_disk_refused_are_written_later(world: World) -> None:
    engine = await make(world)
    world.fails = {"record"}
    with pytest.raises(OSError, match="no space"):
        await engine.configure("filetype", "127.0.0.1:0", {"access": {"users": ["camera"]}})
    world.fails = set()
    await turn()
    world.time += 2.0
    await turn()
    assert world.documents["filetype"]["options"] == {"access": {"users": ["camera"]}}, "or a restart would forget them"
    await engine.close()


@pytest.mark.parametrize(("known", "listen", "opened"), [
    ("127.0.0.1:41234", "127.0.0.1:0", "127.0.0.1:41234"),
    ("0.0.0.0:41234", "127.0.0.1:0", "127.0.0.1:8500"),
    ("unix:/run/x.sock", "127.0.0.1:0", "127.0.0.1:8500"),
])  # fmt: skip
async def test_a_port_that_was_chosen_is_kept_on_its_own_address_alone(
    world: World, known: str, listen: str, opened: str
) -> None:
    engine = await make(world)
    await engine.close()
    world.documents["filetype"] |= {"listen": listen, "address": known}
    again = Engine(world, world, world, world, world, "x", world)
    await again.start()
    assert again.seats["filetype"].address == opened
    await again.close()


async def test_a_confirmed_release_that_does_not_load_is_tried_again_later(world: World) -> None:
    world.fails = {"/slots/a"}
    engine = Engine(world, world, world, world, world, "x", world)
    await engine.configure("filetype", "127.0.0.1:0", {})
    await turn()
    (status,) = engine.status()
    assert (status["ready"], status["crashes"]) == (False, 3)
    assert "does not open" in status["trouble"]
    world.fails = set()
    world.time += 1.0
    await turn()
    assert engine.status()[0]["live"] == "filetype/1.0.0"
    await engine.close()


async def test_a_unit_that_cannot_listen_does_not_keep_the_others_from_serving(world: World) -> None:
    engine = await make(world)
    await engine.close()
    again = Engine(world, world, world, world, world, "y", world)
    world.fails = {"open"}
    await again.start()
    assert again.status() == []
    world.fails = set()
    assert await again.configure("filetype", "127.0.0.1:0", {}) == "127.0.0.1:8500"
    await again.close()


async def test_the_order_of_a_gap_and_its_end(world: World) -> None:
    engine = await make(world)
    (former,) = engine.seats["filetype"].unit.workers
    world.trace.clear()
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    assert world.trace == ["record", "serve -", f"gone {former}", "open /two"]
    assert former in world.ended
    world.trace.clear()
    world.time += 10.0
    await turn()
    assert world.trace == ["serve -", f"gone {loaded.worker}", "open /slots/a", "serve filetype/1.0.0"]
    assert world.events[-1]["gap_s"] == 10.0
    with pytest.raises(WorkerError, match="gap_over"):
        await engine.probe(Probe(loaded.worker, 2, 0, 1))
    await engine.close()


async def test_a_gap_that_the_disk_does_not_let_begin_costs_nothing(world: World) -> None:
    engine = await make(world)
    world.fails = {"record"}
    with pytest.raises(WorkerError, match="io"):
        await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    assert world.serving[0] == "filetype/1.0.0"
    world.fails = set()
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    world.slots["b"], world.fails = TWO, {"live"}
    with pytest.raises(WorkerError, match="io"):  # the trial was recorded: it is over, and the confirmed one is loaded
        await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)
    await turn()
    assert world.serving[0] == "filetype/1.0.0"
    assert world.documents["filetype"]["outcome"]["outcome"] == "interrupted"
    await engine.close()


async def test_a_revert_without_a_standby_is_answered_when_the_confirmed_release_serves(world: World) -> None:
    engine = await make(world)
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}, gap_s=10.0))
    world.slots["b"] = TWO
    world.time += 3.0
    assert (await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)).gap_s == 3.0
    reverted = await engine.revert("filetype", 2, "p95")
    assert reverted.release == "filetype/1.0.0"
    await engine.close()
