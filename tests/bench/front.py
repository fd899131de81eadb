"""What the front costs: the same requests through the front (HTTP) and at the worker's own socket, in turn, block by
block, one client. Small: 4 floats as JSON. Large: 150,000 floats (600 kB) as a binary tensor.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from interlock_agent.host import wire
from tests.bench.result import Figure, quantile
from tests.host.clients import INFER, inference
from tests.host.rig import Rig, running

BLOCKS = 20
RUNS = 100  # in a block
LARGE = 150_000


def _large_body() -> tuple[bytes, int]:
    row = np.ones((1, LARGE), dtype=np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, LARGE], "parameters": {"binary_data_size": row.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + row.tobytes(), len(head)


def _through_front(address: str, body: bytes, header: int) -> Callable[[], None]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port))
    headers = {} if header == wire.NO_HEADER else {"Inference-Header-Content-Length": str(header)}

    def ask() -> None:
        connection.request("POST", INFER, body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise AssertionError(f"status {answer.status}")

    return ask


def _at_worker(path: Path, body: bytes, header: int) -> Callable[[], None]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    head = wire.REQUEST.pack(wire.OP_INFER, 0, header, len(body))

    def ask() -> None:
        connection.sendall(head)
        connection.sendall(body)
        status, _, _, size = wire.ANSWER.unpack(wire.read_exactly(connection, wire.ANSWER.size))
        wire.read_exactly(connection, size)
        if status != 200:
            raise AssertionError(f"status {status}")

    return ask


def _block(ask: Callable[[], None], runs: int) -> list[float]:
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began) * 1000)
    return took


def _compare(rig: Rig, body: bytes, header: int, blocks: int) -> tuple[list[float], list[float]]:
    """Samples in ms: through the front, at the worker."""
    path = next((rig.folder / "run" / "workers").glob("*.sock"))
    asks = (_through_front(rig.address, body, header), _at_worker(path, body, header))
    samples: tuple[list[float], list[float]] = ([], [])
    for ask in asks:
        _block(ask, RUNS // 2)
    for block in range(blocks):
        for which in (0, 1) if block % 2 else (1, 0):
            samples[which].extend(_block(asks[which], RUNS))
    return samples


async def _run(folder: Path, blocks: int) -> list[Figure]:
    figures = []
    async with running(folder, guarded=False) as rig:
        await rig.confirmed(1)
        bodies = {"4 floats, JSON": (inference([1.0, 2.0, 3.0, 4.0]), wire.NO_HEADER)}
        for name, (body, header) in bodies.items():
            figures += await asyncio.to_thread(_figures, name, rig, body, header, blocks)
    async with running(folder / "large", guarded=False) as rig:
        await rig.confirmed(1, width=LARGE)
        body, header = _large_body()
        figures += await asyncio.to_thread(_figures, "600 kB, binary", rig, body, header, blocks)
    return figures


def _figures(name: str, rig: Rig, body: bytes, header: int, blocks: int) -> list[Figure]:
    front, worker = _compare(rig, body, header, blocks)
    rows = []
    for q, text in ((0.5, "p50"), (0.99, "p99")):
        one, two = quantile(front, q), quantile(worker, q)
        rows += [
            Figure(f"{name}: {text} through the front", "ms", [one]),
            Figure(f"{name}: {text} at the worker", "ms", [two]),
            Figure(f"{name}: {text} the front adds", "ms", [one - two]),
        ]
    rows.append(Figure(f"{name}: mean ratio", "ratio", [statistics.mean(front) / statistics.mean(worker)]))
    return rows


def run(folder: Path, scale: float) -> list[Figure]:
    """Both sizes."""
    return asyncio.run(_run(folder, max(2, int(BLOCKS * scale))))
