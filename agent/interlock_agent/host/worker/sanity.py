"""Answers that are numbers and nonsense all the same: always the same one, or values outside the range they can have.

Rules of the file:
- A sample of what applications are answered: at most PER_S answers a second, and no more than SHARE of a thread's time.
- What is counted is told when the host asks; nothing is held back for it.
- An answer is constant when it is the one before, bit by bit, though the input is another.
"""

from __future__ import annotations

import threading
import zlib
from time import monotonic
from typing import Any

import numpy as np

from interlock_agent.host.worker.inference import Backend
from interlock_agent.host.worker.tensors import to_bytes

PER_S = 10.0  # answers that are looked at
SHARE = 0.002  # of the time that passes: of a worker that is busy for a fifth of it, one percent
INPUT_BYTES = 65_536  # of each input: two that differ later only are taken for the same, which accuses nobody


class Watched:
    """A backend whose answers are looked at. `sanity`: as the seal has it, by the names that applications know."""

    def __init__(self, backend: Backend, sanity: dict[str, Any]) -> None:
        self.inputs, self.outputs = backend.inputs, backend.outputs
        self._backend = backend
        self._constant = bool(sanity.get("constant"))
        self._ranges: dict[str, list[float | None]] = dict(sanity.get("ranges") or {})
        self._dtypes = {entry["name"]: entry["dtype"] for entry in backend.outputs}
        self._due = 0.0
        self._lock = threading.Lock()
        self._last: tuple[int, int] | None = None
        self._looked = self._same = 0
        self._outside = dict.fromkeys(self._ranges, 0)

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        """As the backend's."""
        arrays = self._backend.run(names, feeds)
        began = monotonic()
        if began >= self._due:
            self._due = began + 1.0 / PER_S  # before it is looked: another thread need not
            self._look(names, feeds, arrays)
            now = monotonic()
            self._due = now + max(1.0 / PER_S, (now - began) / SHARE)
        return arrays

    def counts(self) -> dict[str, Any]:
        """`messages.Looked`."""
        with self._lock:
            return {"looked": self._looked, "constant": self._same, "outside": dict(self._outside)}

    def _look(self, names: list[str], feeds: dict[str, Any], arrays: list[Any]) -> None:
        outside = [name for name, array in zip(names, arrays) if self._is_outside(name, array)]  # noqa: B905 - one length
        pair = (_digest(feeds, INPUT_BYTES), _digest(dict(zip(names, arrays)), 0)) if self._constant else None  # noqa: B905
        with self._lock:
            self._looked += 1
            for name in outside:
                self._outside[name] += 1
            if pair is not None:
                self._same += self._last is not None and self._last[0] != pair[0] and self._last[1] == pair[1]
                self._last = pair

    def _is_outside(self, name: str, array: Any) -> bool:
        if name not in self._ranges or not array.size or array.dtype.kind not in "fiub":
            return False
        if self._dtypes.get(name) == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        low, high = self._ranges[name]
        return bool((low is not None and array.min() < low) or (high is not None and array.max() > high))


def _digest(tensors: dict[str, Any], most: int) -> int:
    """Of names, shapes and content, of each `most` bytes (0: all)."""
    code = 0
    for name in sorted(tensors):
        array = tensors[name]
        data = to_bytes(array)
        code = zlib.crc32(f"{name}{array.shape}".encode(), code)
        code = zlib.crc32(memoryview(data)[:most] if most else data, code)
    return code


def watched(backend: Backend, serve: dict[str, Any]) -> Backend:
    """The backend as it is where no check asks for more; `serve` is the seal's. An older seal says nothing."""
    sanity, known = serve.get("sanity") or {}, serve.get("renamed") or {}
    if not sanity:
        return backend
    ranges = {known.get(name, name): limits for name, limits in (sanity.get("ranges") or {}).items()}
    return Watched(backend, {**sanity, "ranges": ranges})
