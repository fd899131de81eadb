"""gRPC through the front: the same router, so that all that holds for HTTP holds here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from grpc import StatusCode
from tritonclient.utils import InferenceServerException

from interlock_agent.host.listeners import check_rpc
from tests.host.clients import INFER, Connection, Load, get, infer, inference, request
from tests.host.rig import UNIT, OrderError, Rig, free_port, running, until

pytestmark = pytest.mark.e2e

MAGIC = 666.0
SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path, max_body_bytes=1_000_000) as rig:
        yield rig


@contextlib.asynccontextmanager
async def asking(rig: Rig, **options: Any) -> AsyncIterator[Caller]:
    """The unit takes gRPC; a client of it."""
    address = free_port()
    await rig.configure(grpc_listen=address, **options)
    caller = Caller(address)
    try:
        await until_live(caller)
        yield caller
    finally:
        await caller.client.close()


class Caller:
    def __init__(self, address: str) -> None:
        self.address = address
        # A port that is not there yet is tried again at once, not after a second.
        self.client = triton.InferenceServerClient(
            address, channel_args=[("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        )

    async def infer(self, x: list[float] | None = None, **how: Any) -> tuple[str, list[float]]:
        """The release's version, and y."""
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array([x or [1.0, 2.0, 3.0, 4.0]], np.float32))
        said = await self.client.infer(UNIT, [tensor], **how)
        return said.get_response().model_version, said.as_numpy("y")[0].tolist()

    async def refused(self, *arguments: Any, **how: Any) -> tuple[str, str]:
        """Status, and the sentence."""
        with pytest.raises(InferenceServerException) as failure:
            await self.infer(*arguments, **how)
        return failure.value.status(), failure.value.message()


async def until_live(caller: Caller) -> None:
    end = asyncio.get_running_loop().time() + 30.0
    while True:
        try:
            assert await caller.client.is_server_live()
            return
        except InferenceServerException:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.02)


def message(x: float = 1.0) -> bytes:
    """A ModelInferRequest."""
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[x, 2.0, 3.0, 4.0]], np.float32))
    from tritonclient.grpc import _utils

    return bytes(
        _utils._get_inference_request(UNIT, [tensor], "", "", None, 0, False, False, 0, None, None).SerializeToString()
    )


async def test_a_foreign_client_is_answered_as_over_http(rig: Rig) -> None:
    await rig.confirmed(1, scale=2.0)
    async with asking(rig) as caller:
        client = caller.client
        assert await client.is_server_ready()
        assert await client.is_model_ready(UNIT)
        assert await client.is_model_ready(UNIT, "1.1.0")
        assert not await client.is_model_ready(UNIT, "7")
        assert not await client.is_model_ready("other")
        assert (await client.get_server_metadata()).name == "interlock"
        described = await client.get_model_metadata(UNIT)
        assert [(t.name, t.datatype, list(t.shape)) for t in described.inputs] == [("x", "FP32", [-1, 4])]
        assert await caller.infer(request_id="one") == ("1.1.0", [2.0, 4.0, 6.0, 8.0])
        assert await caller.infer(model_version="1.1.0") == ("1.1.0", [2.0, 4.0, 6.0, 8.0])
        assert await caller.infer(outputs=[triton.InferRequestedOutput("y")]) == ("1.1.0", [2.0, 4.0, 6.0, 8.0])
        assert (await caller.refused(model_version="7"))[0] == "StatusCode.NOT_FOUND"
        assert (await caller.refused(outputs=[triton.InferRequestedOutput("z")]))[0] == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            await client.get_model_repository_index()
        large = triton.InferInput("x", [50_000, 4], "FP32")  # beyond LARGE_BYTES, and below the limit
        large.set_data_from_numpy(np.ones((50_000, 4), np.float32))
        answer = (await client.infer(UNIT, [large])).as_numpy("y")
        assert answer.shape == (50_000, 4)
        assert (answer == 2.0).all()
        huge = triton.InferInput("x", [80_000, 4], "FP32")
        huge.set_data_from_numpy(np.ones((80_000, 4), np.float32))
        with pytest.raises(InferenceServerException) as failure:
            await client.infer(UNIT, [huge])
        assert failure.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        async with grpc.aio.insecure_channel(caller.address) as channel:
            call = channel.unary_unary(SERVICE + "ModelInfer")(message())
            await call
            trailing = dict(await call.trailing_metadata())
            assert (trailing["interlock-release"], trailing["interlock-generation"]) == ("filetype/1.1.0", "1")
            call = channel.unary_unary(SERVICE + "ModelInfer")(b"\xff\xff nonsense")
            assert await call.code() == StatusCode.INVALID_ARGUMENT
            assert dict(await call.trailing_metadata())["interlock-code"] == "bad_message"
        assert (await infer(rig.address)).status == 200


