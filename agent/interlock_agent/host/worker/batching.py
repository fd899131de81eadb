"""Several requests in one run of the model (dynamic batching), where its owner wants that.

Rules of the file:
- One run at a time. What comes while one goes on is put together and run next; beyond that, the first of a batch waits
  `delay_s` at most for others, and not at all once the batch is full.
- Only requests that fit are put together: the same outputs, dtypes and shapes behind the first axis, which has to be
  dynamic in every input and output.
- Nobody suffers for another: a batch that fails is run again, one request after the other.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from interlock_agent.host.worker.inference import Backend

ANSWER_S = 3600.0  # for one who waits for the thread that runs the batch; a run that hangs ends with the process


class Batch:
    """Requests of one kind. The thread that began it runs it."""

    def __init__(self) -> None:
        self.feeds: list[dict[str, Any]] = []
        self.rows: list[int] = []
        self.full = threading.Event()
        self.done = threading.Event()
        self.found: list[list[Any] | Exception] = []


class Batcher:
    """A backend before another. `most` rows a run; `delay_s` is the longest that a request waits for others."""

    def __init__(self, backend: Backend, most: int, delay_s: float) -> None:
        self._backend, self._most, self._delay_s = backend, most, delay_s
        self.inputs, self.outputs = backend.inputs, backend.outputs
        self._open: dict[Any, Batch] = {}
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """As Backend's."""
        rows = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
        size = rows.pop() if len(rows) == 1 else 0
        if not 0 < size < self._most:
            return self._backend.run(names, feeds)
        kind = (tuple(names), tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in feeds.items())))
        batch, place = self._join(kind, feeds, size)
        if place:
            batch.done.wait(ANSWER_S)
        else:
            self._lead(kind, batch, names)
        found = batch.found[place]
        if isinstance(found, Exception):
            raise found
        return found

    def _join(self, kind: Any, feeds: dict[str, Any], size: int) -> tuple[Batch, int]:
        """The batch and the place in it; at place 0 one has to run it."""
        with self._lock:
            batch = self._open.get(kind)
            if batch is not None and sum(batch.rows) + size > self._most:
                self._close(kind, batch)
                batch = None
            if batch is None:
                batch = self._open[kind] = Batch()
            batch.feeds.append(feeds)
            batch.rows.append(size)
            place = len(batch.rows) - 1
            if sum(batch.rows) == self._most:
                self._close(kind, batch)
            return batch, place

    def _close(self, kind: Any, batch: Batch) -> None:
        """Nobody joins it any more."""
        if self._open.get(kind) is batch:
            del self._open[kind]
        batch.full.set()

    def _lead(self, kind: Any, batch: Batch, names: list[str]) -> None:
        due = time.monotonic() + self._delay_s
        with self._turn:
            batch.full.wait(max(0.0, due - time.monotonic()))
            with self._lock:
                self._close(kind, batch)
            try:
                batch.found = self._run(batch, names)
            finally:
                batch.done.set()

    def _run(self, batch: Batch, names: list[str]) -> list[list[Any] | Exception]:
        if len(batch.feeds) > 1:
            try:
                return _split(self._backend.run(names, _joined(batch.feeds)), batch.rows)
            except Exception:  # noqa: BLE001, S110 - whose fault it is shows when each is run alone
                pass
        return [self._alone(names, feeds) for feeds in batch.feeds]

    def _alone(self, names: list[str], feeds: dict[str, Any]) -> list[Any] | Exception:
        try:
            return self._backend.run(names, feeds)
        except Exception as failure:  # noqa: BLE001 - raised again in the thread that asked
            return failure


def can(backend: Backend) -> bool:
    """Whether the first axis is dynamic everywhere."""
    return all(entry["shape"][:1] == [-1] for entry in (*backend.inputs, *backend.outputs))


def _joined(feeds: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}


def _split(arrays: list[Any], rows: list[int]) -> list[list[Any] | Exception]:
    """Each request's own rows. Raises ValueError for outputs that are not one row an item."""
    if any(array.shape[:1] != (sum(rows),) for array in arrays):
        raise ValueError("an output has not one row an item")
    ends = np.cumsum(rows).tolist()
    return [
        [array[end - size : end] for array in arrays]
        for size, end in zip(rows, ends)  # noqa: B905 - strict is 3.10's, and both have one length
    ]
