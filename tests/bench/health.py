"""What looking at answers costs: requests as a worker answers them, from bytes to bytes, by one that looks for constant
and out-of-range answers and by one that does not; in turn, block by block, each as fast as it answers. Light: 4 floats
as JSON. Large: 150,000 floats (600 kB) as a binary tensor. The model does next to nothing. Compared is processor
time. And what it costs a front to know how long applications wait.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from interlock_agent.host import wire
from interlock_agent.host.front.recent import SAMPLES_MAX, Recent
from interlock_agent.host.front.service import REPORT_EVERY_S
from interlock_agent.host.worker import inference, sanity
from interlock_agent.host.worker.backends.onnxruntime import Session
from interlock_agent.host.worker.memory import Regions
from tests.bench.result import Figure
from tests.host import models
from tests.host.clients import inference as inference_body

BLOCKS = 80  # of each
BLOCK_S = 0.25  # two or three looks
LARGE = 150_000
SANITY = {"constant": True, "ranges": {"y": [-1e6, 1e6]}}
COSTS = 0.02  # of the throughput, at the most

Ask = Callable[[], None]


def _body(width: int) -> tuple[bytes, int]:
    if width == 4:
        return inference_body([1.0, 2.0, 3.0, 4.0]), wire.NO_HEADER
    row = np.ones((1, width), dtype=np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, width], "parameters": {"binary_data_size": row.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + row.tobytes(), len(head)


def _asker(backend: Any, serve: dict[str, Any], width: int) -> Ask:
    """A request as a worker answers it, from bytes to bytes."""
    model = inference.Model("filetype", "1.0.0", sanity.watched(backend, serve), frozenset())
    (body, header), nobody = _body(width), inference.Asker(wire.NO_USER, Regions())

    def ask() -> None:
        answer = inference.infer(model, bytearray(body), header, nobody)
        if answer.status != 200:
            raise AssertionError(answer)

    return ask


def _work(ask: Ask) -> float:
    """Microseconds of processor time for one request, over one block."""
    before, began, count = time.process_time_ns(), time.perf_counter(), 0
    while time.perf_counter() - began < BLOCK_S:
        ask()
        count += 1
    return (time.process_time_ns() - before) / count / 1000


def _cell(folder: Path, name: str, width: int, blocks: int) -> list[Figure]:
    """Both by turns, in an order that chance has chosen."""
    folder.mkdir(parents=True)
    models.make_model(folder / "model.onnx", 2.0, width=width)
    backend = Session(str(folder / "model.onnx"), {})
    asks = _asker(backend, {}, width), _asker(backend, {"sanity": SANITY}, width)
    found: tuple[list[float], list[float]] = ([], [])
    for ask in asks:
        _work(ask)
    for _ in range(blocks):
        for which in random.sample((0, 1), 2):
            found[which].append(_work(asks[which]))
    ratios = [b / a for a, b in zip(*found, strict=True)]
    return [
        Figure(f"{name}: a request, without", "µs", found[0]),
        Figure(f"{name}: a request, looked at", "µs", found[1]),
        Figure(f"{name}: looked at ÷ without", "ratio", ratios).at_most(1 + COSTS),
    ]


def _front() -> list[Figure]:
    """Of one processor, at as many requests a second as fill the window: the share that knowing latencies takes."""
    recent, rate = Recent(), SAMPLES_MAX / 5.0
    adds, figures = [], []
    for _ in range(20):
        began = time.perf_counter()
        for number in range(SAMPLES_MAX):
            recent.add(number / rate, 0.001 * random.random())
        adds.append((time.perf_counter() - began) / SAMPLES_MAX)
        began = time.perf_counter()
        recent.figures(SAMPLES_MAX / rate)
        figures.append(time.perf_counter() - began)
    share = statistics.median(adds) * rate + statistics.median(figures) / REPORT_EVERY_S
    return [
        Figure("latency: one answer noted", "µs", [1e6 * one for one in adds]),
        Figure("latency: the figures of a window", "µs", [1e6 * one for one in figures]),
        Figure("latency: share of the front's processor", "ratio", [share]).at_most(COSTS),
    ]


def run(folder: Path, scale: float) -> list[Figure]:
    """All of it."""
    blocks = max(5, int(BLOCKS * scale))
    light = _cell(folder / "light", "4 floats, JSON", 4, blocks)
    return light + _cell(folder / "large", "600 kB, binary", LARGE, blocks) + _front()
