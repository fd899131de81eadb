"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing for what takes less than a second."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

QUIET_S = 1.0  # what is faster needs no bar
LINE_S = 10.0  # between two plain lines


class Bar:
    """A context manager; `advance` may be called from any thread."""

    def __init__(
        self,
        what: str,
        total: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._done = what, total, 0
        self._console = console or Console(file=sys.stderr)
        self._lock = threading.Lock()
        self._clock = clock
        self._start = self._said = clock()
        self._bar: Progress | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self._done += count
            now = self._clock()
            if now - self._start < QUIET_S:
                return
            if self._console.is_terminal:
                self._draw()
            elif now - self._said >= LINE_S:
                self._said = now
                self._console.print(f"{self._what}: {decimal(self._done)} of {decimal(self._total)}", highlight=False)

    def _draw(self) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=self._done)
