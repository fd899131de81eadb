"""How far answers are from what was expected, and from themselves when they are asked again.

Rules of the file:
- Nothing is judged here: the figures go to the agent, which holds the limits.
- A value that is not finite is as far off as can be, unless the same was expected.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def as_expected(answer: Any, expected: Any) -> Any:
    """The answer with the item axis that a model without one leaves out."""
    array = np.asarray(answer)
    return array[None] if expected.shape[:1] == (1,) and array.shape == expected.shape[1:] else array


class Distance:
    """By value: how many lie outside `rtol` and `atol`, how many differ at all, and how far the farthest is off."""

    def __init__(self, rtol: float, atol: float) -> None:
        self._rtol, self._atol = rtol, atol
        self.max_abs = self.max_rel = 0.0
        self.outside = self.different = self.values = 0

    def take(self, got: Any, want: Any) -> None:
        """One batch."""
        size = max(int(got.size), int(want.size))
        self.values += size
        if got.shape != want.shape:
            self.outside += size
            self.different += size
            return
        if got.dtype.kind not in "fiub":
            unlike = int((got.astype(str) != want.astype(str)).sum())
            self.outside += unlike
            self.different += unlike
            return
        got, want = got.astype(np.float64), want.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            gap = np.abs(got - want)
            near = np.isclose(got, want, rtol=self._rtol, atol=self._atol, equal_nan=True)
            relative = np.where(want != 0, gap / np.abs(want), 0.0)
        finite = np.isfinite(gap)
        if finite.any():
            self.max_abs = max(self.max_abs, float(gap[finite].max()))
            relative = relative[finite & np.isfinite(relative)]
            self.max_rel = max(self.max_rel, float(relative.max()) if relative.size else 0.0)
        self.outside += int((~near).sum())
        self.different += int(((got != want) & ~(np.isnan(got) & np.isnan(want))).sum())


def cosines(got: Any, want: Any) -> Any:
    """Cosine of the angle between each item's values and what is expected of them; two items of zeros are alike."""
    if got.shape != want.shape or got.dtype.kind not in "fiub":
        return np.full(len(want), -1.0)
    got, want = (array.astype(np.float64).reshape(len(want), -1) for array in (got, want))
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    broken = ~(same | (np.isfinite(got) & np.isfinite(want))).all(axis=1)
    both = np.isfinite(got) & np.isfinite(want)
    got, want = np.where(both, got, 0.0), np.where(both, want, 0.0)
    # By its largest value first: squares of large or of tiny numbers leave what a double can hold.
    scales = [np.abs(array).max(axis=1, keepdims=True, initial=0.0) for array in (got, want)]
    got, want = (array / np.where(scale > 0, scale, 1.0) for array, scale in zip((got, want), scales))  # noqa: B905
    lengths = np.sqrt((got * got).sum(axis=1) * (want * want).sum(axis=1))
    alike = np.where((scales[0] == 0) & (scales[1] == 0), 1.0, 0.0).reshape(-1)
    found = np.where(lengths > 0, (got * want).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), alike)
    return np.where(broken, -1.0, np.clip(found, -1.0, 1.0))


def agreements(got: Any, want: Any, top_k: int) -> Any:
    """Whether an item's `top_k` largest of the last axis are those expected, in each of its rows. Where the expected
    ones tie, either is right."""
    if got.shape != want.shape or got.dtype.kind not in "fiub" or want.ndim < 2:
        return np.zeros(len(want), bool)
    got, want = (array.astype(np.float64) for array in (got, want))
    count = min(top_k, want.shape[-1])
    chosen = np.argsort(-got, axis=-1, kind="stable")[..., :count]
    least = np.sort(want, axis=-1)[..., -count][..., None]
    return (np.take_along_axis(want, chosen, axis=-1) >= least).reshape(len(want), -1).all(axis=1)


class Output:
    """One output over the whole golden set. `rule`: its entry of the golden data's `parity`, empty without one."""

    def __init__(self, name: str, compared: bool, rule: dict[str, Any], rtol: float, atol: float) -> None:
        if rule.get("rtol") is not None or rule.get("atol") is not None:
            rtol, atol = float(rule.get("rtol") or 0.0), float(rule.get("atol") or 0.0)
        self._name, self._compared = name, compared
        self._expected, self._again = Distance(rtol, atol), Distance(rtol, atol)
        self._top_k = int(rule.get("top_k") or 1) if rule.get("agreement_min") is not None else 0
        self._cosine, self._worst, self._items, self._agreed, self._non_finite = 1.0, -1, 0, 0, 0

    def take(self, answer: Any, expected: Any) -> None:
        """One batch, and what is expected of it (None: nothing is)."""
        array = np.asarray(answer)
        if array.dtype.kind == "f":
            self._non_finite += int(array.size - np.isfinite(array).sum())
        if expected is None or not len(expected):
            return
        array = as_expected(array, expected)
        array = array[: len(expected)] if array.shape[1:] == expected.shape[1:] else array  # fewer were kept
        self._expected.take(array, expected)
        cosines_here = cosines(array, expected)
        worst = int(cosines_here.argmin())
        if self._worst < 0 or cosines_here[worst] < self._cosine:
            self._cosine, self._worst = float(cosines_here[worst]), self._items + worst
        if self._top_k:
            self._agreed += int(agreements(array, expected, self._top_k).sum())
        self._items += len(expected)

    def take_again(self, first: Any, second: Any) -> None:
        """Two answers to the same batch."""
        self._again.take(np.asarray(second), np.asarray(first))

    def document(self) -> dict[str, Any]:
        """As in `messages.Evaluation`."""
        again = self._again
        return {
            "name": self._name,
            "compared": self._compared,
            "max_abs": self._expected.max_abs,
            "max_rel": self._expected.max_rel,
            "outside": self._expected.outside,
            "non_finite": self._non_finite,
            "cosine": self._cosine if self._worst >= 0 else None,
            "cosine_item": self._worst,
            "agreement": self._agreed / self._items if self._top_k and self._items else None,
            "again": {
                "values": again.values,
                "different": again.different,
                "outside": again.outside,
                "max_abs": again.max_abs,
            },
        }
