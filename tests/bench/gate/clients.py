"""Applications of a model that serves: a few clients that ask, wait for the answer, pause, and ask again.

`python -m tests.bench.gate.clients ADDRESS`, in a process of its own, so that no other work is in what it measures.
It asks until its standard input ends, then prints `[[asked, ms], …]`; `asked` by the monotonic clock of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator

from tests.host.clients import Connection

CLIENTS = 4
PAUSE_S = (0.02, 0.06)  # so that the machine is at work and not saturated

Answer = tuple[float, float]  # asked (monotonic seconds), took (ms)


class Clients:
    """As they are seen by whoever started them. `answers`: there when they have ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.answers: list[Answer] = []

    async def end(self) -> None:
        """They stop, and tell."""
        told, _ = await self._process.communicate(b"")  # and its standard input ends
        self.answers = [(float(asked), float(ms)) for asked, ms in json.loads(told)]

    def between(self, began: float, ended: float) -> Iterator[float]:
        """Milliseconds of what was asked in that time."""
        return (ms for asked, ms in self.answers if began <= asked < ended)


@contextlib.asynccontextmanager
async def clients(address: str) -> AsyncIterator[Clients]:
    """Asking, until the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, address, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    started = Clients(process)
    try:
        yield started
        await started.end()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _client(address: str, answers: list[Answer]) -> None:
    dice = random.Random()  # never the same: else all rounds have the same queues at the same second
    async with Connection(address) as connection:
        while True:
            await asyncio.sleep(dice.uniform(*PAUSE_S))
            asked = time.monotonic()
            reply = await connection.infer([1.0, 2.0, 3.0, 4.0])
            answers.append((asked, (time.monotonic() - asked) * 1000))
            if reply.status != 200:
                raise AssertionError(f"status {reply.status}: {reply.body[:200]!r}")


async def _until_told(address: str) -> list[Answer]:
    answers: list[Answer] = []
    tasks = [asyncio.create_task(_client(address, answers)) for _ in range(CLIENTS)]
    told = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done, _ = await asyncio.wait([told, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # a client ends by its failure alone
    for task in tasks:
        task.cancel()
    return answers


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_until_told(sys.argv[1]))))
