"""Labels and slices of golden data at build time: each metric has labels of its own form."""

from __future__ import annotations

from typing import Any

import numpy as np

from interlock_server.publisher.arrays import Header
from interlock_server.publisher.bundle_toml import Source
from interlock_shared.gates import METRICS, Golden
from interlock_shared.limits import MIB, SLICES_MAX
from interlock_shared.manifest import Tensor

LABEL_BYTES_MAX = 256 * MIB  # 33 million labels of 8 bytes
ROWS_MAX = 200_000  # items of a metric that is more than a hit: a worker's answer is one frame of 16 MiB
CLASS_METRICS = frozenset({"top1", "topk", "f1"})
BOX = 5  # class, x1, y1, x2, y2
DETECTION = 6  # x1, y1, x2, y2, score, class


def _read(source: Source, file: str, name: str) -> Any:
    with np.load(source.folder / file, allow_pickle=False) as arrays:
        if name not in arrays:
            source.refuse(("golden", "slices"), f"there is no array {name!r} in {file}")
        return arrays[name]


def check(source: Source, golden: Golden, header: Header, output: Tensor) -> None:
    """The labels are what the metric takes; a plug-in's form is its own. Raises Invalid."""
    path = ("golden", "labels")
    if golden.metric not in {"top1", "topk"} and header.shape[0] > ROWS_MAX:
        source.refuse(path, f"{header.shape[0]} items; {golden.metric} takes at most {ROWS_MAX}")
    if golden.metric not in METRICS:
        return
    if golden.metric in CLASS_METRICS:
        _classes(source, golden, header, output)
    elif golden.metric == "wer":
        words = header.dtype.kind in "SU" and len(header.shape) == 1
        if not words and (header.dtype.kind not in "iu" or len(header.shape) != 2):
            source.refuse(path, "sentences are strings in one axis, or numbers of words in two")
        if (output.dtype == "BYTES") != words:
            source.refuse(path, f"the labels are {header.dtype}, {output.name} is {output.dtype}")
    elif golden.metric == "map":
        if header.dtype.kind not in "fiu" or len(header.shape) != 3 or header.shape[-1] != BOX:
            source.refuse(path, f"boxes are [items, boxes, {BOX}]: class, x1, y1, x2, y2; this is {list(header.shape)}")
        if not output.shape or output.shape[-1] not in {DETECTION, -1}:
            source.refuse(("golden", "label_output"), f"detections are {DETECTION} numbers a box: "
                          "x1, y1, x2, y2, score, class")  # fmt: skip
    else:
        size, wanted = header.shape[1:], output.shape[1:]
        if header.dtype.kind not in "fiu":
            source.refuse(path, f"{golden.metric} is about numbers, this is {header.dtype}")
        if -1 not in wanted and np.prod(size) != np.prod(wanted):
            source.refuse(path, f"a label has shape {list(size)}, {output.name} has {list(wanted)}")


def _classes(source: Source, golden: Golden, header: Header, output: Tensor) -> None:
    path = ("golden", "labels")
    if header.dtype.kind not in "iu" or len(header.shape) != 1:
        source.refuse(path, f"class indices are whole numbers in one axis, this is {header.dtype}{list(header.shape)}")
    if header.shape[0] * header.dtype.itemsize > LABEL_BYTES_MAX:
        source.refuse(path, "there are too many of them")
    labels = _read(source, golden.file, str(golden.labels))
    whole = "INT" in output.dtype and (len(output.shape) == 1 or output.shape[-1] == 1)  # a class, not scores
    classes = output.shape[-1] if output.shape and not whole else -1
    if labels.size and (int(labels.min()) < 0 or (classes > 0 and int(labels.max()) >= classes)):
        source.refuse(path, f"class indices run from {labels.min()} to {labels.max()}, the model has {classes} classes")
    if golden.metric == "topk" and 0 < classes <= golden.top_k:
        source.refuse(("golden", "top_k"), f"the best {golden.top_k} of {classes} are all of them")


def slice_names(source: Source, file: str, name: str) -> tuple[str, ...]:
    """The names in an array of names, in order. Raises Invalid."""
    array = _read(source, file, name)
    if array.dtype.kind not in "SU":
        source.refuse(("golden", "slices"), "an array of numbers needs slice_names")
    found = {_text(one) for one in array.reshape(-1)}
    if len(found) > SLICES_MAX:
        source.refuse(("golden", "slices"), f"{len(found)} slices, at most {SLICES_MAX} are judged")
    return tuple(sorted(found))


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def check_slices(source: Source, golden: Golden) -> None:
    """Each item is in a slice that has a name, and each name has an item. Raises Invalid."""
    path, names = ("golden", "slices"), golden.slice_names
    array = _read(source, golden.file, str(golden.slices))
    if array.ndim != 1 or array.dtype.kind not in "SUiu":
        source.refuse(path, f"slices are names or numbers in one axis, this is {array.dtype}{list(array.shape)}")
    if array.dtype.kind in "iu":
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < len(names):
            source.refuse(path, f"numbers run from {array.min()} to {array.max()}, there are {len(names)} slice_names")
        found = {names[number] for number in np.unique(array)}
    else:
        found = {_text(name) for name in np.unique(array)}
    if found - set(names):
        source.refuse(path, f"{min(found - set(names))!r} is not among slice_names")
    if set(names) - found:
        source.refuse(("golden", "slice_names"), f"no item is in {min(set(names) - found)!r}")
