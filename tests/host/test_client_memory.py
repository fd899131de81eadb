"""The client for applications in Python, with large tensors: through shared memory where that can be had."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock_agent import client
from interlock_agent.client import BF16, Model, RefusedError
from interlock_agent.host import messages
from tests.host.clients import Connection, request
from tests.host.crew import asking
from tests.host.rig import UNIT, Rig, running

pytestmark = [pytest.mark.e2e, pytest.mark.known_user]

WIDTH = 50_000  # 200 kB
X = np.arange(WIDTH, dtype=np.float32)[None]


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path) as rig:
        await rig.confirmed(1, width=WIDTH)
        yield rig


async def ask(model: Model, x: Any = X, factor: float = 1.0, **options: Any) -> bool:
    """The answer is right. Whether it came through memory."""
    answer = await asyncio.to_thread(lambda: model.infer({"x": x}, **options))
    np.testing.assert_array_equal(answer["y"], x * np.float32(factor))
    connection = model._idle[-1]
    return connection.memory is not None


async def regions(rig: Rig) -> list[Any]:
    async with Connection(rig.address) as c:
        return list((await c.ask(request("/v2/systemsharedmemory/status", method="GET"))).json())


def files() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"interlock-{os.getpid()}-")]


async def test_large_tensors_go_through_memory_and_swaps_reverts_and_restarts_do_not_matter(rig: Rig) -> None:
    model = Model(rig.address, UNIT, deadline_s=60.0)
    assert await ask(model)
    assert await ask(model)
    assert model._sizes, "the second time outputs come through memory too"
    (region,) = await regions(rig)
    assert region["byte_size"] == 1 << 19
    assert files() == [], "its file has no name"
    kept = (await asyncio.to_thread(model.infer, {"x": X}))["y"]
    await rig.promote(2, width=WIDTH)
    assert await ask(model, factor=2.0)
    await rig.agent.order(messages.Revert(UNIT, 2, "test"))
    assert await ask(model)
    np.testing.assert_array_equal(kept, X)  # an answer is not changed by the next one
    rig.kill(await rig.live_pid())
    assert await ask(model)
    assert await regions(rig) == [region]
    live = await rig.live_pid()
    rig.kill(next(pid for pid in rig.children() if pid != live))
    assert await ask(model)
    await rig.kill_host()
    await rig.start()
    assert await ask(model)
    assert len(await regions(rig)) == 1
    model.close()
    end = time.monotonic() + 30
    while await regions(rig):
        assert time.monotonic() < end, "it ends with its connection"


async def test_threads_that_share_memory_get_the_answers_of_the_release_that_is_named(rig: Rig) -> None:
    async with asking(Model(rig.address, UNIT, deadline_s=60.0), X + 1, X + 2) as crew:
        await crew.served("filetype/1.1.0")
        await rig.promote(2, width=WIDTH)
        await crew.served("filetype/1.2.0")
        rig.kill(await rig.live_pid())  # in its trial: the standby takes over
        await crew.served("filetype/1.1.0")
        await rig.promote(3, width=WIDTH)
        await crew.served("filetype/1.3.0")
        await rig.agent.order(messages.Revert(UNIT, 3, "test"))
        await crew.served("filetype/1.1.0")
        assert len(await regions(rig)) == 2


async def test_it_grows_with_what_is_sent_and_small_requests_do_without(rig: Rig) -> None:
    with Model(rig.address, UNIT) as model:
        small = np.ones((1, 4), np.float32)
        with pytest.raises(RefusedError, match="wrong_shape"):
            await ask(model, small)
        assert await regions(rig) == []
        assert await ask(model)
        assert await ask(model, np.repeat(X, 5, axis=0))
        assert await ask(model, np.repeat(X, 5, axis=0))
        (region,) = await regions(rig)
        assert region["byte_size"] == 1 << 21
        assert await ask(model, np.asfortranarray(np.repeat(X, 3, axis=0)))
        assert await ask(model, outputs=["y"])
        with pytest.raises(RefusedError, match="wrong_dtype"):
            await ask(model, X.astype("f8"))
        with pytest.raises(RefusedError, match="unknown_output"):
            await ask(model, outputs=["z"])
        assert await ask(model)


async def test_outputs_that_become_larger_come_by_the_other_way(rig: Rig) -> None:
    with Model(rig.address, UNIT) as model:
        assert await ask(model)
        ((kind, (release, sizes)),) = model._sizes.items()
        assert (release, sizes) == ("filetype/1.1.0", {"y": X.nbytes})
        model._sizes[kind] = release, {"y": X.nbytes - 4}
        assert await ask(model)
        assert model._sizes[kind] == ("", {}), "and from now on always"
        assert await ask(model)
        model._sizes[kind] = release, {"gone": X.nbytes}
        assert await ask(model)
        assert model._sizes[kind] == (release, {"y": X.nbytes})
        model._sizes[kind] = "filetype/0.9.0", {"y": X.nbytes}  # another release than answers: may lack outputs
        assert await ask(model)
        assert model._sizes[kind] == (release, {"y": X.nbytes})


@pytest.mark.parametrize("what", ["asked not to", "no shared memory", "full", "refused", "forgotten"])
async def test_where_memory_is_not_to_be_had_it_goes_by_http(
    rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model(rig.address, UNIT, shared_memory=what != "asked not to") as model:
        if what == "no shared memory":
            monkeypatch.setattr(client, "_SHARED", "/nonexistent")
        elif what == "full":

            def full(*_: Any) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(os, "posix_fallocate", full)
        elif what == "refused":
            make = client._Memory

            def linked(size: int) -> Any:
                memory = make(size)
                os.rename(f"/dev/shm/{memory.name}", f"/dev/shm/{memory.name}-x")
                os.symlink(f"/dev/shm/{memory.name}-x", f"/dev/shm/{memory.name}")
                return memory

            monkeypatch.setattr(client, "_Memory", linked)
        if what == "forgotten":
            assert await ask(model)
            assert await ask(model)
            async with Connection(rig.address) as c:
                await c.ask(request("/v2/systemsharedmemory/unregister"))
            assert not await ask(model)
            assert await ask(model)
        else:
            assert not await ask(model)
            assert not await ask(model)
            assert await regions(rig) == []
    for name in files():
        assert what == "refused", name
        os.unlink(f"/dev/shm/{name}")


async def test_an_application_that_is_killed_leaves_nothing(rig: Rig) -> None:
    program = (
        "import sys, numpy as np\nfrom interlock_agent.client import Model\n"
        f"model = Model(sys.argv[1], {UNIT!r})\nmodel.infer({{'x': np.ones((1, {WIDTH}), np.float32)}})\n"
        "print('asked', flush=True)\nsys.stdin.read()"
    )
    pipe = asyncio.subprocess.PIPE
    application = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, rig.address, stdin=pipe, stdout=pipe
    )
    assert application.stdout is not None
    assert await application.stdout.readline() == b"asked\n"
    assert len(await regions(rig)) == 1
    application.kill()
    await application.wait()
    end = time.monotonic() + 30
    while await regions(rig):
        assert time.monotonic() < end


async def test_a_unix_socket_shares_memory_too(short_path: Path) -> None:
    async with running(short_path / "u") as rig:
        await rig.configure(f"unix:{short_path}/m.sock")
        await rig.confirmed(1, width=WIDTH)
        with Model(rig.address, UNIT) as model:
            assert await ask(model)


def test_bf16_is_its_bits() -> None:
    bits = np.array([0x3F80, 0xC040], np.uint16)
    tensor = client._Tensor.of("b", BF16(bits))
    assert (tensor.kind, bytes(tensor.data())) == ("BF16", bits.tobytes())
    np.testing.assert_array_equal(client._array(memoryview(bits.tobytes()), "BF16", [2]), bits)
    with pytest.raises(RefusedError):
        client._Tensor.of("b", BF16(bits.astype("f4")))
