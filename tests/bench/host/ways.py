"""The price of each way to ask: a light and a heavy model, small and 600 kB tensors, one request at a time, in turn,
block by block; every side has one thread for the model and no spinning.

In-process ONNX Runtime is the limit. What the front adds is the difference to a worker that is asked directly, by the
same bytes. `tritonserver` is a real one, with the same model in its Python backend, and left out where it does not run.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton

from interlock_agent.client import Model
from interlock_agent.host import wire
from tests.bench.result import Figure, quantile
from tests.host.clients import INFER, inference
from tests.host.rig import UNIT, Rig, free_port, running
from tests.rig.triton import TritonServer

BLOCKS = 15
BLOCK_S = 0.25  # so long does a block take, at least RUNS_MIN runs
RUNS_MIN = 5
SMALL, LARGE = 4, 150_000  # elements: 16 bytes, 600 kB
HEAVY = 90  # products of matrices: above 10 ms

Ask = Callable[[], None]


@dataclass(frozen=True)
class Cell:
    """A model and a size of its tensors."""

    name: str
    width: int
    slow: int


CELLS = (
    Cell("light, small", SMALL, 0),
    Cell("light, 600 kB", LARGE, 0),
    Cell("heavy, small", SMALL, HEAVY),
    Cell("heavy, 600 kB", LARGE, HEAVY),
)


@dataclass
class Bed:
    """What a way has to ask."""

    cell: Cell
    address: str
    rpc: str
    worker: Path  # its socket
    model: Path
    row: Any = field(init=False)

    def __post_init__(self) -> None:
        self.row = np.linspace(1, 2, self.cell.width, dtype=np.float32)[None]

    def binary(self) -> tuple[bytes, int]:
        """Body and length of its JSON part."""
        size = {"binary_data_size": self.row.nbytes}
        tensor = {"name": "x", "datatype": "FP32", "shape": list(self.row.shape), "parameters": size}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        return head + self.row.tobytes(), len(head)


def _check(bed: Bed, got: Any) -> None:
    if got.shape != bed.row.shape or got[0, -1] != 2 * bed.row[0, -1]:
        raise AssertionError(f"answered {got}")


def _http(address: str, bed: Bed, body: bytes, header: int, parse: Callable[[bytes, int], Any]) -> Ask:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    headers = {} if header == wire.NO_HEADER else {"Inference-Header-Content-Length": str(header)}

    def ask() -> None:
        connection.request("POST", INFER, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise AssertionError(f"{answer.status}: {data[:200]!r}")
        _check(bed, parse(data, int(answer.headers.get("Inference-Header-Content-Length", len(data)))))

    return ask


def _of_json(data: bytes, _: int) -> Any:
    return np.array(json.loads(data)["outputs"][0]["data"], dtype=np.float32)[None]


def _of_binary(data: bytes, header: int) -> Any:
    return np.frombuffer(data, np.float32, offset=header)[None]


@contextmanager
def _json(bed: Bed) -> Iterator[Ask]:
    yield _http(bed.address, bed, inference(bed.row[0].tolist()), wire.NO_HEADER, _of_json)


@contextmanager
def _binary(bed: Bed) -> Iterator[Ask]:
    yield _http(bed.address, bed, *bed.binary(), _of_binary)


@contextmanager
def _rpc(bed: Bed) -> Iterator[Ask]:
    """`tritonclient.grpc`, with a request that was built before, as the other ways have."""
    tensor = triton.InferInput("x", list(bed.row.shape), "FP32")
    tensor.set_data_from_numpy(bed.row)
    with closing(triton.InferenceServerClient(bed.rpc)) as client:
        yield lambda: _check(bed, client.infer(UNIT, [tensor]).as_numpy("y"))


@contextmanager
def _worker(bed: Bed) -> Iterator[Ask]:
    body, header = bed.binary()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.connect(str(bed.worker))
        head = wire.REQUEST.pack(wire.OP_INFER, wire.NO_USER, 0, header, len(body))

        def ask() -> None:
            connection.sendall(head)
            connection.sendall(body)
            status, _, _, length, size = wire.ANSWER.unpack(wire.read_exactly(connection, wire.ANSWER.size))
            data = wire.read_exactly(connection, size)
            if status != 200:
                raise AssertionError(f"{status}: {bytes(data[:200])!r}")
            _check(bed, _of_binary(bytes(data), length))

        yield ask


@contextmanager
def _client(bed: Bed) -> Iterator[Ask]:
    with Model(bed.address, UNIT) as model:
        yield lambda: _check(bed, model.infer({"x": bed.row})["y"])


@contextmanager
def _in_process(bed: Bed) -> Iterator[Ask]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(bed.model), options, providers=["CPUExecutionProvider"])
    yield lambda: _check(bed, session.run(["y"], {"x": bed.row})[0])


@contextmanager
def _tritonserver(bed: Bed) -> Iterator[Ask]:
    """Its Python backend, with one thread for the model too."""
    with closing(socket.socket()) as free, ExitStack() as stack:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
        folder = bed.model.parents[3] / "triton"
        folder.mkdir()
        free.close()
        server = TritonServer(folder, port)
        place = server.repository / UNIT / "1"
        place.mkdir(parents=True)
        shutil.copy(bed.model, place / "model.onnx")
        shutil.copy(server.template / "model.py", place)
        config = (server.template / "config.pbtxt").read_text().replace("[ -1, 4 ]", f"[ -1, {bed.cell.width} ]")
        (place.parent / "config.pbtxt").write_text(config)
        stack.callback(server.stop)
        server.start()
        status, said = server.ask(f"/v2/repository/models/{UNIT}/load", {})
        if status != 200:
            raise AssertionError(f"{status}: {said} {server.log()[-500:]}")
        yield _http(f"127.0.0.1:{port}", bed, *bed.binary(), _of_binary)


WAYS = {
    "in-process": _in_process,
    "worker": _worker,
    "JSON": _json,
    "binary": _binary,
    "gRPC": _rpc,
    "client": _client,
    "tritonserver": _tritonserver,
}


def _block(ask: Ask) -> list[float]:
    """Milliseconds of each."""
    took: list[float] = []
    end = time.perf_counter() + BLOCK_S
    while len(took) < RUNS_MIN or time.perf_counter() < end:
        began = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began) * 1000)
    return took


def measure(bed: Bed, ways: dict[str, Any], blocks: int) -> dict[str, list[float]]:
    """The p50 of each block, by way; the order of the ways is drawn anew in each round."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        asks: dict[str, Ask] = {}
        for name, way in ways.items():
            try:
                asks[name] = stack.enter_context(way(bed))
            except pytest.skip.Exception as missing:
                print(f"  {name} is left out: {missing}", flush=True)
        found = {name: [] for name in asks}
        for ask in asks.values():
            for _ in range(RUNS_MIN):
                ask()
        for _ in range(blocks):
            for name in random.sample(sorted(asks), len(asks)):
                found[name].append(quantile(_block(asks[name]), 0.5))
    return found