async def test_swaps_deaths_and_bad_answers(rig: Rig) -> None:
    await rig.confirmed(1)
    async with asking(rig) as caller:
        failures, versions, stop = [], [], False

        async def busy(number: int) -> None:
            while not stop:
                try:
                    version, y = await caller.infer([float(number), 2.0, 3.0, 4.0])
                except InferenceServerException as failure:
                    failures.append(str(failure))
                    continue
                if y[1] != 2.0 * int(version.split(".")[1]):
                    failures.append(f"{version} answered {y}")
                versions.append(version)

        async def served() -> None:
            goal = len(versions) + 20
            await until(lambda: len(versions) >= goal or failures, "answers")

        tasks = [asyncio.create_task(busy(number)) for number in range(4)]
        async with Load(rig.address, busy=1, idle=1, fresh=1) as http:
            await served()
            await rig.promote(2, nan_on=MAGIC)
            await served()
            assert (await caller.infer([MAGIC, 2.0, 3.0, 4.0]))[0] == "1.1.0", "the standby's"
            rig.kill(await rig.live_pid())
            await served()
            assert (await caller.infer())[0] == "1.1.0"
            await rig.confirmed(3, nan_on=MAGIC)
            await served()
            status, sentence = await caller.refused([MAGIC, 2.0, 3.0, 4.0])
            assert status == "StatusCode.INTERNAL"
            assert "NaN" in sentence
            rig.kill(await rig.live_pid())
            await served()  # they waited for the next one
        stop = True
        await asyncio.gather(*tasks)
        assert failures == []
        assert http.failures == []
        assert set(versions) == {"1.1.0", "1.2.0", "1.3.0"}


async def test_a_front_that_is_replaced_takes_the_port_again(rig: Rig) -> None:
    await rig.confirmed(1)
    async with asking(rig) as caller:
        fronts = [p for p in rig.children() if b"host.front" in Path(f"/proc/{p}/cmdline").read_bytes()]
        rig.kill(fronts[0])
        await until_live(caller)
        assert (await caller.infer())[0] == "1.1.0"


@pytest.mark.known_user
async def test_shared_memory_is_ones_own_whichever_way_one_asks(rig: Rig, shared: Path) -> None:
    await rig.confirmed(1, scale=3.0)
    async with asking(rig) as caller:
        client, key = caller.client, f"/{shared.name}"
        await client.register_system_shared_memory("frames", key, 64)
        status = await client.get_system_shared_memory_status()
        assert [(n, r.key, r.offset, r.byte_size) for n, r in status.regions.items()] == [("frames", key, 0, 64)]
        assert [r["name"] for r in (await get(rig.address, "/v2/systemsharedmemory/status")).json()] == ["frames"]
        shared.write_bytes(np.array([1, 2, 3, 4], np.float32).tobytes().ljust(4096, b"\0"))
        given, wanted = triton.InferInput("x", [1, 4], "FP32"), triton.InferRequestedOutput("y")
        given.set_shared_memory("frames", 16)
        wanted.set_shared_memory("frames", 16, offset=32)
        said = await client.infer(UNIT, [given], outputs=[wanted])
        assert said.get_output("y").parameters["shared_memory_region"].string_param == "frames"
        assert list(said.get_response().raw_output_contents) == [b""]
        assert np.frombuffer(shared.read_bytes()[32:48], np.float32).tolist() == [3.0, 6.0, 9.0, 12.0]
        with pytest.raises(InferenceServerException) as failure:
            await client.register_system_shared_memory("frames", key, 32)
        assert failure.value.status() == "StatusCode.ALREADY_EXISTS"
        with pytest.raises(InferenceServerException) as failure:
            await client.register_system_shared_memory("more", "/../etc/passwd", 32)
        assert failure.value.status() == "StatusCode.INVALID_ARGUMENT"
        await client.unregister_system_shared_memory("frames")
        with pytest.raises(InferenceServerException) as failure:
            await client.infer(UNIT, [given], outputs=[wanted])
        assert failure.value.status() == "StatusCode.INVALID_ARGUMENT"
        with pytest.raises(InferenceServerException) as failure:
            await client.get_system_shared_memory_status("frames")
        assert failure.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.known_user
