"""32 mixed applications of one model, in a process of their own, so that no other work is in what they measure.

`python -m tests.bench.host.crowd ADDRESS FILE`: they ask until standard input ends, then FILE holds what they saw:
`{"answers": [[asked, answered, version, kind], …], "failures": [[asked, failed, kind, what], …]}`, times in seconds of
the machine's monotonic clock. An answer whose figures are not those of the release that it names is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.host.clients import INFER, Connection, inference, request
from tests.host.rig import UNIT

KINDS = {"busy": 8, "idle": 8, "half": 4, "new": 4, "triton": 4, "http": 4}
IDLE_S, HALF_S, NEW_S = 0.25, 0.02, 0.01  # pauses; of `half`, between one half of a body and the other
SCALES = {"1.0.0": 2.0, "2.0.0": 3.0}  # what the two releases multiply by


@dataclass
class Seen:
    """What the crowd saw."""

    answers: list[tuple[float, float, str, str]] = field(default_factory=list)
    failures: list[tuple[float, float, str, str]] = field(default_factory=list)

    def add(self, kind: str, asked: float, release: str, x: list[float], got: list[float]) -> None:
        """An answer; checked."""
        now, version = time.monotonic(), release.rpartition("/")[2]
        scale = SCALES.get(version, float("nan"))
        if len(got) == len(x) and all(abs(g - scale * v) <= 1e-3 * abs(v) for g, v in zip(got, x, strict=True)):
            self.answers.append((asked, now, version, kind))
        else:
            self.fail(kind, asked, f"{release} answered {got[:4]} for {x}")

    def fail(self, kind: str, asked: float, what: str) -> None:
        """No answer, or a wrong one."""
        self.failures.append((asked, time.monotonic(), kind, what[:300]))

    def asked_in(self, began: float, ended: float) -> list[float]:
        """Milliseconds of what was asked in that time."""
        return [(answered - asked) * 1000 for asked, answered, _, _ in self.answers if began <= asked < ended]


def _numbers(number: int, turn: int) -> list[float]:
    return [number + 1 + turn % 1000 / 1024, 2.0, 3.0, 4.0]


async def _streams(seen: Seen, stop: asyncio.Event, address: str, kind: str, number: int) -> None:
    """Clients on asyncio's streams: busy, idle, half, new."""
    turn = 0
    while not stop.is_set():
        asked = time.monotonic()
        try:
            async with Connection(address) as connection:
                while not stop.is_set():
                    turn += 1
                    x = _numbers(number, turn)
                    asked = time.monotonic()
                    reply = await (_in_halves(connection, x) if kind == "half" else connection.infer(x))
                    if reply.status == 200:
                        seen.add(kind, asked, reply.release, x, reply.json()["outputs"][0]["data"])
                    else:
                        seen.fail(kind, asked, f"{reply.status} {reply.body[:200]!r}")
                    if kind == "idle":
                        await asyncio.sleep(IDLE_S)
                    if kind == "new":
                        await asyncio.sleep(NEW_S)
                        break
        except (OSError, EOFError, TimeoutError) as failure:
            seen.fail(kind, asked, repr(failure))
            await asyncio.sleep(0.01)


async def _in_halves(connection: Connection, x: list[float]) -> Any:
    raw = request(INFER, inference(x))
    connection.writer.write(raw[: -len(raw) // 4])
    await connection.writer.drain()
    await asyncio.sleep(HALF_S)
    return await connection.ask(raw[-len(raw) // 4 :])


def _http(seen: Seen, stop: threading.Event, address: str, number: int) -> None:
    """The standard library's client."""
    host, _, port = address.rpartition(":")
    connection, turn = http.client.HTTPConnection(host, int(port), timeout=60), 0
    while not stop.wait(0.002):
        turn += 1
        x, asked = _numbers(number, turn), time.monotonic()
        try:
            connection.request("POST", INFER, inference(x))
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as failure:
            seen.fail("http", asked, repr(failure))
            connection.close()
            continue
        if answer.status == 200:
            got = json.loads(body)["outputs"][0]["data"]
            seen.add("http", asked, answer.headers["interlock-release"], x, got)
        else:
            seen.fail("http", asked, f"{answer.status} {body[:200]!r}")
    connection.close()


def _triton(seen: Seen, stop: threading.Event, address: str, number: int) -> None:
    """Triton's client, with binary tensors."""
    from tritonclient import http as triton
    from tritonclient.utils import InferenceServerException

    client, turn = triton.InferenceServerClient(address, network_timeout=60, connection_timeout=60), 0
    tensor = triton.InferInput("x", [1, 4], "FP32")
    while not stop.wait(0.002):
        turn += 1
        x, asked = _numbers(number, turn), time.monotonic()
        tensor.set_data_from_numpy(np.array([x], dtype=np.float32))
        try:
            answer = client.infer(UNIT, [tensor])
        except (OSError, InferenceServerException) as failure:
            seen.fail("triton", asked, repr(failure))
            continue
        version = answer.get_response()["model_version"]
        seen.add("triton", asked, f"{UNIT}/{version}", x, answer.as_numpy("y")[0].tolist())
    client.close()


async def _crowd(address: str) -> Seen:
    seen, stop, stopped = Seen(), asyncio.Event(), threading.Event()
    tasks, threads, number = [], [], 0
    in_threads: dict[str, Callable[[Seen, threading.Event, str, int], None]] = {"triton": _triton, "http": _http}
    for kind, count in KINDS.items():
        for _ in range(count):
            number += 1
            if kind in in_threads:
                threads.append(threading.Thread(target=in_threads[kind], args=(seen, stopped, address, number)))
                threads[-1].start()
            else:
                tasks.append(asyncio.create_task(_streams(seen, stop, address, kind, number)))
    print("asking", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    stop.set()
    stopped.set()
    await asyncio.gather(*tasks)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    return seen


@contextlib.asynccontextmanager
async def asking(address: str, folder: Path) -> AsyncIterator[Seen]:
    """The crowd, until the block is left; then it has told what it saw."""
    file, told = folder / "seen.json", Seen()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        address,
        str(file),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if await process.stdout.readline() != b"asking\n":
            raise RuntimeError("the crowd does not start")
        yield told
        await process.communicate(b"")  # and its standard input ends
        found = json.loads(await asyncio.to_thread(file.read_text))
        told.answers[:] = [tuple(one) for one in found["answers"]]
        told.failures[:] = [tuple(one) for one in found["failures"]]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def main(address: str, file: Path) -> None:
    """The process."""
    seen = asyncio.run(_crowd(address))
    file.write_text(json.dumps({"answers": seen.answers, "failures": seen.failures}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
