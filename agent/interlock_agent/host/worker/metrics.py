"""What answers are worth against labels: one row an item, so that two releases can be compared on the same items.

Rules of the file:
- A metric turns a batch of answers and labels into rows of plain numbers. What rows of a kind add up to is the
  agent's business (core/gate/metrics.py), which draws samples of items from them.
- A plug-in is Python that the device's owner installed and allowed; a bundle only names it.

Kinds of rows: `hits` (one character an item, `1` is right), `mean` (a number), `root_mean` (its square), `ratio`
([errors, of how many]), `f1` ([label, answer]), `map` ([[class, truths, [score…], hits]…]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

GROUP = "interlock.metrics"  # of entry points: name -> a callable (answers, labels) -> one number an item
IOU_MIN = 0.5
ITEM_DETECTIONS_MAX = 100  # the surest of an item count
DETECTIONS_MAX = 50_000  # of all items together: the agent goes through them some hundred times
DIGITS = 9


class MetricError(Exception):
    """It cannot be said. `code`: `metric_not_allowed`, `metric_missing`, `metric_failed`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Options:
    """`top_k`: of the metric `topk`; `detections`: the surest of an item that count."""

    top_k: int
    detections: int


def _numbers(values: Iterable[Any]) -> list[float]:
    found = [float(f"{float(value):.{DIGITS}g}") for value in values]
    if not np.isfinite(found).all():
        raise ValueError("a figure is not finite")
    return found


def classes(answer: Any, count: int) -> Any:
    """The class of each item: a whole number of its own, else where the last axis is largest."""
    array = np.asarray(answer)
    if array.dtype.kind in "iu" and array.size == count:
        return array.reshape(-1)
    return array.reshape(count, -1).argmax(axis=-1)


def _characters(right: Any) -> str:
    return "".join("1" if hit else "0" for hit in right)


def top1(answer: Any, labels: Any, options: Options) -> str:
    """The class is the label."""
    del options
    return _characters(classes(answer, len(labels)) == labels.reshape(-1))


def topk(answer: Any, labels: Any, options: Options) -> str:
    """The label is among the `top_k` largest."""
    scores = np.asarray(answer).astype(np.float64).reshape(len(labels), -1)
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : options.top_k]
    return _characters((chosen == labels.reshape(-1, 1)).any(axis=1))


def f1(answer: Any, labels: Any, options: Options) -> list[list[int]]:
    """Label and class of each item."""
    del options
    chosen = classes(answer, len(labels))
    return [[int(label), int(mine)] for label, mine in zip(labels.reshape(-1), chosen)]  # noqa: B905 - Python 3.10


def _gaps(answer: Any, labels: Any) -> Any:
    count = len(labels)
    got, want = (np.asarray(array).astype(np.float64).reshape(count, -1) for array in (answer, labels))
    if got.shape != want.shape:
        raise ValueError(f"an answer has {got.shape[1]} numbers an item, its label {want.shape[1]}")
    return np.abs(got - want)


def mae(answer: Any, labels: Any, options: Options) -> list[float]:
    """Mean absolute error of each item."""
    del options
    return _numbers(_gaps(answer, labels).mean(axis=1))


def rmse(answer: Any, labels: Any, options: Options) -> list[float]:
    """Mean square of each item's error."""
    del options
    return _numbers((_gaps(answer, labels) ** 2).mean(axis=1))


def words(item: Any) -> list[Any]:
    """A sentence's words; of numbers, those that are not negative: each is a word, and the rest fills up."""
    array = np.asarray(item)
    if array.dtype.kind in "iu":
        return [number for number in array.reshape(-1).tolist() if number >= 0]
    texts = (text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in array.reshape(-1))
    return " ".join(texts).split()