async def test_tokens_and_users_hold(rig: Rig, tmp_path: Path) -> None:
    await rig.confirmed(1)
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(hashlib.sha256(b"secret").hexdigest() + " camera\n")
    async with asking(rig, access={"tokens": str(tokens), "users": [os.getuid()]}) as caller:
        assert await caller.client.is_server_live()  # probes have no token
        assert (await caller.refused())[0] == "StatusCode.UNAUTHENTICATED"
        assert (await caller.refused(headers={"authorization": "Bearer wrong"}))[0] == "StatusCode.UNAUTHENTICATED"
        assert (await caller.infer(headers={"authorization": "Bearer secret"}))[0] == "1.1.0"
    async with asking(rig, access={"users": [4711]}) as caller:
        status, sentence = await caller.refused()
        assert (status, sentence) == ("StatusCode.PERMISSION_DENIED", "this user may not ask this model")


async def test_what_cannot_be_is_refused_at_configuration(rig: Rig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for listen, access in (
            ("0.0.0.0:8501", {}),
            ("unix:/tmp/x.sock", {}),
            ("127.0.0.1:0", {}),
            ("127.0.0.1:8501", {"certificate": "/x.pem"}),
            (f"127.0.0.1:{taken.getsockname()[1]}", {}),
        ):
            with pytest.raises(OrderError):
                await rig.configure(grpc_listen=listen, access=access)
    await rig.confirmed(1)
    assert (await infer(rig.address)).status == 200


def test_without_the_library_it_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'interlock-agent\[grpc\]'"):
        check_rpc("127.0.0.1:8501", {})


async def test_a_port_that_was_taken_meanwhile_keeps_nobody_from_serving(rig: Rig) -> None:
    await rig.confirmed(1)
    async with asking(rig) as caller:
        await rig.kill_host()
        host, _, port = caller.address.rpartition(":")

        def take() -> socket.socket | None:
            with contextlib.suppress(OSError):  # the front that ends has it still
                return socket.create_server((host, int(port)))
            return None

        with await until(take, "the port"):
            await rig.start()
            assert (await infer(rig.address)).status == 200
            await until(lambda: "grpc_listen" in (rig.folder / "host.log").read_text(), "a complaint")
        await until_live(caller)
        assert (await caller.infer())[0] == "1.1.0"


async def test_deadlines_and_the_queue(rig: Rig) -> None:
    """Without a worker everything waits: what has a deadline is told so, what is cancelled leaves its place."""
    async with asking(rig, queue={"max": 2, "s": 30.0}) as caller:
        assert not await caller.client.is_server_ready()
        async with Connection(rig.address) as connection:
            body = inference([1.0, 2.0, 3.0, 4.0])
            reply = await connection.ask(request(INFER, body, Interlock_Timeout_Ms="20"))
            assert (reply.status, reply.json()["code"]) == (504, "deadline_exceeded")
            reply = await connection.ask(request(INFER, body, Interlock_Timeout_Ms="soon"))
            assert (reply.status, reply.json()["code"]) == (400, "bad_timeout")
        assert not await caller.client.is_model_ready(UNIT)
        assert (await caller.refused(client_timeout=0.2))[0] == "StatusCode.DEADLINE_EXCEEDED"

        async def waits() -> str:
            while True:
                with contextlib.suppress(InferenceServerException):  # a probe had its place
                    return (await caller.infer())[0]

        waiting = [asyncio.create_task(waits()) for _ in range(2)]

        async def full() -> bool:
            return (await caller.refused(client_timeout=0.1))[0] == "StatusCode.UNAVAILABLE"

        while not await full():
            pass
        async with grpc.aio.insecure_channel(caller.address) as channel:
            call = channel.unary_unary(SERVICE + "ModelInfer")(message())
            assert await call.code() == StatusCode.UNAVAILABLE
            trailing = dict(await call.trailing_metadata())
            assert trailing["interlock-code"] == "overloaded"
            assert int(trailing["retry-after"]) >= 1
        waiting[0].cancel()
        while await full():  # its place is free
            pass
        await rig.confirmed(1)
        assert await waiting[1] == "1.1.0"
