"""Raw paired blocks as compressed vectors: one `.npz` a load.

Arrays of a cell: `NAME/candidate_wall`, `NAME/candidate_work`, `NAME/incumbent_wall`, `NAME/incumbent_work` (uint32 of
shape [pairs, runs of a block], in units of 100 ns) and `NAME/seconds` (float32 [pairs]: how long the pair took).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

UNIT_NS = 100
SIDES = ("candidate_wall", "candidate_work", "incumbent_wall", "incumbent_work")
COMMITTED = Path(__file__).parents[2] / "traces"  # a slice of a recording: `make test` judges on it
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Pairs:
    """A cell's recording. `raw[side]`: [pairs, runs], in nanoseconds."""

    raw: Mapping[str, Any]
    seconds: list[float]
    work: list[float]  # ratios of the blocks' times
    wall: list[float]

    def __len__(self) -> int:
        return len(self.seconds)


def add(arrays: Arrays, cell: str, blocks: Mapping[str, Sequence[int]], seconds: float) -> None:
    """One more pair: samples in nanoseconds."""
    for side in SIDES:
        arrays.setdefault(f"{cell}/{side}", []).append([round(ns / UNIT_NS) for ns in blocks[side]])
    arrays.setdefault(f"{cell}/seconds", []).append(seconds)


def write(path: Path, arrays: Arrays) -> None:
    """Durable enough for a measurement: written beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    made: Arrays = {
        name: np.asarray(rows, dtype=np.float32 if name.endswith("/seconds") else np.uint32)
        for name, rows in arrays.items()
    }
    with beside.open("wb") as file:
        np.savez_compressed(file, **made)
    beside.rename(path)


def _squared(parts: Sequence[Any]) -> Any:
    """Parts one after the other; a block's length may differ between two starts: the shorter holds."""
    width = min(part.shape[1] for part in parts)
    return np.concatenate([part[:, :width] for part in parts])


def read(paths: Sequence[Path]) -> dict[str, Pairs]:
    """The cells of one load, from its parts in order."""
    parts = [dict(np.load(path)) for path in paths]
    names = sorted({name.partition("/")[0] for part in parts for name in part})
    found = {}
    for cell in names:
        raw = {
            side: _squared([part[f"{cell}/{side}"] for part in parts if f"{cell}/{side}" in part]).astype(np.int64)
            * UNIT_NS
            for side in SIDES
        }
        means = {side: raw[side].mean(axis=1) for side in SIDES}
        seconds = np.concatenate([part[f"{cell}/seconds"] for part in parts if f"{cell}/seconds" in part])
        found[cell] = Pairs(
            raw=raw,
            seconds=[float(value) for value in seconds],
            work=(means["candidate_work"] / np.maximum(means["incumbent_work"], 1)).tolist(),
            wall=(means["candidate_wall"] / np.maximum(means["incumbent_wall"], 1)).tolist(),
        )
    return found


def cut(paths: Sequence[Path], pairs: int) -> Arrays:
    """The first pairs of every cell of a recording, as `write` takes them."""
    found: Arrays = {}
    for cell, recorded in read(paths).items():
        found |= {f"{cell}/{side}": recorded.raw[side][:pairs] // UNIT_NS for side in SIDES}
        found[f"{cell}/seconds"] = recorded.seconds[:pairs]
    return found
