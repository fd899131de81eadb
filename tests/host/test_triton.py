"""A real Triton Inference Server serves what is live: loaded before the former one goes, taken back, told again."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.host import messages
from interlock_agent.host.adapters.hooks import OwnersHooks
from interlock_agent.host.engine import Engine
from interlock_agent.host.following import RETRY_HOOK_S, WATCH_S
from interlock_agent.host.ports import WorkerError
from interlock_agent.host.states import Release
from tests.host import models
from tests.host.rig import UNIT, running, until
from tests.host.world import World, turn
from tests.rig.triton import TritonServer

pytestmark = [pytest.mark.e2e]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One for the whole file."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    one = TritonServer(tmp_path_factory.mktemp("triton"), port)
    one.start()
    yield one
    one.stop()


class Traffic:
    """A thread that never stops asking; counts what it was answered."""

    def __init__(self, server: TritonServer, model: str) -> None:
        self._server, self._model, self._stop = server, model, threading.Event()
        self.seen: Counter[tuple[int, Any]] = Counter()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.seen[self._server.infer(self._model)] += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


async def test_switch_confirm_and_revert_under_traffic(server: TritonServer, short_path: Path) -> None:
    async with running(short_path) as rig:
        await rig.configure(**server.settings())
        await rig.confirmed(1)
        assert await asyncio.to_thread(server.infer, UNIT) == (200, 1.0)
        with Traffic(server, UNIT) as traffic:
            await rig.promote(2)
            assert await asyncio.to_thread(server.infer, UNIT) == (200, 2.0), "the switch is answered when it serves"
            assert (await asyncio.to_thread(server.ask, f"/v2/models/{UNIT}/versions/1/ready"))[0] == 400, "and alone"
        assert {status for status, _ in traffic.seen} == {200}, traffic.seen
        assert set(traffic.seen) == {(200, 1.0), (200, 2.0)}


# --- the rest of the table: the engine over fakes, the real hook, the real server


class Device(World):
    """Slots on a disk; workers and fronts are fakes, the hook is the owner's. `name`: of the model in Triton."""

    def __init__(self, server: TritonServer, folder: Path, name: str, **settings: Any) -> None:
        super().__init__()
        self.server, self.folder, self.name = server, folder, name
        self.settings = server.settings(name=name, **settings)
        self.hooks, self.passed = OwnersHooks(), asyncio.Event()
        self.slots.clear()
        self.pointing.update(confirmed="", live="")
        self.engine: Engine

    def slot_folder(self, unit: str, slot: str) -> str:
        return str(self.folder / slot)

    def fill(self, slot: str, generation: int, **more: Any) -> Release:
        models.make_slot(self.folder / slot, UNIT, f"1.{generation}.0", generation, scale=float(generation), **more)
        self.slots[slot] = Release(UNIT, f"1.{generation}.0", f"m{generation}", generation)
        return self.slots[slot]

    async def seal_of(self, folder: str) -> Release | None:
        return self.slots.get(Path(folder).name)

    async def sleep(self, seconds: float) -> None:
        until = self.time + seconds
        while self.time < until:
            await self.passed.wait()

    def later(self, seconds: float) -> None:
        """Time passes for whoever sleeps."""
        self.time += seconds
        self.passed.set()
        self.passed = asyncio.Event()

    async def run(self, hook: Any, facts: Any) -> str:
        self.told.append(dict(facts))
        return await self.hooks.run(hook, facts)

    async def lost(self, hook: Any, facts: Any) -> str:
        self.looked.append(dict(facts))
        return await self.hooks.lost(hook, facts)

    async def away(self, hook: Any) -> str:
        return await self.hooks.away(hook)

    async def boot(self, token: str = "x") -> None:
        """A host starts."""
        self.engine = Engine(self, self, self, self, self, token, self)
        await self.engine.start()
        await self.engine.configure(UNIT, "127.0.0.1:0", self.settings)
        await self.told_all()

    async def told_all(self) -> None:
        seat = self.engine.seats[UNIT]
        await turn()
        await until(lambda: seat.following is None or seat.following.done(), "the hook ends")
        await turn()

    async def switch(self, slot: str, generation: int) -> None:
        """Raises WorkerError."""
        loaded = await self.engine.load(messages.Load(UNIT, generation, str(self.folder / slot), "candidate", {}))
        await self.engine.promote(UNIT, generation, loaded.worker, slot, 300.0, 1.0)

    async def infer(self) -> tuple[int, Any]:
        return await asyncio.to_thread(self.server.infer, self.name)

    def versions(self) -> set[str]:
        """Folders in the repository."""
        return {name for name in os.listdir(self.server.repository / self.name) if name.isdigit()}

    @property
    def status(self) -> dict[str, Any]:
        return self.engine.status()[0]


async def first(server: TritonServer, folder: Path, name: str, **settings: Any) -> Device:
    """A device that serves its confirmed first release through Triton."""
    device = Device(server, folder, name, **settings)
    await asyncio.to_thread(device.fill, "a", 1)
    device.pointing.update(confirmed="a", live="a")
    await device.boot()
    assert device.status["hook_trouble"] == ""
    assert await device.infer() == (200, 1.0)
    return device


