"""The inference API as clients see it: the Open Inference Protocol v2, its errors, a foreign client, bad input."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock_agent.host import messages
from tests.host import clients
from tests.host.clients import INFER, Connection, request
from tests.host.rig import Rig, running

pytestmark = pytest.mark.e2e


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path, max_body_bytes=1 << 20) as rig:
        await rig.confirmed(1, scale=2.0)
        yield rig


async def test_what_is_told_about_server_and_model(rig: Rig) -> None:
    async with Connection(rig.address) as c:

        async def get(path: str) -> tuple[int, Any]:
            reply = await c.ask(request(path, method="GET"))
            return reply.status, reply.json()

        assert (await get("/v2"))[1]["extensions"] == ["binary_tensor_data", "system_shared_memory"]
        assert await get("/v2/health/live") == (200, {"live": True})
        assert await get("/v2/health/ready") == (200, {"ready": True})
        assert await get("/v2/models/filetype/ready") == (200, {"name": "filetype", "ready": True})
        status, metadata = await get("/v2/models/filetype")
        assert (status, metadata["versions"], metadata["platform"]) == (200, ["1.1.0"], "onnxruntime_onnx")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert (await get("/v2/models/filetype/versions/1.1.0"))[1] == metadata
        assert (await get("/v2/models/filetype/versions/1.1.0/ready"))[0] == 200
        for path, code in (
            ("/v2/models/filetype/versions/9", "unknown_version"),
            ("/v2/models/other", "unknown_model"),
            ("/v3", "not_found"),
            ("/", "not_found"),
            ("/v2/models", "not_found"),
            ("/v2/models/filetype/nothing", "not_found"),
            ("/v2/nothing", "not_found"),
        ):
            status, error = await get(path)
            assert (status, error["code"]) == (404, code), path
        assert (await c.ask(request("/v2"))).status == 405
        refused = await c.ask(request(INFER, method="GET"))
        assert (refused.status, refused.headers["allow"]) == (405, "POST")


async def test_an_answer_names_its_release(rig: Rig) -> None:
    async with Connection(rig.address) as c:
        body = json.loads(clients.inference([1, 2, 3, 4]))
        body["id"] = "seven"
        reply = await c.ask(request("/v2/models/filetype/versions/1.1.0/infer", json.dumps(body).encode()))
    assert reply.headers["interlock-release"] == "filetype/1.1.0"
    assert reply.headers["interlock-generation"] == "1"
    answer = reply.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("filetype", "1.1.0", "seven")
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2.0, 4.0, 6.0, 8.0]}]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **changes}


def inputs(*tensors: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


DEEP = b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD = [
    (b"", "bad_json"),
    (b"{", "bad_json"),
    (b"\xff\xfe", "bad_json"),
    (b"[]", "bad_request"),
    (b"{}", "bad_request"),
    (DEEP, "bad_json"),
    (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, NaN]}]}', "bad_json"),
    (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 1e99]}]}', "wrong_data"),
    (inputs(), "missing_input"),
    (inputs(7), "bad_request"),
    (inputs({"datatype": "FP32"}), "bad_request"),
    (inputs(tensor(), tensor()), "duplicate_input"),
    (inputs(tensor(), tensor(name="z")), "unknown_input"),
    (inputs(tensor(datatype="INT32")), "wrong_dtype"),
    (inputs(tensor(datatype=None)), "wrong_dtype"),
    (inputs(tensor(shape=[4])), "wrong_shape"),
    (inputs(tensor(shape=[1, 5])), "wrong_shape"),
    (inputs(tensor(shape=[1, -4])), "bad_shape"),
    (inputs(tensor(shape="4")), "bad_shape"),
    (inputs(tensor(shape=[True, 4])), "bad_shape"),
    (inputs(tensor(data=[1, 2, 3])), "wrong_data_length"),
    (inputs(tensor(data=[[1, 2], [3, 4]])), "wrong_data_length"),
    (inputs(tensor(data=[[1, 2], [3]])), "wrong_data"),
    (inputs(tensor(data=["a", "b", "c", "d"])), "wrong_data"),
    (inputs(tensor(data=[1, 2, 3, True])), "wrong_data"),
    (inputs(tensor(data=[1, 2, 3, None])), "wrong_data"),
    (inputs(tensor(data=[1, 2, 3, 10**400])), "wrong_data"),
    (inputs(tensor(data={"a": 1})), "wrong_data"),
    (inputs({k: v for k, v in tensor().items() if k != "data"}), "missing_data"),
    (inputs(tensor(parameters=7)), "bad_request"),
    (inputs(tensor(parameters={"binary_data_size": 4})), "bad_request"),
    (inputs(tensor(parameters={"shared_memory_region": "x"})), "bad_request"),
    (inputs(tensor(parameters={"classification": 3})), "unsupported_parameter"),
    (inputs(tensor(), id=7), "bad_request"),
    (inputs(tensor(), outputs="y"), "bad_request"),
    (inputs(tensor(), outputs=[{}]), "bad_request"),
    (inputs(tensor(), outputs=[{"name": "z"}]), "unknown_output"),
    (inputs(tensor(), outputs=[{"name": "y"}, {"name": "y"}]), "duplicate_output"),
]


async def test_what_the_client_got_wrong_is_said_precisely(rig: Rig) -> None:
    async with Connection(rig.address) as c:
        for body, code in BAD:
            reply = await c.ask(request(INFER, body))
            assert (reply.status, reply.json()["code"]) == (400, code), body[:200]
            assert reply.json()["error"]
        assert (await c.infer([1, 2, 3, 4])).status == 200  # the same connection, the same worker


async def test_binary_tensors(rig: Rig) -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    described = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": 32}}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()

    def ask(head: bytes, data: bytes, size: str | None = None) -> bytes:
        return request(INFER, head + data, Inference_Header_Content_Length=size or str(len(head)))

    async with Connection(rig.address) as c:
        reply = await c.ask(ask(head, x.tobytes()))
        size = int(reply.headers["inference-header-content-length"])
        answer = json.loads(reply.body[:size])
        assert answer["outputs"][0]["parameters"] == {"binary_data_size": 32}
        assert np.array_equal(np.frombuffer(reply.body[size:], np.float32).reshape(2, 4), x * 2)
        for raw, code in (
            (ask(head, x.tobytes()[:-4]), "wrong_data_length"),
            (ask(head, x.tobytes() + b"1234"), "wrong_data_length"),
            (ask(head.replace(b"32}", b"28}"), x.tobytes()[:-4]), "wrong_data_length"),
            (ask(head.replace(b"32}", b'"a"}'), x.tobytes()), "wrong_data_length"),
            (ask(head, x.tobytes(), "999999"), "bad_header_length"),
            (ask(head, x.tobytes(), "-1"), "bad_header_length"),
        ):
            reply = await c.ask(raw)
            assert (reply.status, reply.json()["code"]) == (400, code)


async def test_pipelined_chunked_and_continued_requests(rig: Rig) -> None:
    async with Connection(rig.address) as c:
        raw = b"".join(request(INFER, clients.inference([float(n), 0, 0, 0])) for n in range(5))
        c.writer.write(raw + request("/v2", method="GET"))
        for n in range(5):
            assert (await c.reply()).json()["outputs"][0]["data"][0] == 2.0 * n
        assert (await c.reply()).json()["name"] == "interlock"
        body = clients.inference([1, 2, 3, 4])
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 9]), body[i : i + 9]) for i in range(0, len(body), 9))
        start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
        assert (await c.ask(start + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")).status == 200
        c.writer.write(start + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert await c.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await c.ask(body)).status == 200
        assert (await c.ask(request(INFER, body, Content_Encoding="gzip"))).status == 415
        last = await c.ask(request(INFER, body, Connection="close"))
        assert last.headers["connection"] == "close"
        assert await c.reader.read() == b""


async def test_what_is_malformed_or_too_large_is_answered_and_ends_the_connection(rig: Rig) -> None:
    for raw, status in (
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000, 431),
        (f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n".encode() + b"y" * 100_000, 413),
    ):
        async with Connection(rig.address) as c:
            reply = await c.ask(raw)
            assert (reply.status, reply.headers["connection"]) == (status, "close")
            assert reply.json()["code"]
            assert await c.reader.read() == b""


async def test_half_a_request_and_a_client_that_goes_hold_nobody_up(rig: Rig) -> None:
    whole = request(INFER, clients.inference([1, 2, 3, 4]))
    async with Connection(rig.address) as half, Connection(rig.address) as gone:
        half.writer.write(whole[:-5])
        gone.writer.write(whole)
        gone.writer.transport.abort()
        assert (await clients.infer(rig.address)).status == 200
        assert (await half.ask(whole[-5:])).status == 200
    async with Connection(rig.address) as c:  # sends no more, and reads
        c.writer.write(whole)
        c.writer.write_eof()
        assert (await c.reply()).status == 200
        assert await c.reader.read() == b""


async def test_a_foreign_client(rig: Rig) -> None:
    import tritonclient.http as triton

    def talk() -> None:
        client = triton.InferenceServerClient(rig.address)
        try:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("filetype")
            assert client.get_model_metadata("filetype")["inputs"][0]["name"] == "x"
            x = np.ones((3, 4), np.float32)
            for as_bytes in (True, False):
                given = triton.InferInput("x", list(x.shape), "FP32")
                given.set_data_from_numpy(x, binary_data=as_bytes)
                asked = [triton.InferRequestedOutput("y", binary_data=as_bytes)]
                result = client.infer("filetype", [given], outputs=asked, request_id="1", model_version="1.1.0")
                assert np.array_equal(result.as_numpy("y"), x * 2)
                assert result.get_response()["model_version"] == "1.1.0"
            with pytest.raises(triton.InferenceServerException, match="no input"):
                client.infer("filetype", [triton.InferInput("z", [1], "FP32").set_data_from_numpy(x[0, :1])])
        finally:
            client.close()

    await asyncio.to_thread(talk)


@pytest.fixture
def foreign_python(tmp_path: Path) -> Callable[[], Path]:
    """A second virtual environment with numpy and onnxruntime, and nothing else of ours."""

    def make() -> Path:
        import venv

        home = tmp_path / "foreign"
        venv.create(home, symlinks=True, with_pip=False)
        site = next(home.glob("lib/python*/site-packages"))
        source = Path(sysconfig.get_paths()["purelib"])
        wanted = ("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "packaging", "google")
        for name in wanted:
            if (source / name).exists():
                os.symlink(source / name, site / name)
        return home / "bin" / "python"

    return make


async def test_a_worker_on_another_python(short_path: Path, foreign_python: Callable[[], Path]) -> None:
    python = await asyncio.to_thread(foreign_python)
    check = "import sys, numpy, onnxruntime\ntry: import pydantic\nexcept ImportError: sys.exit(0)\nsys.exit(1)"
    probe = await asyncio.create_subprocess_exec(str(python), "-c", check)
    assert await probe.wait() == 0, "it has what it must not have"
    async with running(short_path) as rig:
        loaded = await rig.load(1, options={"worker_python": str(python)})
        executable = await asyncio.to_thread(Path(f"/proc/{loaded['pid']}/cmdline").read_bytes)
        assert executable.startswith(str(python).encode())
        assert (await rig.agent.order(messages.Evaluate(loaded["worker"], 1)))["score"]["rows"] == "1" * 40
        assert sys.executable.encode() not in executable


async def test_the_end_is_graceful(short_path: Path) -> None:
    """Requests that were begun are answered, then everything ends, with exit code 0."""
    async with running(short_path) as rig:
        await rig.confirmed(1, slow=2000)
        async with Connection(rig.address) as one, Connection(rig.address) as two:
            for connection in (one, two):
                connection.writer.write(request(INFER, clients.inference([1, 2, 3, 4])))
            await clients.get(rig.address, "/v2")  # the front has seen them
            stopping = asyncio.create_task(rig.stop())
            replies = await asyncio.gather(one.reply(), two.reply())
            assert [reply.status for reply in replies] == [200, 200]
            assert replies[1].headers["connection"] == "close"
            assert await stopping == 0


async def test_the_command_line(short_path: Path) -> None:
    async def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "interlock_agent.host", *arguments]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async with running(short_path) as rig:
        await rig.confirmed(1)
        config = str(short_path / "host.toml")
        code, out = await run("status", "--config", config)
        assert code == 0
        assert all(word in out for word in ("filetype", rig.address, "filetype/1.1.0", "confirmed"))
        code, out = await run("status", "--config", config, "--json")
        assert json.loads(out)["units"][0]["live"] == "filetype/1.1.0"
    assert (await run("status", "--config", config))[0] == 1
    assert (await run())[0] == 2
    assert (await run("--version"))[1].startswith("interlock-host ")
    assert "curl" in (await run("--help"))[1]
    for text, complaint in (
        ("concurency = 3", "unknown setting 'concurency'"),
        ("concurrency = 'x'", "concurrency is a int"),
        ("concurrency = 0", "above zero"),
        ("log_level = 'loud'", "log_level is"),
        ("= 3", "line 1"),
    ):
        (short_path / "bad.toml").write_text(text)
        code, out = await run("run", "--config", str(short_path / "bad.toml"))
        assert (code, complaint in out) == (2, True), out
    assert (await run("run", "--config", "/nonexistent"))[0] == 2
