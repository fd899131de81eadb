"""Memory that applications share with a model: frames that are not copied through HTTP, and nobody else's memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock_agent.host import messages
from tests.host import clients
from tests.host.clients import INFER, Connection, Reply, request
from tests.host.rig import UNIT, Rig, running

MAGIC = 666.0
FLOATS = 4 * 4  # bytes of one item
ME = os.getuid()


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path) as rig:
        yield rig


def put(shared: Path, values: list[float], at: int = 0) -> None:
    data = np.array(values, np.float32).tobytes()
    with shared.open("r+b") as writer:
        writer.seek(at)
        writer.write(data)


def got(shared: Path, at: int = 0, count: int = 4) -> list[float]:
    return list(map(float, np.fromfile(shared, np.float32, count, offset=at)))


def at(region: str, size: Any = FLOATS, offset: Any = None) -> dict[str, Any]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size}
    return {**parameters, **({} if offset is None else {"shared_memory_offset": offset})}


def asking(given: dict[str, Any], wanted: dict[str, Any] | None = None, rows: int = 1) -> bytes:
    x = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "parameters": given}
    outputs = {} if wanted is None else {"outputs": [{"name": "y", "parameters": wanted}]}
    return request(INFER, json.dumps({"inputs": [x], **outputs}).encode())


async def region(connection: Connection, verb: str, name: str = "", **document: Any) -> Reply:
    path = f"/v2/systemsharedmemory/{f'region/{name}/' if name else ''}{verb}"
    return await connection.ask(request(path, json.dumps(document).encode(), "GET" if verb == "status" else "POST"))


async def registered(connection: Connection, name: str, shared: Path, size: int = 4096, offset: int = 0) -> None:
    reply = await region(connection, "register", name, key=f"/{shared.name}", byte_size=size, offset=offset)
    assert (reply.status, reply.json()) == (200, {})


# --- the whole way --------------------------------------------------------------------------------------------------


class Foreign:
    """`tritonclient` with one region of 64 bytes: the input first, the output from byte 32."""

    def __init__(self, rig: Rig) -> None:
        from tritonclient.utils import shared_memory as shm

        self._rig, self._shm = rig, shm
        self.key = f"il-{os.getpid()}"
        self._handle = shm.create_shared_memory_region("frames", self.key, 64)
        self._x = np.arange(4, dtype=np.float32).reshape(1, 4) + 1
        shm.set_shared_memory_region(self._handle, [self._x])

    async def talk(self, what: Callable[[Any], Any]) -> Any:
        import tritonclient.http as triton

        def work() -> Any:  # a client is one thread's
            client = triton.InferenceServerClient(self._rig.address)
            try:
                return what(client)
            finally:
                client.close()

        return await asyncio.to_thread(work)

    async def register(self) -> None:
        await self.talk(lambda client: client.register_system_shared_memory("frames", f"/{self.key}", 64))

    async def factor(self) -> float:
        """What the model that answers multiplies by."""
        return float(await self.talk(self._infer))

    def _infer(self, client: Any) -> float:
        import tritonclient.http as triton

        given = triton.InferInput("x", [1, 4], "FP32")
        given.set_shared_memory("frames", self._x.nbytes)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("frames", self._x.nbytes, offset=32)
        said = client.infer(UNIT, [given], outputs=[wanted]).get_output("y")
        assert said["parameters"] == at("frames", 16, 32)
        assert "data" not in said
        found = self._shm.get_contents_as_numpy(self._handle, np.float32, [1, 4], offset=32)
        assert np.array_equal(found, self._x * found[0, 0])
        return float(found[0, 0])

    def close(self) -> None:
        self._shm.destroy_shared_memory_region(self._handle)


@pytest.mark.e2e
@pytest.mark.known_user
async def test_a_foreign_client_registers_once_and_swaps_reverts_and_deaths_know_its_memory(rig: Rig) -> None:
    from tritonclient.utils import InferenceServerException

    await rig.confirmed(1)
    foreign = Foreign(rig)
    with contextlib.closing(foreign):
        await foreign.register()
        described = {"name": "frames", "key": f"/{foreign.key}", "offset": 0, "byte_size": 64}
        assert await foreign.talk(lambda client: client.get_system_shared_memory_status()) == [described]
        assert await foreign.talk(lambda client: client.get_system_shared_memory_status("frames")) == [described]
        assert await foreign.factor() == 1.0
        await rig.promote(2)
        assert await foreign.factor() == 2.0
        await rig.agent.order(messages.Revert(UNIT, 2, "test"))
        assert await foreign.factor() == 1.0
        rig.kill(await rig.live_pid())
        assert await foreign.factor() == 1.0, "by the worker that replaced it"
        live = await rig.live_pid()
        rig.kill(next(pid for pid in rig.children() if pid != live))
        assert (await clients.infer(rig.address)).status == 200, "by the next front"
        assert await foreign.factor() == 1.0
        await rig.kill_host()
        await rig.start()
        assert (await clients.infer(rig.address)).status == 200
        with pytest.raises(InferenceServerException, match="register it"):
            await foreign.factor()
        await foreign.register()
        assert await foreign.factor() == 1.0
        await foreign.talk(lambda client: client.unregister_system_shared_memory("frames"))
        assert await foreign.talk(lambda client: client.get_system_shared_memory_status()) == []


@pytest.mark.e2e
@pytest.mark.known_user
async def test_what_is_refused_and_by_which_name(rig: Rig, shared: Path) -> None:
    await rig.confirmed(1, scale=2.0)
    put(shared, [1, 2, 3, 4])
    async with Connection(rig.address) as c:
        for path, method, body, expected in (
            ("/v2/systemsharedmemory/region/a/status", "GET", b"", (404, "unknown_region")),
            ("/v2/systemsharedmemory/status", "POST", b"", (405, "method_not_allowed")),
            ("/v2/systemsharedmemory/register", "POST", b"{}", (404, "not_found")),
            ("/v2/systemsharedmemory/region/%ff/register", "POST", b"{}", (400, "bad_region")),
            ("/v2/systemsharedmemory/region//register", "POST", b"{}", (400, "bad_region")),
            ("/v2/systemsharedmemory/region/a/register", "POST", b"[]", (400, "bad_request")),
            ("/v2/systemsharedmemory/region/a/register", "POST", b"x", (400, "bad_json")),
            ("/v2/systemsharedmemory/region/a/register", "POST", b" " * 20000, (413, "body_too_large")),
            ("/v2/cudasharedmemory/status", "GET", b"", (404, "not_found")),
        ):
            reply = await c.ask(request(path, body, method))
            assert (reply.status, reply.json().get("code")) == expected, path
        await registered(c, "a", shared, size=64, offset=0)
        await registered(c, "a", shared, size=64, offset=0)  # once more is the same
        other = await region(c, "register", "a", key=shared.name, byte_size=65)
        assert (other.status, other.json()["code"]) == (409, "region_exists")
        for given, wanted, rows, code in (
            (at("b"), None, 1, "unknown_region"),
            (at("a", 16, 49), None, 1, "outside_region"),
            (at("a", 16, -1), None, 1, "bad_region"),
            (at("a", "16"), None, 1, "bad_region"),
            ({"shared_memory_region": "a"}, None, 1, "bad_region"),
            (at("a", 15), None, 1, "wrong_data_length"),
            ({**at("a"), "binary_data_size": 16}, None, 1, "bad_request"),
            (at(["a"]), None, 1, "unknown_region"),  # type: ignore[arg-type]
            (at("a"), at("b"), 1, "unknown_region"),
            (at("a"), at("a", 16, 50), 1, "outside_region"),
            (at("a", 32), at("a", 31), 2, "region_too_small"),
        ):
            reply = await c.ask(asking(given, wanted, rows))
            assert (reply.status, reply.json()["code"]) == (400, code), (given, wanted)
        reply = await c.ask(asking(at("a"), at("a", 20, 16)))
        assert reply.json()["outputs"][0]["parameters"] == at("a", 16, 16)
        assert (got(shared, 16), got(shared, 32)) == ([2, 4, 6, 8], [0, 0, 0, 0])
        reply = await c.ask(asking(at("a"), {"binary_data": False}))
        assert reply.json()["outputs"][0]["data"] == [2, 4, 6, 8]
        assert (await region(c, "unregister", "nobody's")).status == 200
        assert (await region(c, "unregister")).status == 200
        assert (await region(c, "status")).json() == []


@pytest.mark.e2e
@pytest.mark.known_user
async def test_a_region_that_is_shortened_costs_its_owner_an_answer_and_nobody_a_worker(rig: Rig, shared: Path) -> None:
    await rig.confirmed(1)
    live = await rig.live_pid()
    x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    into = {"inputs": [x], "outputs": [{"name": "y", "parameters": at("a", 16, 4000)}]}
    async with Connection(rig.address) as c:
        await registered(c, "a", shared)
        os.truncate(shared, 100)
        reply = await c.ask(asking(at("a", 16, 96)))
        assert (reply.status, reply.json()["code"]) == (400, "truncated_region")
        reply = await c.ask(request(INFER, json.dumps(into).encode()))
        assert (reply.status, reply.json()["code"]) == (400, "truncated_region")
        assert (await c.ask(asking(at("a")))).status == 200
        assert shared.stat().st_size == 100
        os.unlink(shared)
        assert (await c.ask(asking(at("a")))).status == 200, "it lives as long as it is registered"
    assert await rig.live_pid() == live


@pytest.mark.e2e
@pytest.mark.known_user
async def test_a_worker_that_was_given_up_writes_nothing(rig: Rig, shared: Path) -> None:
    await rig.confirmed(1, hang_on=MAGIC)
    put(shared, [MAGIC, 2, 3, 4])
    async with Connection(rig.address) as c:
        await registered(c, "a", shared)
        asked = asyncio.create_task(c.ask(asking(at("a"), at("a", 16, 64))))
        worker = (await rig.load(2))["worker"]
        await asyncio.to_thread(rig.place, rig.state / "incoming" / "2-1.2.0", "b")
        promoted = await rig.agent.order(messages.Promote(UNIT, 2, worker, "b", 30.0, 0.2))
        assert promoted["cut"] == 1
        assert (await asked).release == "filetype/1.2.0"
        assert got(shared, 64) == [2 * MAGIC, 4, 6, 8]


@pytest.mark.e2e
@pytest.mark.known_user
async def test_a_request_inside_when_its_memory_is_taken_away_writes_nothing_there(rig: Rig, shared: Path) -> None:
    await rig.confirmed(1, slow=1500)
    put(shared, [1, 2, 3, 4])
    async with Connection(rig.address) as c, Connection(rig.address) as other:
        await registered(c, "a", shared)
        c.writer.write(asking(at("a"), at("a", 16, 64)))
        assert (await region(other, "unregister", "a")).status == 200
        reply = await c.reply()
        assert (reply.status, reply.json()["code"]) == (400, "unknown_region")
        assert got(shared, 64) == [0, 0, 0, 0]
        await registered(other, "a", shared, size=32)
        assert (await c.ask(asking(at("a"), at("a", 16, 16)))).status == 200
        assert got(shared, 16) == [1, 2, 3, 4]
