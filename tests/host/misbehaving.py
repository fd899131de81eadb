"""Run as the Python of workers: the real worker, which does what a file beside the release's folder says.

`FOLDER.how` holds `WHERE HOW`: in `load`, `evaluate` or `probe`, it ends by a signal (`crash`), never answers (`hang`),
takes memory until it is refused some (`memory`), takes its host with it (`host`), or loses 10 kB in each inference
(`leak`, of `probe`). `serve leak`: it loses 4 MB in each request of an application, once it has loaded.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

del sys.path[0]  # this folder's modules are not a worker's

from interlock_agent.host.worker import __main__ as worker  # noqa: E402
from interlock_agent.host.worker import inference  # noqa: E402

TAKEN = 16 * 2**20
LOST: list[bytes | bytearray] = []


def leak(folder: str) -> None:
    """From now on, in each request."""
    file, infer = Path(folder + ".how"), inference.infer
    if file.exists() and file.read_text().split() == ["serve", "leak"]:

        def leaking(*arguments: Any, **named: Any) -> Any:
            LOST.append(bytearray(b"x" * (4 << 20)))
            return infer(*arguments, **named)

        inference.infer = leaking


def misbehave(folder: str, where: str, runs: int = 0) -> None:
    """At this point, if it is meant."""
    file = Path(folder + ".how")
    if not file.exists() or file.read_text().split()[0] != where:
        return
    how = file.read_text().split()[1]
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while how == "hang":
        time.sleep(60)
    if how == "host":
        os.kill(os.getppid(), signal.SIGKILL)
    if how == "leak":
        LOST.extend(b"x" * (10_000 + number % 7) for number in range(runs))
    taken = []
    while how == "memory":
        taken.append(bytearray(TAKEN))


class Misbehaving(worker.Worker):
    """Otherwise as the real one."""

    def __init__(self, order: dict[str, Any], hold: Callable[[], None] = lambda: None) -> None:
        self._where = str(order["folder"])
        super().__init__(order, hold)
        leak(self._where)
        misbehave(self._where, "load")

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Where it is asked."""
        what = next(iter(question))
        misbehave(self._where, what, question[what].get("runs", 0))
        return super().answer(question)


if __name__ == "__main__":
    worker.Worker = Misbehaving  # type: ignore[misc]
    sys.argv = [sys.argv[0], *sys.argv[3:]]  # -m interlock_agent.host.worker CONTROL PARENT
    worker.main()