def _ratios(one: list[float], two: list[float]) -> list[float]:
    return [a / b for a, b in zip(one, two, strict=True)]


def _rows(cell: Cell, found: dict[str, list[float]]) -> list[Figure]:
    rows = [Figure(f"{cell.name}: {name}", "ms", p50s) for name, p50s in found.items()]
    adds = [a - b for a, b in zip(found["binary"], found["worker"], strict=True)]
    added = Figure(f"{cell.name}: the front adds", "ms", adds)
    ratio = Figure(f"{cell.name}: front / worker", "ratio", _ratios(found["binary"], found["worker"]))
    rows += [added.at_most(0.4) if cell.width == SMALL else added, ratio]
    if cell.width == LARGE:
        ratio.at_most(1.15)
    if "tritonserver" in found:
        rows.append(
            Figure(f"{cell.name}: throughput / tritonserver", "ratio", _ratios(found["tritonserver"], found["binary"]))
        )
        if cell == CELLS[1]:
            rows[-1].at_least(1.5)
    if cell.slow:
        rows.append(Figure(f"{cell.name}: client / in-process", "ratio", _ratios(found["client"], found["in-process"])))
        rows[-1].at_most(1.1)
    return rows


async def _cell(folder: Path, cell: Cell, blocks: int) -> list[Figure]:
    async with running(folder, guarded=False) as rig:
        rpc = free_port()
        await rig.configure(grpc_listen=rpc)
        await rig.confirmed(1, width=cell.width, slow=cell.slow, scale=2.0)
        bed = await asyncio.to_thread(_bed, rig, rpc, cell)
        return await asyncio.to_thread(lambda: _rows(cell, measure(bed, WAYS, blocks)))


def _bed(rig: Rig, rpc: str, cell: Cell) -> Bed:
    (socket_path,) = (rig.folder / "run" / "workers").glob("*.sock")
    return Bed(cell, rig.address, rpc, socket_path, rig.slots / "a" / "model.onnx")


def figures(folder: Path, scale: float) -> list[Figure]:
    """All cells."""
    rows: list[Figure] = []
    for number, cell in enumerate(CELLS):
        print(f"  ways: {cell.name}", flush=True)
        rows += asyncio.run(_cell(folder / str(number), cell, max(5, int(BLOCKS * scale))))
    return rows
