"""Measuring a release on its golden data: single runs for latency, the whole set for rightness.

Rules of the file:
- The data is an `.npz` without pickled objects, item axis first; it is read when it is first needed.
- A probe feeds one item a run. An evaluation feeds `batch` at once where the model's first axis is dynamic.
- The first items are run twice: a model that answers itself differently is told so.
- Work is the CPU time of the whole process: thread time alone is blind to a pool. Of a model on another device that
  says nothing: then the wall is both scales.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from interlock_agent.host.worker import metrics, parity, together
from interlock_agent.host.worker.errors import LoadError
from interlock_agent.host.worker.folder import Folder
from interlock_agent.host.worker.inference import Backend

ANSWERS = "answers.npz"  # of the reference, beside the seal
ANSWERS_MAX_BYTES = 8 * 1024 * 1024  # of one output, twice while it is written; the first items must do beyond that
STATUS = "/proc/self/status"  # proc(5)
REPEATED_ITEMS = 32  # at least so many are run twice, where there are


def memory_bytes() -> int:
    """The peak of this process's resident memory (VmHWM)."""
    return _status_bytes("VmHWM:")


def resident_bytes(status: str = STATUS) -> int:
    """The memory that this process has taken and holds now, resident or swapped out. Not a file's pages: the kernel
    takes them when others need room and reads them again, which would look like growth."""
    return _status_bytes("VmRSS:", status) - _status_bytes("RssFile:", status) + _status_bytes("VmSwap:", status)


