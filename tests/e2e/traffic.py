"""Live requests from a thread of its own, all the time: busy, idle and new connections. Every answer is checked against
the release that says it gave it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.host import clients
from tests.rig.fleet import until


@dataclass
class Watched(clients.Load):
    """`scales`: what each version multiplies by. Failures keep their time."""

    scales: dict[str, float] = field(default_factory=dict)
    failed: list[tuple[float, float, str]] = field(default_factory=list)  # asked, failed (monotonic), what

    async def _client(self, number: int, pause: float, keep: bool) -> None:
        turn = 0
        while not self._stop:
            asked = time.monotonic()
            try:
                async with clients.Connection(self.address) as connection:
                    while not self._stop:
                        turn += 1
                        asked = time.monotonic()
                        await self._ask(connection, [number + 1 + turn / 128, 2.0, 3.0, 4.0])
                        await asyncio.sleep(max(pause, 0.005))
                        if not keep:
                            break
            except (OSError, EOFError, TimeoutError) as failure:
                self.failed.append((asked, time.monotonic(), repr(failure)))
                await asyncio.sleep(0.01)

    async def _ask(self, connection: clients.Connection, x: list[float]) -> None:
        asked = time.monotonic()
        reply = await connection.infer(x)
        now = time.monotonic()
        if reply.status != 200:
            self.failed.append((asked, now, f"{reply.status} {reply.body[:200]!r}"))
            return
        version = version_of(reply.release)
        got = reply.json()["outputs"][0]["data"]
        want = [value * self.scales[version] for value in x]
        if any(abs(g - w) > 1e-3 * abs(w) for g, w in zip(got, want, strict=True)):
            self.failed.append((asked, now, f"{version} answered {got} for {x}"))
            return
        self.answers[version] += 1
        self.log.append((asked, now, version))


def version_of(release: str) -> str:
    """The version in the header `interlock-release`."""
    return release.replace("/", " ").rpartition(" ")[2]


class Traffic:
    """Runs until the block is left; then nothing may have failed outside the gaps that were announced."""

    def __init__(self, address: str, scales: dict[str, float]) -> None:
        self.load = Watched(address, busy=2, idle=2, fresh=1, scales=scales)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._gaps: list[tuple[float, float]] = []

    async def _run(self) -> None:
        async with self.load:
            await asyncio.to_thread(self._stop.wait)

    def answered(self, count: int = 10) -> None:
        """Wait for so many more good answers."""
        goal = self.load.answers.total() + count
        until(lambda: self.load.answers.total() >= goal, f"{count} more answers")

    @contextlib.contextmanager
    def gap(self, what: str) -> Iterator[None]:
        """Requests that were under way in here, until the first good answer after it, are counted apart."""
        began = time.monotonic()
        yield
        ended = time.monotonic()
        after = until(lambda: min((a for q, a, _ in list(self.load.log[-500:]) if q >= ended), default=0), "an answer")
        self._gaps.append((began, after))
        inside = [one for one in self.load.failed if one[1] >= began]
        last = max((a for _, a, _ in list(self.load.log) if a <= began), default=began)
        first = min(a for _, a, _ in list(self.load.log) if a > began)
        print(f"gap, {what}: {(first - last) * 1000:.0f} ms without an answer, {len(inside)} requests failed in it")

    def since(self, moment: float) -> set[str]:
        """Versions that answered what was asked after a moment."""
        return {version for asked, _, version in list(self.load.log) if asked >= moment}

    def failures(self) -> list[str]:
        """What failed outside the gaps."""
        return [
            what
            for asked, failed, what in list(self.load.failed)
            if not any(asked <= end and failed >= begin for begin, end in self._gaps)
        ]

    def __enter__(self) -> Traffic:
        self._thread.start()
        self.answered(1)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join(90)
        if kind is None:
            assert self.failures() == [], f"{len(self.failures())} requests failed"
