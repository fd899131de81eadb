"""A real Triton Inference Server serves what is live: loaded before the former one goes, taken back, told again."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.rig import UNIT, running
from tests.rig.triton import TritonServer

pytestmark = [pytest.mark.e2e]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One for the whole file."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    one = TritonServer(tmp_path_factory.mktemp("triton"), port)
    one.start()
    yield one
    one.stop()


class Traffic:
    """A thread that never stops asking; counts what it was answered."""

    def __init__(self, server: TritonServer, model: str) -> None:
        self._server, self._model, self._stop = server, model, threading.Event()
        self.seen: Counter[tuple[int, Any]] = Counter()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.seen[self._server.infer(self._model)] += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


async def test_switch_confirm_and_revert_under_traffic(server: TritonServer, short_path: Path) -> None:
    async with running(short_path) as rig:
        await rig.configure(**server.settings())
        await rig.confirmed(1)
        assert await asyncio.to_thread(server.infer, UNIT) == (200, 1.0)
        with Traffic(server, UNIT) as traffic:
            await rig.promote(2)
            assert await asyncio.to_thread(server.infer, UNIT) == (200, 2.0), "the switch is answered when it serves"
            assert (await asyncio.to_thread(server.ask, f"/v2/models/{UNIT}/versions/1/ready"))[0] == 400, "and alone"
        assert {status for status, _ in traffic.seen} == {200}, traffic.seen
        assert set(traffic.seen) == {(200, 1.0), (200, 2.0)}