def edits(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Words to put in, leave out or replace to make one of the other (Levenshtein, 1966)."""
    row = list(range(len(second) + 1))
    for number, mine in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for at, other in enumerate(second, 1):
            diagonal, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, diagonal + (mine != other))
    return row[-1]


def wer(answer: Any, labels: Any, options: Options) -> list[list[int]]:
    """Wrong words of each item, and how many there should be."""
    del options
    answers = np.asarray(answer).reshape(len(labels), -1)
    pairs = [(words(label), words(mine)) for label, mine in zip(labels, answers)]  # noqa: B905 - Python 3.10
    return [[edits(label, mine), len(label)] for label, mine in pairs]


def _overlaps(boxes: Any, truths: Any) -> Any:
    """Intersection over union of each box with each truth; corners x1, y1, x2, y2."""
    low = np.maximum(boxes[:, None, :2], truths[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truths[None, :, 2:])
    both = np.clip(high - low, 0.0, None).prod(axis=-1)
    areas = [np.clip(one[:, 2:4] - one[:, :2], 0.0, None).prod(axis=-1) for one in (boxes, truths)]
    union = areas[0][:, None] + areas[1][None, :] - both
    return np.where(union > 0, both / np.where(union > 0, union, 1.0), 0.0)


def _matched(boxes: Any, truths: Any) -> str:
    """Boxes in order, the surest first: each takes the free truth it overlaps most, from IOU_MIN on."""
    overlaps, hits = _overlaps(boxes, truths), ""
    for row in overlaps:
        best = int(row.argmax()) if row.size else -1
        hit = best >= 0 and row[best] >= IOU_MIN
        if hit:
            overlaps[:, best] = -1.0
        hits += "1" if hit else "0"
    return hits


def detections(answer: Any, labels: Any, options: Options) -> list[list[Any]]:
    """Of each item and class: truths, and the boxes found with their scores and whether they hit.

    An answer is [items, boxes, 6]: x1, y1, x2, y2, score, class; a label [items, boxes, 5]: class, x1, y1, x2, y2.
    A row whose class is negative, or a box whose score is not above 0, fills up."""
    array = np.asarray(answer).astype(np.float64)
    array = array.reshape(len(labels), -1, 6)
    items = []
    for boxes, wanted in zip(array, labels.astype(np.float64)):  # noqa: B905 - Python 3.10
        truths = wanted[wanted[:, 0] >= 0]
        real = boxes[(boxes[:, 5] >= 0) & (boxes[:, 4] > 0)]
        found = real[np.argsort(-real[:, 4], kind="stable")][: options.detections]
        row = []
        for number in sorted({*truths[:, 0].tolist(), *found[:, 5].tolist()}):
            mine, theirs = found[found[:, 5] == number], truths[truths[:, 0] == number]
            hits = _matched(mine[:, :4], theirs[:, 1:5])
            row.append([int(number), len(theirs), _numbers(mine[:, 4]), hits])
        items.append(row)
    return items


Rows = Callable[[Any, Any, Options], Any]
BUILT_IN: dict[str, tuple[str, str, Rows]] = {  # name -> better, kind, rows
    "top1": ("higher", "hits", top1),
    "topk": ("higher", "hits", topk),
    "f1": ("higher", "f1", f1),
    "map": ("higher", "map", detections),
    "mae": ("lower", "mean", mae),
    "rmse": ("lower", "root_mean", rmse),
    "wer": ("lower", "ratio", wer),
}


def plug_in(name: str, allowed: Sequence[str]) -> tuple[str, str, Rows]:
    """The owner's metric of that name; its attribute `better` is `higher` (the default) or `lower`. Raises
    MetricError."""
    if name not in allowed:
        raise MetricError("metric_not_allowed", f"{name} is not among the owner's gate.metrics")
    try:
        entry = next(iter(metadata.entry_points(group=GROUP, name=name)), None)
        score = None if entry is None else entry.load()
    except Exception as failure:  # noqa: BLE001 - whatever it is, the plug-in is not usable
        raise MetricError("metric_missing", f"{name}: {type(failure).__name__}: {failure}"[:500]) from None
    if score is None:
        raise MetricError("metric_missing", f"no entry point {name} in the group {GROUP} of the worker's Python")

    def rows(answer: Any, labels: Any, options: Options) -> list[float]:
        del options
        found = _numbers(score(answer, labels))
        if len(found) != len(labels):
            raise ValueError(f"{len(found)} numbers for {len(labels)} items")
        return found

    better = str(getattr(score, "better", "higher"))
    if better not in ("higher", "lower"):
        raise MetricError("metric_missing", f"{name}: better is {better!r}, not higher or lower")
    return better, "mean", rows


class Score:
    """A metric over the whole golden set. `described`: the seal's entry."""

    def __init__(self, described: dict[str, Any], items: int, allowed: Sequence[str]) -> None:
        self._name = str(described.get("metric") or "top1")
        kept = min(ITEM_DETECTIONS_MAX, max(1, DETECTIONS_MAX // items))
        self._options = Options(int(described.get("top_k") or 5), kept)
        self._parts: list[Any] = []
        self._problem: MetricError | None = None
        try:
            self._better, self._kind, self._rows = BUILT_IN.get(self._name) or plug_in(self._name, allowed)
        except MetricError as problem:
            self._problem = problem

    def take(self, answer: Any, labels: Any) -> None:
        """One batch."""
        if self._problem is None:
            try:
                self._parts.append(self._rows(answer, labels, self._options))
            except Exception as failure:  # noqa: BLE001 - a plug-in's, or answers of another form than the labels
                text = f"{self._name}: {type(failure).__name__}: {failure}"[:500]
                self._problem = MetricError("metric_failed", text)

    def document(self) -> dict[str, Any]:
        """As in `messages.Evaluation`."""
        if self._problem is not None:
            return {"metric": self._name, "problem": self._problem.code, "message": self._problem.message}
        rows = "".join(self._parts) if self._kind == "hits" else [row for part in self._parts for row in part]
        return {"metric": self._name, "better": self._better, "kind": self._kind, "rows": rows}
