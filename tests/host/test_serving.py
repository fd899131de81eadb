"""A host with real processes: it swaps, reverts, survives, and loses no request."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from interlock_agent.host import messages
from tests.host import clients, models
from tests.host.rig import UNIT, OrderError, Rig, running, until

pytestmark = pytest.mark.e2e

MAGIC = 666.0


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path) as rig:
        yield rig


async def test_swaps_under_load_lose_nothing_and_nothing_comes_from_the_former_release(rig: Rig) -> None:
    await rig.confirmed(1)
    async with clients.Load(rig.address) as load:
        for generation in range(2, 6):
            await rig.promote(generation)
            returned = time.monotonic()
            await load.served()
            assert await rig.agent.order(messages.Confirm(UNIT, generation)) == {"confirmed": True}
            await load.served()
            assert load.answered_after(returned, f"filetype/1.{generation - 1}.0") == 0
    assert load.failures == []
    assert set(load.answers) == {f"filetype/1.{g}.0" for g in range(1, 6)}


async def test_a_live_worker_that_dies_after_confirmation_is_loaded_again(rig: Rig) -> None:
    await rig.confirmed(1)
    async with clients.Load(rig.address) as load:
        for _ in range(2):
            await load.served()
            rig.kill(await rig.live_pid())
            await rig.agent.event("serving", release="")
            rig.agent.events.clear()
            await load.served()  # they wait for the new one
    assert load.failures == []
    assert set(load.answers) == {"filetype/1.1.0"}
    assert (await rig.agent.status())["crashes"] == 2


async def test_a_bad_answer_is_held_back_and_the_standby_answers(rig: Rig) -> None:
    await rig.confirmed(1)
    await rig.promote(2, nan_on=MAGIC)
    async with clients.Connection(rig.address) as connection:
        good = await connection.infer([1.0, 2.0, 3.0, 4.0])
        bad = await connection.infer([MAGIC, 2.0, 3.0, 4.0])
    assert (good.status, good.release) == (200, "filetype/1.2.0")
    assert (bad.status, bad.release) == (200, "filetype/1.1.0")
    assert bad.json()["outputs"][0]["data"] == [MAGIC, 2.0, 3.0, 4.0]
    event = await rig.agent.event("counters", generation=2)
    assert (event["counters"]["non_finite"], event["counters"]["replayed"]) == (1, 1)
    answer = await rig.agent.order(messages.Revert(UNIT, 2, "non_finite_output"))
    assert answer["release"] == "filetype/1.1.0"
    assert (await rig.agent.order(messages.Revert(UNIT, 2, "again")))["release"] == "filetype/1.1.0"
    assert (await clients.infer(rig.address)).release == "filetype/1.1.0"
    assert (await rig.agent.status())["outcome"]["reason"] == "non_finite_output"


async def test_a_bad_answer_without_a_standby_is_an_error(rig: Rig) -> None:
    await rig.confirmed(1, nan_on=MAGIC)
    reply = await clients.infer(rig.address, [MAGIC, 1.0, 1.0, 1.0])
    assert (reply.status, reply.json()["code"]) == (500, "non_finite_output")
    counters = (await rig.agent.event("counters", generation=1))["counters"]
    assert (counters["non_finite"], counters["replayed"]) == (1, 0)


async def test_a_signature_may_allow_what_is_not_finite(rig: Rig) -> None:
    allowed = [{"name": "y", "dtype": "FP32", "shape": [-1, 4], "non_finite": "allowed"}]
    serve = {"runtime": "onnxruntime", "file": "model.onnx", "inputs": [], "outputs": allowed, "labels": None}
    await rig.confirmed(1, nan_on=MAGIC, serve=serve)
    reply = await clients.infer(rig.address, [MAGIC, 1.0, 1.0, 1.0])
    assert reply.json()["outputs"][0]["data"] == [None] * 4


async def test_a_first_release_that_dies_in_its_trial_leaves_nothing(rig: Rig) -> None:
    await rig.promote(1)
    assert (await clients.infer(rig.address)).status == 200
    rig.kill(await rig.live_pid())
    await rig.agent.event("outcome", generation=1, outcome="reverted")
    assert not (rig.slots / "live").is_symlink()
    ready = await clients.get(rig.address, "/v2/health/ready")
    assert ready.status == 503
    status = await rig.agent.status()
    assert (status["live"], status["ready"], status["confirmed"]) == ("", False, "")


async def test_orders_are_fenced(rig: Rig) -> None:
    await rig.confirmed(5)
    for order in (
        messages.Load(UNIT, 4, str(rig.slots / "a"), "candidate", {}),
        messages.Renew(UNIT, 4),
        messages.Confirm(UNIT, 4),
        messages.Revert(UNIT, 4, "x"),
        messages.Promote(UNIT, 4, "w", "b"),
    ):
        with pytest.raises(OrderError, match="stale_generation"):
            await rig.agent.order(order)
    assert await rig.agent.order(messages.Retire("nobody", 4)) == {}


async def test_a_newer_candidate_ends_older_ones_and_a_twin_is_never_promoted(rig: Rig) -> None:
    await rig.confirmed(1)
    old = await rig.load(2)
    await rig.load(3)
    await until(lambda: old["pid"] not in rig.children())
    twin = await rig.load(3, role="twin", version="1.9.0")
    with pytest.raises(OrderError, match="not_promotable"):
        await rig.agent.order(messages.Promote(UNIT, 3, twin["worker"], "b"))
    with pytest.raises(OrderError, match="unknown_worker"):
        await rig.agent.order(messages.Promote(UNIT, 3, old["worker"], "b"))
    await rig.agent.order(messages.Retire(twin["worker"], 3))
    await until(lambda: twin["pid"] not in rig.children())


async def test_measuring(rig: Rig) -> None:
    await rig.confirmed(1)
    loaded = await rig.load(2, options={"golden_folder": str(rig.slots / "a")})
    assert loaded["inputs"] == [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}]
    assert loaded["providers"] == ["CPUExecutionProvider"]
    assert not loaded["fell_back"]
    samples = await rig.agent.order(messages.Probe(loaded["worker"], 2, 38, 5))
    assert len(samples["wall_ns"]) == len(samples["work_ns"]) == 5
    assert min(samples["wall_ns"]) > 0
    evaluation = await rig.agent.order(messages.Evaluate(loaded["worker"], 2))
    (output,) = evaluation["outputs"]
    assert evaluation["items"] == 40
    assert evaluation["score"]["rows"] == "1" * 40  # twice as large, and so as right
    assert output["outside"] > 100  # but not what the folder named by `golden_folder` expects
    assert output["max_rel"] == pytest.approx(1.0)
    without = await rig.load(3, with_golden=False)
    with pytest.raises(OrderError, match="no_golden"):
        await rig.agent.order(messages.Probe(without["worker"], 3, 0, 1))


async def test_a_worker_that_hangs_while_it_is_measured_is_killed(rig: Rig) -> None:
    loaded = await rig.load(1, slow=2000)
    with pytest.raises(OrderError, match="worker_hung"):
        await rig.agent.order(messages.Probe(loaded["worker"], 1, 0, 1000, timeout_s=0.3))
    assert (await rig.agent.event("worker_died"))["worker"] == loaded["worker"]
    await until(lambda: loaded["pid"] not in rig.children())


async def test_a_candidate_that_crashes_says_how(rig: Rig) -> None:
    loaded = await rig.load(1, slow=2000)
    probe = asyncio.create_task(rig.agent.order(messages.Probe(loaded["worker"], 1, 0, 1000)))
    await asyncio.sleep(0.1)
    rig.kill(loaded["pid"])
    with pytest.raises(OrderError, match="worker_died: SIGKILL"):
        await probe


async def test_what_was_changed_after_sealing_is_not_opened(rig: Rig) -> None:
    folder = models.make_slot(rig.state / "incoming" / "x", UNIT, "1.0.0", 1)
    model = folder / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(OrderError, match="corrupt"):
        await rig.agent.order(messages.Load(UNIT, 1, str(folder), "candidate", {}))
    model.write_bytes(data + b"x")
    with pytest.raises(OrderError, match="corrupt"):
        await rig.agent.order(messages.Load(UNIT, 1, str(folder), "candidate", {}))


async def test_what_cannot_be_opened_says_why(rig: Rig) -> None:
    folder = rig.state / "incoming" / "x"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"not a model")
    models.seal(folder, UNIT, "1.0.0", 1)
    with pytest.raises(OrderError, match=r"load_failed: model\.onnx is no ONNX model"):
        await rig.agent.order(messages.Load(UNIT, 1, str(folder), "candidate", {}))
    models.seal(folder, UNIT, "1.0.0", 1, serve={"runtime": "os", "file": "model.onnx", "outputs": []})
    with pytest.raises(OrderError, match="no backend"):
        await rig.agent.order(messages.Load(UNIT, 1, str(folder), "candidate", {}))
    with pytest.raises(OrderError, match="load_failed"):
        await rig.load(2, options={"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]})
    with pytest.raises(OrderError, match="load_failed"):
        await rig.load(3, options={"worker_python": "/nonexistent/python"})
    with pytest.raises(OrderError, match="out_of_memory"):
        await rig.load(4, options={"memory_limit_bytes": 20 * 1024 * 1024})
    assert (await rig.agent.status())["workers"] == []


async def test_a_killed_host_leaves_nothing_and_a_new_one_serves_the_confirmed_release(rig: Rig) -> None:
    await rig.confirmed(1)
    await rig.promote(2)
    assert (await clients.infer(rig.address)).release == "filetype/1.2.0"
    assert rig.children()
    await rig.kill_host()
    await until(lambda: not rig.children(), "children gone")
    agent = await rig.start()
    reply = await clients.infer(rig.address)  # waits for the worker; the same address, and nobody has configured it
    assert reply.release == "filetype/1.1.0"
    status = await agent.status()
    assert (status["outcome"]["outcome"], status["outcome"]["reason"]) == ("interrupted", "host_restarted")
    assert status["generation"] == 2
    assert (rig.slots / "live").readlink() == Path("a")
    assert (await agent.order(messages.Confirm(UNIT, 2)))["confirmed"] is False


async def test_a_broken_state_file_is_set_aside_and_the_confirmed_release_serves(rig: Rig) -> None:
    await rig.confirmed(7)
    await rig.kill_host()
    (rig.state / "host" / f"{UNIT}.json").write_text("{")
    agent = await rig.start()
    host = (await agent.order(messages.Status()))["host"]
    assert len(host["broken"]) == 1
    assert list((rig.state / "host").glob("*.broken-*"))
    await rig.configure()
    assert (await clients.infer(rig.address)).release == "filetype/1.7.0"
    assert (await agent.status())["generation"] == 7  # the seals know how far it had come


async def test_two_hosts_do_not_share_a_state_folder(rig: Rig) -> None:
    command = [sys.executable, "-m", "interlock_agent.host", "run", "--config", str(rig.folder / "host.toml")]
    second = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, said = await second.communicate()
    assert second.returncode == 3
    assert b"another host runs" in said


async def test_what_is_still_inside_after_the_drain_is_cut_and_asked_again(rig: Rig) -> None:
    await rig.confirmed(1, hang_on=MAGIC)
    asked = asyncio.create_task(clients.infer(rig.address, [MAGIC, 1.0, 1.0, 1.0]))
    worker = (await rig.load(2))["worker"]
    await asyncio.to_thread(rig.place, rig.state / "incoming" / "2-1.2.0", "b")
    promoted = await rig.agent.order(messages.Promote(UNIT, 2, worker, "b", 30.0, 0.2))
    assert (promoted["drained"], promoted["cut"]) == (0, 1)
    assert (await asked).release == "filetype/1.2.0"
    again = await rig.agent.order(messages.Promote(UNIT, 2, worker, "b", 30.0, 0.2))
    assert again == promoted


async def test_without_a_worker_a_request_waits_and_then_is_told_when_to_come_back(short_path: Path) -> None:
    async with running(short_path, no_worker_s=0.3) as rig:
        reply = await clients.infer(rig.address)
        assert (reply.status, reply.json()["code"]) == (503, "no_live_worker")
        assert reply.headers["retry-after"] == "1"


async def test_a_unit_on_a_unix_socket_and_what_is_no_address(rig: Rig) -> None:
    path = f"unix:{rig.folder}/model.sock"
    assert await rig.configure(path, unit="other") == path
    assert (await clients.get(path, "/v2")).json()["name"] == "interlock"
    for listen in ("nonsense", "127.0.0.1:99999", "unix:/nonexistent/x"):
        with pytest.raises(OrderError):
            await rig.configure(listen, unit="third")
    with pytest.raises(OrderError, match="bad_request"):
        await rig.configure("127.0.0.1:0", unit="../x")


async def test_the_control_socket_refuses_what_it_does_not_know(rig: Rig) -> None:
    reader, writer = await asyncio.open_unix_connection(str(rig.folder / "run" / "host.sock"))
    writer.write(messages.encode({"hello": "agent", "version": "9", "protocol": {"min": 7, "max": 9}}))
    await messages.read_frame(reader)
    refused = await messages.read_frame(reader)
    assert refused["error"]["code"] == "protocol"
    assert "'min': 7" in refused["error"]["message"]
    writer.close()
    with pytest.raises(OrderError, match="bad_request"):
        await rig.agent.order(messages.Renew("nobody", 1))
    with pytest.raises(OrderError, match="corrupt"):
        await rig.agent.order(messages.Load(UNIT, 1, "/nonexistent", "candidate", {}))
    answer = json.loads(json.dumps(await rig.agent.order(messages.Status())))
    assert answer["host"]["pid"] == rig.process.pid
