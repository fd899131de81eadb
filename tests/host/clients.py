"""Clients of a model: asyncio streams, so that dozens fit into one test."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def release(self) -> str:
        return self.headers.get("interlock-release", "")

    def json(self) -> Any:
        return json.loads(self.body)


def inference(x: list[float], name: str = "x") -> bytes:
    """The JSON body for one item."""
    tensor = {"name": name, "datatype": "FP32", "shape": [1, len(x)], "data": x}
    return json.dumps({"inputs": [tensor]}).encode()


def request(path: str, body: bytes = b"", method: str = "POST", **headers: str) -> bytes:
    """The bytes of a request."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


INFER = "/v2/models/filetype/infer"


class Connection:
    """One keep-alive connection."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Connection:
        if self._address.startswith("unix:"):
            self.reader, self.writer = await asyncio.open_unix_connection(self._address[5:])
        else:
            host, _, port = self._address.rpartition(":")
            self.reader, self.writer = await asyncio.open_connection(host, int(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    async def ask(self, raw: bytes) -> Reply:
        self.writer.write(raw)
        return await self.reply()

    async def reply(self) -> Reply:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)
        first, *lines = head.decode().split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(first.split()[1]), headers, body)

    async def infer(self, x: list[float]) -> Reply:
        return await self.ask(request(INFER, inference(x)))


async def infer(address: str, x: list[float] | None = None) -> Reply:
    """One request on a connection of its own."""
    async with Connection(address) as connection:
        return await connection.infer(x or [1.0, 2.0, 3.0, 4.0])


async def get(address: str, path: str) -> Reply:
    async with Connection(address) as connection:
        return await connection.ask(request(path, method="GET"))


@dataclass
class Load:
    """Mixed clients: busy, mostly idle, new connections for each request. The model multiplies by its generation."""

    address: str
    busy: int = 4
    idle: int = 4
    fresh: int = 2
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    log: list[tuple[float, float, str]] = field(default_factory=list)  # asked, answered (monotonic), release
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stop: bool = False

    async def __aenter__(self) -> Load:
        kinds = [(0.0, True)] * self.busy + [(0.1, True)] * self.idle + [(0.01, False)] * self.fresh
        self._tasks = [asyncio.create_task(self._client(number, *kind)) for number, kind in enumerate(kinds)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _client(self, number: int, pause: float, keep: bool) -> None:
        turn = 0
        while not self._stop:
            try:
                async with Connection(self.address) as connection:
                    while not self._stop:
                        turn += 1
                        await self._ask(connection, [number + turn / 128, 2.0, 3.0, 4.0])
                        await asyncio.sleep(pause)
                        if not keep:
                            break
            except (OSError, EOFError, TimeoutError) as failure:
                self.failures.append(repr(failure))
                await asyncio.sleep(0.01)

    async def _ask(self, connection: Connection, x: list[float]) -> None:
        asked = time.monotonic()
        reply = await connection.infer(x)
        if reply.status != 200:
            self.failures.append(f"{reply.status} {reply.body[:200]!r}")
            return
        factor = float(reply.headers["interlock-generation"])
        got = reply.json()["outputs"][0]["data"]
        if any(abs(g - v * factor) > 1e-3 * abs(v * factor) for g, v in zip(got, x, strict=True)):
            self.failures.append(f"{reply.release} answered {got} for {x}")
        self.answers[reply.release] += 1
        self.log.append((asked, time.monotonic(), reply.release))

    async def served(self, count: int = 20) -> None:
        """Wait until so many more answers have come."""
        from tests.host.rig import until

        goal = self.answers.total() + count
        await until(lambda: self.answers.total() >= goal or self.failures, f"answers: {self.answers}")

    def answered_after(self, moment: float, release: str) -> int:
        """Answers of a release to requests that were sent after a moment."""
        return sum(1 for asked, _, who in self.log if asked > moment and who == release)