async def test_one_that_triton_refuses_goes_back_and_is_never_served(server: TritonServer, tmp_path: Path) -> None:
    device = await first(server, tmp_path, "refusing")
    (server.folder / "refused-2").touch()
    await asyncio.to_thread(device.fill, "b", 2)
    with Traffic(server, "refusing") as traffic:
        with pytest.raises(WorkerError, match="this one is not for me") as refused:
            await device.switch("b", 2)
        await device.told_all()
    assert refused.value.code == "hook_failed"
    assert set(traffic.seen) == {(200, 1.0)}
    assert device.pointing["live"] == "a"
    assert device.status["outcome"]["reason"] == "hook_failed"
    assert (device.status["hook_trouble"], device.versions()) == ("", {"1"})
    (server.folder / "refused-2").unlink()
    await device.engine.close()


async def test_a_trial_that_is_taken_back_is_loaded_back_and_a_confirmed_one_is_tidied(
    server: TritonServer, tmp_path: Path
) -> None:
    device = await first(server, tmp_path, "back", request=str(request_file(tmp_path)))
    await asyncio.to_thread(device.fill, "b", 2)
    with Traffic(server, "back") as traffic:
        await device.switch("b", 2)
        assert device.versions() == {"1", "2"}, "the way back needs no disk"
        await device.engine.revert(UNIT, 2, "worse")
        await device.told_all()
        assert await device.infer() == (200, 1.0)
        assert device.versions() == {"1"}
        assert (tmp_path / "a" / "model.onnx").samefile(server.repository / "back" / "1" / "model.onnx"), "a hard link"
        device.slots["b"] = Release(UNIT, "1.2.0", "m2", 3)
        models.seal(tmp_path / "b", UNIT, "1.2.0", 3)
        await device.switch("b", 3)
        await device.engine.confirm(UNIT, 3)
        device.later(WATCH_S + 1)
        await until(lambda: device.versions() == {"3"}, "the former version's folder goes")
    assert {status for status, _ in traffic.seen} == {200}, traffic.seen
    await device.engine.close()


def request_file(folder: Path) -> Path:
    path = folder / "request.json"
    path.write_text('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]}')
    return path


async def test_a_release_that_answers_too_late_goes_back(server: TritonServer, tmp_path: Path) -> None:
    device = await first(server, tmp_path, "slow", request=str(request_file(tmp_path)))
    device.settings["hook"]["triton"]["answer_ms_max"] = 0.001
    await asyncio.to_thread(device.fill, "b", 2)
    await device.engine.configure(UNIT, "127.0.0.1:0", device.settings)
    with pytest.raises(WorkerError, match=r"more than 0\.001 ms"):
        await device.switch("b", 2)
    await device.engine.close()


async def test_triton_that_is_down_is_waited_for_and_one_that_was_restarted_is_told(
    server: TritonServer, tmp_path: Path
) -> None:
    device = await first(server, tmp_path, "down")
    await asyncio.to_thread(device.fill, "b", 2)
    loaded = await device.engine.load(messages.Load(UNIT, 2, str(tmp_path / "b"), "candidate", {}))
    await asyncio.to_thread(server.stop)
    with pytest.raises(WorkerError, match="does not answer") as refused:
        await device.engine.promote(UNIT, 2, loaded.worker, "b", 300.0, 1.0)
    assert refused.value.code == "hook_away"
    assert "does not answer" in device.status["hook_trouble"]
    assert (device.status["trial"], device.pointing["live"]) == (0, "a"), "nothing was begun"
    device.later(WATCH_S + 1)
    seat = device.engine.seats[UNIT]
    await until(lambda: seat.hook_again is not None, "it is missed, and told again, in vain")
    await turn()  # the wait for the next try has begun
    await asyncio.to_thread(server.start)
    assert (await device.infer())[0] in (400, 404), "it starts empty"
    device.later(RETRY_HOOK_S + 1)
    await until(lambda: device.status["hook_trouble"] == "", "it is told again")
    assert await device.infer() == (200, 1.0)
    await device.engine.promote(UNIT, 2, loaded.worker, "b", 300.0, 1.0)
    assert await device.infer() == (200, 2.0)
    # Lost in the trial: the release is the first suspect, and not condemned.
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    device.later(WATCH_S + 1)
    await until(lambda: device.status["outcome"].get("reason") == "hook_lost", "the trial ends")
    await device.told_all()
    assert device.status["outcome"]["outcome"] == "interrupted"
    assert await device.infer() == (200, 1.0)
    await device.engine.close()


async def test_a_host_that_starts_again_disturbs_nothing_and_tells_what_was_not_told(
    server: TritonServer, tmp_path: Path
) -> None:
    device = await first(server, tmp_path, "again")
    await device.engine.close()
    device.told.clear()
    await device.boot("y")
    assert device.told == [], "Triton has it"
    await asyncio.to_thread(device.fill, "b", 2)
    await device.switch("b", 2)
    await device.engine.close()  # in a trial: the next host serves the confirmed one
    await device.boot("z")
    assert await device.infer() == (200, 1.0)
    await device.engine.close()


async def test_a_first_release_that_is_taken_back_is_unloaded(server: TritonServer, tmp_path: Path) -> None:
    device = Device(server, tmp_path, "only")
    await asyncio.to_thread(device.fill, "a", 1)
    await device.boot()
    await device.switch("a", 1)
    assert await device.infer() == (200, 1.0)
    await device.engine.revert(UNIT, 1, "worse")
    await device.told_all()
    assert device.status["hook_trouble"] == ""
    assert (await device.infer())[0] in (400, 404)
    assert os.listdir(server.repository / "only") == []
    await device.engine.close()
