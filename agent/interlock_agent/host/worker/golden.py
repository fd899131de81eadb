"""Measuring a release on its golden data: single runs for latency, the whole set for rightness.

Rules of the file:
- The data is an `.npz` without pickled objects, item axis first; it is read when it is first needed.
- A probe feeds one item a run. An evaluation feeds `batch` at once where the model's first axis is dynamic.
- Work is the CPU time of the whole process: thread time alone is blind to a pool.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from interlock_agent.host.worker.errors import LoadError
from interlock_agent.host.worker.folder import Folder
from interlock_agent.host.worker.inference import Backend


def memory_bytes() -> int:
    """The peak of this process's resident memory (VmHWM)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class Golden:
    """The golden data of a folder. Raises LoadError (`no_golden`, `corrupt`)."""

    def __init__(self, folder: Folder, backend: Backend) -> None:
        described = folder.seal.get("golden")
        if not described:
            raise LoadError("no_golden", "the release has no golden data")
        self._described, self._backend = described, backend
        try:
            with np.load(folder.path(described["file"]), allow_pickle=False) as arrays:
                self._inputs = {name: arrays[key] for name, key in described["inputs"].items()}
                self._expected = {name: arrays[key] for name, key in described.get("expected", {}).items()}
                self._labels = arrays[described["labels"]] if described.get("labels") else None
        except (OSError, ValueError, KeyError) as error:
            raise LoadError("corrupt", f"golden data: {error}") from None
        lengths = {len(array) for array in (*self._inputs.values(), *self._expected.values())}
        if self._labels is not None:
            lengths.add(len(self._labels))
        if len(lengths) != 1 or 0 in lengths or not self._inputs:
            raise LoadError("corrupt", f"golden data: arrays have {sorted(lengths)} items")
        (self.items,) = lengths
        self._outputs = [entry["name"] for entry in backend.outputs]

    def _feed(self, first: int, count: int) -> dict[str, Any]:
        return {name: array[first : first + count] for name, array in self._inputs.items()}

    def probe(self, first: int, runs: int) -> dict[str, Any]:
        """`messages.Samples`."""
        wall, work = [], []
        for number in range(runs):
            feed = self._feed((first + number) % self.items, 1)
            work_before, before = time.process_time_ns(), time.perf_counter_ns()
            self._backend.run(self._outputs, feed)
            after, work_after = time.perf_counter_ns(), time.process_time_ns()
            wall.append(after - before)
            work.append(work_after - work_before)
        return {"wall_ns": wall, "work_ns": work, "memory_bytes": memory_bytes()}

    def evaluate(self) -> dict[str, Any]:
        """`messages.Evaluation`."""
        began = time.perf_counter()
        dynamic = all(entry["shape"][:1] == [-1] for entry in self._backend.inputs)
        batch = max(1, int(self._described.get("batch") or 1)) if dynamic else 1
        figures = {name: _Figures(name, name in self._expected) for name in self._outputs}
        label_output = self._described.get("label_output")
        hits: list[str] = []
        rtol, atol = float(self._described.get("rtol", 1e-3)), float(self._described.get("atol", 1e-4))
        for first in range(0, self.items, batch):
            answers = self._backend.run(self._outputs, self._feed(first, batch))
            for name, answer in zip(self._outputs, answers):  # noqa: B905 - one length
                expected = self._expected[name][first : first + batch] if name in self._expected else None
                figures[name].take(answer, expected, rtol, atol)
                if name == label_output and self._labels is not None:
                    chosen = np.asarray(answer).argmax(axis=-1).reshape(-1)
                    right = chosen == self._labels[first : first + batch].reshape(-1)
                    hits.append("".join("1" if hit else "0" for hit in right))
        return {
            "items": self.items,
            "outputs": [figures[name].document() for name in self._outputs],
            "hits": "".join(hits),
            "seconds": time.perf_counter() - began,
            "memory_bytes": memory_bytes(),
        }


class _Figures:
    """How far one output is from what was expected."""

    def __init__(self, name: str, compared: bool) -> None:
        self._name, self._compared = name, compared
        self._max_abs = self._max_rel = 0.0
        self._outside = self._non_finite = 0

    def take(self, answer: Any, expected: Any, rtol: float, atol: float) -> None:
        """One batch. A value that is not finite counts as outside, unless the same was expected."""
        array = np.asarray(answer)
        if array.dtype.kind == "f":
            self._non_finite += int(array.size - np.isfinite(array).sum())
        if expected is None:
            return
        if array.shape != expected.shape:
            self._outside += max(int(array.size), int(expected.size))
            return
        if array.dtype.kind not in "fiub":
            self._outside += int((array.astype(str) != expected.astype(str)).sum())
            return
        got, want = array.astype(np.float64), expected.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = np.abs(got - want)
            near = np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
            relative = np.where(want != 0, gap / np.abs(want), 0.0)
        finite = np.isfinite(gap)
        if finite.any():
            self._max_abs = max(self._max_abs, float(gap[finite].max()))
            relative = relative[finite & np.isfinite(relative)]
            self._max_rel = max(self._max_rel, float(relative.max()) if relative.size else 0.0)
        self._outside += int((~near).sum())

    def document(self) -> dict[str, Any]:
        """As in `messages.Evaluation`."""
        return {
            "name": self._name,
            "compared": self._compared,
            "max_abs": self._max_abs,
            "max_rel": self._max_rel,
            "outside": self._outside,
            "non_finite": self._non_finite,
        }
