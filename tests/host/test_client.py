"""The client for applications in Python, against a real host: it lives through what releases go through."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import mmap
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from interlock_agent import client
from interlock_agent.client import Answer, FailedError, Model, RefusedError, UnavailableError
from interlock_agent.host import messages
from tests.host.crew import asking
from tests.host.rig import UNIT, Rig, running

pytestmark = pytest.mark.e2e

MAGIC = 666.0
X = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path) as rig:
        yield rig


async def ask(address: str, x: Any = X, **options: Any) -> Answer:
    def work() -> Answer:
        with Model(address, UNIT) as model:
            return model.infer({"x": x}, **options)

    return await asyncio.to_thread(work)


async def test_arrays_in_arrays_out_and_who_answered(rig: Rig) -> None:
    await rig.confirmed(3)
    for sent in (X, np.asfortranarray(np.repeat(X, 3, axis=0)), X.astype(">f4")):
        answer = await ask(rig.address, sent)
        assert answer["y"].dtype == X.dtype
        np.testing.assert_array_equal(answer["y"], sent * 3)
        assert (answer.release, answer.generation) == (f"{UNIT}/1.3.0", 3)
    with Model(rig.address, UNIT) as model:
        described = await asyncio.to_thread(model.metadata)
    assert described["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


async def test_over_a_unix_socket_where_no_model_serves_yet(short_path: Path) -> None:
    async with running(short_path / "u") as other:
        await other.configure(f"unix:{short_path}/m.sock", UNIT + "2")
        model = Model(f"unix:{short_path}/m.sock", UNIT + "2", deadline_s=1.0)
        with model, pytest.raises(UnavailableError, match=r"no answer within 1 s: "):
            await asyncio.to_thread(model.infer, {"x": X})


async def test_only_the_outputs_that_are_wanted(rig: Rig) -> None:
    await rig.confirmed(2)
    assert list((await ask(rig.address, outputs=["y"])).outputs) == ["y"]
    with pytest.raises(RefusedError) as refused:
        await ask(rig.address, outputs=["z"])
    assert refused.value.code == "unknown_output"


async def test_what_is_at_fault_is_told_and_not_asked_again(rig: Rig) -> None:
    await rig.confirmed(1, nan_on=MAGIC)
    for x, code in ((X[:, :3], "wrong_shape"), (X.astype("f8"), "wrong_dtype"), (X.astype("c8"), "unsupported_dtype")):
        with pytest.raises(RefusedError) as refused:
            await ask(rig.address, x)
        assert refused.value.code == code
    with pytest.raises(FailedError) as failed:
        await ask(rig.address, np.full((1, 4), MAGIC, np.float32))
    assert (failed.value.code, failed.value.status) == ("non_finite_output", 500)
    np.testing.assert_array_equal((await ask(rig.address))["y"], X)


async def test_threads_live_through_swaps_reverts_deaths_and_a_restart_of_the_host(rig: Rig) -> None:
    await rig.confirmed(1)
    async with asking(Model(rig.address, UNIT, deadline_s=60.0), X, X + 1, X + 2) as crew:
        await crew.served(f"{UNIT}/1.1.0")
        await rig.promote(2)
        await crew.served(f"{UNIT}/1.2.0")
        await rig.agent.order(messages.Revert(UNIT, 2, "test"))
        await crew.served(f"{UNIT}/1.1.0")
        rig.kill(await rig.live_pid())
        await crew.served(f"{UNIT}/1.1.0")
        await rig.kill_host()
        await rig.start()
        await crew.served(f"{UNIT}/1.1.0")


def test_without_a_host_it_says_so_when_the_time_is_up(short_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"detector at unix:.*no answer within 0.4 s: .*No such file"):
        Model(f"unix:{short_path}/none.sock", "detector", deadline_s=0.4).infer({"x": X})
    assert time.monotonic() - began >= 0.4


def test_one_that_never_answers_does_not_hold_it_beyond_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Model(address, "detector", deadline_s=0.5) as model, pytest.raises(UnavailableError, match="timed out"):
            model.infer({"x": X})


class Peer:
    """Answers each request with `parts`, `pause_s` before each; counts the connections that are open."""

    def __init__(self, *parts: bytes, pause_s: float = 0.0) -> None:
        self._parts, self.pause_s = parts, pause_s
        self._connections: list[socket.socket] = []
        self.open = self.accepted = self.asked = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def hang_up(self) -> None:
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.open, self.accepted = self.open + 1, self.accepted + 1
                self._connections.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while connection.recv(65536):
                self.asked += 1
                for part in self._parts:
                    time.sleep(self.pause_s)
                    connection.sendall(part)
        self.open -= 1


FOUND = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def test_one_that_answers_in_crumbs_does_not_hold_it_beyond_the_deadline() -> None:
    began = time.monotonic()
    crumbs = [bytes([one]) for one in FOUND]
    with Peer(*crumbs, pause_s=0.1) as peer, pytest.raises(UnavailableError, match="timed out"):
        Model(peer.address, "m", deadline_s=0.5).metadata()
    assert time.monotonic() - began < 2.0


def test_the_deadline_of_a_request_is_its_own_on_a_connection_that_was_kept() -> None:
    with Peer(FOUND, b"{}") as peer, Model(peer.address, "m", deadline_s=30.0) as model:
        model.metadata()
        peer.pause_s = 3.0
        with pytest.raises(UnavailableError, match=r"no answer within 0.3 s: timed out"):
            model.infer({"x": X}, deadline_s=0.3)
        assert peer.accepted == 1, "the same connection"


def test_connections_that_were_lost_together_are_made_anew_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    with Peer(FOUND, b"{}", pause_s=0.1) as peer, Model(peer.address, "m") as model:
        crew = [threading.Thread(target=model.metadata) for _ in range(4)]
        for one in crew:
            one.start()
        for one in crew:
            one.join()
        assert peer.accepted == 4
        peer.hang_up()
        monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=time.monotonic, sleep=slept.append))
        assert model.metadata() == {}
        assert slept == [0.0], "one of them is enough to know"


def test_a_peer_that_goes_while_one_connects_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, refusals = client._Connection.connect, [ConnectionResetError(), BrokenPipeError()]

    def refused_at_first(connection: client._Connection) -> None:
        if refusals:
            raise refusals.pop()
        connect(connection)

    monkeypatch.setattr(client._Connection, "connect", refused_at_first)
    with Peer(FOUND, b"{}") as peer, Model(peer.address, "m") as model:
        assert (model.metadata(), refusals) == ({}, [])


BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n"


@pytest.mark.parametrize(("says", "asked"), [(b"", range(3, 20)), (b"Retry-After: 1\r\n", range(1, 2))])
def test_where_no_model_serves_it_is_asked_again_but_not_before_it_says(says: bytes, asked: range) -> None:
    with Peer(BUSY + says + b"\r\n{}") as peer, Model(peer.address, "m", deadline_s=0.9) as model:
        with pytest.raises(UnavailableError, match=r"no answer within 0.9 s"):
            model.metadata()
        assert peer.asked in asked


def test_threads_that_have_ended_leave_no_connection() -> None:
    with Peer(FOUND, b"{}") as peer, Model(peer.address, "m") as model:
        for _ in range(20):
            thread = threading.Thread(target=model.metadata)
            thread.start()
            thread.join()
        assert peer.accepted == 1


def test_one_that_is_closed_while_it_is_asked_still_answers_and_leaves_nothing_open() -> None:
    with Peer(FOUND, b"{}", pause_s=0.2) as peer:
        model, answers = Model(peer.address, "m"), list[Any]()
        thread = threading.Thread(target=lambda: answers.append(model.metadata()))
        thread.start()
        time.sleep(0.1)
        model.close()
        thread.join()
        assert (answers, peer.accepted) == ([{}], 1)
        for _ in range(500):
            if not peer.open:
                break
            time.sleep(0.01)
        assert peer.open == 0


def test_what_is_refused_before_it_was_read_to_its_end_is_told(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short_path}/m.sock")
        server.listen()

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b'HTTP/1.1 413 X\r\nContent-Length: 25\r\n\r\n{"error":"","code":"big"}')

        thread = threading.Thread(target=refuse)
        thread.start()
        model = Model(f"unix:{short_path}/m.sock", "m", deadline_s=5.0, shared_memory=False)
        with model, pytest.raises(RefusedError) as refused:
            model.infer({"x": np.zeros(8_000_000, np.uint8)})
        thread.join()
        assert (refused.value.code, refused.value.status) == ("big", 413)


def test_a_fork_has_connections_of_its_own() -> None:
    with Peer(FOUND, b"{}") as peer, Model(peer.address, "m") as model:
        model.metadata()
        with model._lock:
            model._epoch = (model._epoch[0] + 1, model._epoch[1])  # as the child of that process sees it
        model.metadata()
        assert peer.accepted == 2


@pytest.mark.parametrize("kind", sorted(client._DTYPES))
def test_numbers_of_every_type_travel_as_they_are(kind: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(client._DTYPES[kind])
    tensor = client._Tensor.of("t", array[:, ::-1])
    head, parts = client._request([tensor], (), None, {})
    assert f'"{kind}"'.encode() in head
    np.testing.assert_array_equal(client._array(memoryview(parts[0]), kind, [2, 2]), array[:, ::-1])
    with mmap.mmap(-1, 4096) as memory:
        tensor.put(memory, 64)
        assert memory[64 : 64 + tensor.size] == bytes(parts[0])


@pytest.mark.parametrize("array", [np.array(["ä", "b"]), np.array([b"\x00", b"long" * 99]), np.array([["x"]], object)])
def test_texts_travel_as_lengths_and_bytes(array: Any) -> None:
    head, parts = client._request([client._Tensor.of("t", array)], (), None, {})
    assert b'"BYTES"' in head
    back = client._array(memoryview(parts[0]), "BYTES", list(array.shape))
    texts = [text if isinstance(text, bytes) else text.encode() for text in array.reshape(-1).tolist()]
    assert back.reshape(-1).tolist() == texts


@pytest.mark.parametrize("body", [b"", b"{}", b'{"outputs": [{"name": "y"}]}', b"[1]", b"\xff"])
def test_an_answer_that_is_none_is_a_failure_by_name(body: bytes) -> None:
    with pytest.raises(FailedError, match="an answer that is none"):
        client._outputs(memoryview(body), len(body))


def test_the_file_needs_nothing_but_numpy(tmp_path: Path) -> None:
    source = Path(client.__file__)
    shutil.copy(source, tmp_path / "theirs.py")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import theirs; print(theirs.Model('h:1', 'm'))"
    done = subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    nodes = list(ast.walk(ast.parse(source.read_text())))
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
