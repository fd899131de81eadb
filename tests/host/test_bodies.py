"""Large bodies lie in memory that front and worker map; it is used again when nobody can read it any more."""

from __future__ import annotations

import asyncio
import gc
import json
import mmap
import os
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from interlock_agent.host import messages, wire
from interlock_agent.host.front.bodies import KEEP_BYTES, KEEP_S, Bodies
from tests.host.clients import INFER, Connection, request
from tests.host.rig import UNIT, Rig, running

WIDTH = 50_000
MAGIC = 666.0


def test_memory_is_used_again_and_then_given_back() -> None:
    now = [0.0]
    bodies = Bodies(lambda: now[0])
    one = bodies.of(b"x" * 300_000)
    assert (len(one), bytes(one)) == (300_000, b"x" * 300_000)
    first = one.descriptor
    del one
    two = bodies.make(200_000)
    assert (two.descriptor, len(two)) == (first, 200_000)
    other = bodies.make(200_000)
    assert other.descriptor != first
    del two, other
    small = bodies.make(70_000)
    assert small.length == 70_000
    large = bodies.make(4_000_000)
    assert large.descriptor not in (first, small.descriptor), "not too small, and not far too large"
    open_ones = [small.descriptor, large.descriptor]
    del small, large
    now[0] = KEEP_S + 1
    bodies.sweep()
    for descriptor in open_ones:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_what_a_worker_may_still_read_is_not_used_again() -> None:
    bodies = Bodies(lambda: 0.0)
    taken = bodies.make(100_000)
    taken.lent = 1  # taken back, while the worker computes on
    descriptor = taken.descriptor
    del taken
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert bodies._free == []


def test_there_are_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlock_agent.host.front.bodies.MAX_BYTES", 200_000)
    pool = Bodies(lambda: 0.0)
    one = pool.make(150_000)
    with pytest.raises(OSError, match="Cannot allocate"):
        pool.make(60_000)
    assert one.length == 150_000
    del one
    assert pool.make(60_000).length == 60_000


def test_it_keeps_so_much() -> None:
    bodies = Bodies(lambda: 0.0)
    held = [bodies.make(KEEP_BYTES // 2) for _ in range(3)]
    held.clear()
    assert len(bodies._free) == 2


def test_what_is_not_sealed_is_not_mapped() -> None:
    loose = os.memfd_create("loose")
    os.ftruncate(loose, 4096)
    with pytest.raises(ValueError, match="not sealed"):
        wire.map_memory(loose)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(loose)
    descriptor, memory = wire.make_memory(4096)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)
    memory[:2] = b"ab"
    assert wire.map_memory(os.dup(descriptor))[:2] == b"ab"
    with pytest.raises(TypeError):
        wire.map_memory(descriptor)[:2] = b"cd"


def test_descriptors_come_beside_the_bytes_or_are_closed() -> None:
    one, two = socket.socketpair()
    with one, two:
        held, memory = wire.make_memory(4096)
        socket.send_fds(one, [b"ab"], [held])
        one.sendall(b"cd")
        data, (got,) = wire.read_with_descriptors(two, 4)
        assert bytes(data) == b"abcd"
        assert isinstance(wire.map_memory(got), mmap.mmap)
        gc.collect()  # what other tests have left
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(one, [b"ab"], [held])
        one.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            wire.read_with_descriptors(two, 4)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(held)
        memory.close()


def test_a_descriptor_that_was_lost_is_an_error_and_no_other_memory() -> None:
    one, two = socket.socketpair()
    with one, two:
        held, memory = wire.make_memory(4096)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        socket.send_fds(one, [b"ab"], [held])
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                wire.read_with_descriptors(two, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(held)
        memory.close()


# --- the whole way --------------------------------------------------------------------------------------------------


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path) as rig:
        yield rig


def binary(x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return request(INFER, head + x.tobytes(), Inference_Header_Content_Length=str(len(head)))


@pytest.mark.e2e
async def test_large_bodies_of_every_form_are_answered_alike(rig: Rig) -> None:
    await rig.confirmed(1, width=WIDTH, scale=2.0)
    x = np.random.default_rng(3).normal(size=(3, WIDTH)).astype(np.float32)
    raw = binary(x)
    start, _, body = raw.partition(b"\r\n\r\n")
    chunked = start.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked") + b"\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"

    async def check(c: Connection) -> None:
        reply = await c.reply()
        assert reply.status == 200
        size = int(reply.headers["inference-header-content-length"])
        np.testing.assert_array_equal(np.frombuffer(reply.body, np.float32, offset=size).reshape(x.shape), x * 2)

    async with Connection(rig.address) as c, Connection(rig.address) as slow:
        slow.writer.write(raw[:-1])  # holds memory of its own, and nobody up
        await slow.writer.drain()
        for form in (raw, chunked + chunks, raw + raw, raw):
            c.writer.write(form)
            for _ in range(form.count(b"POST ")):
                await check(c)
        slow.writer.write(raw[-1:])
        await check(slow)
        for connection in (c, slow):  # answers that are read late, when the memory they lay in is another's
            connection.writer.write(raw)
        ones = np.ones((3, WIDTH), np.float32)
        async with Connection(rig.address) as other:
            for _ in range(5):
                reply = await other.ask(binary(ones))
                assert reply.body.endswith((ones * 2).tobytes())
        await check(c)
        await check(slow)


@pytest.mark.e2e
async def test_a_large_request_is_asked_again_of_another_worker(rig: Rig) -> None:
    await rig.confirmed(1, width=WIDTH, hang_on=MAGIC)
    x = np.full((1, WIDTH), MAGIC, np.float32)
    async with Connection(rig.address) as c, Connection(rig.address) as other:
        c.writer.write(binary(x))
        await c.writer.drain()
        assert (await other.ask(binary(x + 1))).release == "filetype/1.1.0"
        worker = (await rig.load(2, width=WIDTH))["worker"]
        await asyncio.to_thread(rig.place, rig.state / "incoming" / "2-1.2.0", "b")
        promoted = await rig.agent.order(messages.Promote(UNIT, 2, worker, "b", 30.0, 0.2))
        assert promoted["cut"] == 1
        reply = await c.reply()
        assert (reply.status, reply.release) == (200, "filetype/1.2.0")
        assert reply.body.endswith((x * 2).tobytes())
        c.writer.write(binary(x + 1))
        rig.kill(await rig.live_pid())
        reply = await c.reply()
        assert reply.status == 200