def _status_bytes(field: str, status: str = STATUS) -> int:
    with open(status, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


class Golden:
    """The golden data of a folder. `allowed`: the owner's metrics. Raises LoadError (`no_golden`, `corrupt`)."""

    on_cpu = True

    def __init__(self, folder: Folder, backend: Backend, allowed: Sequence[str] = ()) -> None:
        self.crowded = backend  # as it serves several at a time: it may put them together
        described = folder.seal.get("golden")
        if not described:
            raise LoadError("no_golden", "the release has no golden data")
        self._folder, self._described, self._backend, self._allowed = folder, described, backend, allowed
        try:
            with np.load(folder.path(described["file"]), allow_pickle=False) as arrays:
                self._inputs = {name: arrays[key] for name, key in described["inputs"].items()}
                self._expected = {name: arrays[key] for name, key in described.get("expected", {}).items()}
                self._labels = arrays[described["labels"]] if described.get("labels") else None
                self._slices = _slices(described, arrays)
        except (OSError, ValueError, KeyError) as error:
            raise LoadError("corrupt", f"golden data: {error}") from None
        lengths = {len(array) for array in (*self._inputs.values(), *self._expected.values())}
        lengths |= {len(array) for array in (self._labels, self._slices) if array is not None}
        if len(lengths) != 1 or 0 in lengths or not self._inputs:
            raise LoadError("corrupt", f"golden data: arrays have {sorted(lengths)} items")
        (self.items,) = lengths
        self._outputs = [entry["name"] for entry in backend.outputs]
        ranks = {entry["name"]: len(entry["shape"]) for entry in backend.inputs}
        self._bare = {name for name, array in self._inputs.items() if ranks.get(name) == array.ndim - 1}

    def _feed(self, first: int, count: int) -> dict[str, Any]:
        """Items as the model takes them: one without an item axis takes the item itself, a number as an array too."""
        return {
            name: np.asarray(array[first]) if name in self._bare else array[first : first + count]
            for name, array in self._inputs.items()
        }

    def probe(self, first: int, runs: int, concurrency: int = 1) -> dict[str, Any]:
        """`messages.Samples`, without what only the host knows."""
        if concurrency > 1:
            times = together.measure(
                lambda number: self.crowded.run(self._outputs, self._feed((first + number) % self.items, 1)),
                runs,
                concurrency,
            )
            return {**times, "memory_bytes": memory_bytes(), "resident_bytes": resident_bytes()}
        wall, work = [], []
        began = time.perf_counter_ns()
        for number in range(runs):
            feed = self._feed((first + number) % self.items, 1)
            work_before, before = time.process_time_ns(), time.perf_counter_ns()
            self._backend.run(self._outputs, feed)
            after, work_after = time.perf_counter_ns(), time.process_time_ns()
            wall.append(after - before)
            work.append(work_after - work_before)
        if not self.on_cpu:
            work = wall
        return {
            "wall_ns": wall,
            "work_ns": work,
            "elapsed_ns": time.perf_counter_ns() - began,
            "memory_bytes": memory_bytes(),
            "resident_bytes": resident_bytes(),
        }

    def _reference(self) -> dict[str, Any]:
        """What the reference answered, by output. Raises LoadError."""
        try:
            with np.load(self._folder.ours(ANSWERS), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays}
        except (OSError, ValueError) as error:
            raise LoadError("corrupt", f"the reference's answers: {error}") from None

    def evaluate(self, answers: str = "", items: int = 0) -> dict[str, Any]:
        """`messages.Evaluation`; of the first `items` alone, and once, where that is not 0. Raises LoadError."""
        began = time.perf_counter()
        count = min(items, self.items) if items else self.items
        wanted = self._expected if answers != "compare" else {**self._reference(), **self._expected}
        kept_answers = Answers(name for name in self._outputs if name not in wanted and answers == "keep")
        dynamic = all(entry["shape"][:1] == [-1] for entry in self._backend.inputs)
        batch = max(1, int(self._described.get("batch") or 1)) if dynamic and not self._bare else 1
        outputs = {name: self._output(name, name in wanted) for name in self._outputs}
        label_output = self._described.get("label_output")
        score = metrics.Score(self._described, self.items, self._allowed)
        labelled = self._labels is not None and label_output in outputs and not items
        kept: list[list[Any]] = []
        for first in range(0, count, batch):
            size = min(batch, count - first)
            found = self._backend.run(self._outputs, self._feed(first, size))
            for name, answer in zip(self._outputs, found):  # noqa: B905 - one length
                expected = wanted[name][first : first + size] if name in wanted else None
                outputs[name].take(answer, expected)
                kept_answers.take(name, answer, size)
                if labelled and name == label_output and self._labels is not None:
                    score.take(answer, self._labels[first : first + size])
            if first < REPEATED_ITEMS and not items:
                kept.append(found)
        for number, found in enumerate(kept):
            again = self._backend.run(self._outputs, self._feed(number * batch, batch))
            for name, answer, second in zip(self._outputs, found, again):  # noqa: B905 - one length
                outputs[name].take_again(answer, second)
        if answers == "keep":
            kept_answers.write(self._folder)
        return {
            "items": count,
            "outputs": [outputs[name].document() for name in self._outputs],
            "repeated": min(self.items, len(kept) * batch),
            "score": score.document() if labelled else {},
            "slices": [] if self._slices is None else self._slices.tolist(),
            "seconds": time.perf_counter() - began,
            "memory_bytes": memory_bytes(),
        }

    def _output(self, name: str, compared: bool) -> parity.Output:
        described = self._described
        rule = described.get("parity", {}).get(name, {})
        rtol, atol = float(described.get("rtol", 1e-3)), float(described.get("atol", 1e-4))
        return parity.Output(name, compared, rule, rtol, atol)


class Answers:
    """Outputs as they come, batch by batch, to be compared with later. One that has no item axis is left out."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parts: dict[str, list[Any]] = {name: [] for name in names}
        self._full: set[str] = set()

    def take(self, name: str, answer: Any, items: int) -> None:
        """One batch of so many items."""
        if name not in self._parts or name in self._full:
            return
        array = np.asarray(answer)
        array = array[None] if items == 1 and array.shape[:1] != (1,) else array
        if array.shape[:1] != (items,) or array.dtype.kind not in "fiub":
            del self._parts[name]
            return
        self._parts[name].append(array)
        if sum(part.nbytes for part in self._parts[name]) > ANSWERS_MAX_BYTES:
            self._full.add(name)

    def write(self, folder: Folder) -> None:
        """Beside the seal. Raises OSError."""
        with open(folder.ours(ANSWERS), "wb") as file:
            arrays: dict[str, Any] = {name: np.concatenate(parts) for name, parts in self._parts.items() if parts}
            np.savez(file, **arrays)


def _slices(described: dict[str, Any], arrays: Any) -> Any:
    """Each item's slice, as an index into `slice_names`. Raises ValueError."""
    if not described.get("slices"):
        return None
    names, array = list(described["slice_names"]), arrays[described["slices"]].reshape(-1)
    if array.dtype.kind in "SU":
        texts = (name.decode() if isinstance(name, bytes) else str(name) for name in array)
        array = np.array([names.index(name) for name in texts], np.int64)
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < len(names)):
        raise ValueError("a slice is none of the slices' names")
    return array
