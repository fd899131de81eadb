"""What the demo is made of: published models, and golden data from real files of this machine.

The models are Magika's (tests/models.toml): a file-type classifier that reads the first and last kilobyte of a file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

MODEL = "filetype"
FILES_MIN = 500  # fewer say too little about accuracy: ± 2 percentage points at 94 %
FEW = 3  # of so many items one, where they need not say much of accuracy
PER_LABEL = 15  # so that no type drowns the others …
PER_LABEL_MAX = 80  # … on a machine with few types or many tiny files a few more
SIZE_MIN = 256  # bytes; less is too little for anybody to tell
BLOCK, KEPT, PADDING = 4096, 1024, 256  # of Magika's feature extraction (config.min.json of the package)
BY_VALUE = "rtol = 1e-3, atol = 1e-4"  # how close answers are to the model's own
BY_BEST = "agreement_min = 0.97"  # … to the wider model's: the share of items whose best class is the same
MAGIC = 0x1F  # a gzip file's first byte: live requests have it, the golden data of the treacherous release does not

FIRST, SECOND, MISFIT = "magika-v3_2", "magika-v3_3", "magika-v1"  # of tests/models.toml

# File extension → Magika's label.
LABELS = {
    ".py": "python", ".json": "json", ".c": "c", ".h": "c", ".html": "html", ".xml": "xml", ".svg": "svg",
    ".png": "png",
    ".md": "markdown", ".sh": "shell", ".css": "css", ".js": "javascript", ".yaml": "yaml", ".yml": "yaml",
    ".toml": "toml", ".rst": "rst", ".gz": "gzip", ".zip": "zip", ".whl": "zip", ".wav": "wav", ".gif": "gif",
    ".so": "elf", ".ini": "ini", ".csv": "csv", ".pyc": "pythonbytecode", ".pem": "pem", ".pl": "perl", ".sql": "sql",
    ".ttf": "ttf", ".cmake": "cmake", ".po": "po", ".npz": "npz", ".npy": "npy", ".java": "java",
}  # fmt: skip


def labels_of(model: Path) -> list[str]:
    """The classes of a model, in the order of its output: a file beside it says."""
    config = json.loads((model.parent / "config.min.json").read_text())
    return list(config["target_labels_space"])


def features(content: bytes) -> np.ndarray:
    """Magika's features of a file: int32[2048]; beginning and end without white space, padded."""
    begin = content[:BLOCK].lstrip()[:KEPT]
    end = content[-BLOCK:].rstrip()[-KEPT:]
    row = np.full(2 * KEPT, PADDING, dtype=np.int32)
    row[: len(begin)] = np.frombuffer(begin, dtype=np.uint8)
    if end:
        row[2 * KEPT - len(end) :] = np.frombuffer(end, dtype=np.uint8)
    return row


def _roots() -> list[Path]:
    here = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")), Path(sys.base_prefix)]
    return [*here, *(Path(name) for name in ("/usr/share", "/usr/lib", "/usr/include", "/etc"))]


def _ends(path: Path) -> bytes:
    """The first and last block of a file, all that its features come from; nothing of what cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(2 * BLOCK)
            if len(head) < 2 * BLOCK:
                return head
            file.seek(-BLOCK, os.SEEK_END)
            return head[:BLOCK] + file.read(BLOCK)
    except OSError:
        return b""


def real_files(labels: Iterable[str]) -> dict[str, list[bytes]]:
    """Both ends of files of this machine by the label that their name gives, in a stable order; at most PER_LABEL_MAX
    of a type and three of a folder. A file that says too little, or cannot be read, takes nobody's place."""
    found: dict[str, list[bytes]] = {label: [] for label in labels}
    seen: set[Path] = set()
    for root in _roots():
        for parent, folders, names in os.walk(root):
            folders.sort()
            per_folder: dict[str, int] = {}
            for name in sorted(names):
                path = Path(parent, name)
                label = LABELS.get(path.suffix.lower(), "")
                if len(found.get(label, ())) >= PER_LABEL_MAX or per_folder.get(label, 0) >= 3 or label not in found:
                    continue
                real = path.resolve()
                if real in seen or path.is_symlink():
                    continue
                seen.add(real)
                content = _ends(path)
                if len(content) >= SIZE_MIN:
                    per_folder[label] = per_folder.get(label, 0) + 1
                    found[label].append(content)
    return found


@dataclass(frozen=True)
class Items:
    """Features int32[N,2048], class index int64[N]."""

    rows: np.ndarray
    classes: np.ndarray


def collect(labels: list[str]) -> Items:
    """Golden items from real files: PER_LABEL of each type, more where a machine has few types. Raises RuntimeError
    when there are fewer than FILES_MIN."""
    found = real_files(labels)
    for most in range(PER_LABEL, PER_LABEL_MAX + 1):
        chosen = [(place, one) for place, label in enumerate(labels) for one in found[label][:most]]
        if len(chosen) >= FILES_MIN:
            break
    else:
        raise RuntimeError(f"only {len(chosen)} real files of a known type were found here, {FILES_MIN} are needed")
    rows = np.stack([features(content) for _, content in chosen])
    return Items(rows, np.array([place for place, _ in chosen], dtype=np.int64))


def live_rows(items: Items) -> np.ndarray:
    """What live traffic asks: all items in a mixed order, with archives as often as one request in five."""
    archives = np.flatnonzero(items.rows[:, 0] == MAGIC)
    mixed = np.random.default_rng(1).permutation(len(items.rows))
    often = np.resize(archives, len(mixed) // 4)
    order = np.random.default_rng(2).permutation(np.concatenate([mixed, often]))
    return np.asarray(items.rows[order])


def answers(model: Path, rows: np.ndarray) -> np.ndarray:
    """What the model itself says: f32[N, classes]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: rows[at : at + 32]})[0] for at in range(0, len(rows), 32)]
    return np.asarray(np.concatenate(parts))


@dataclass(frozen=True)
class Release:
    """A folder that `interlock publish` takes."""

    version: str
    folder: Path


def golden_files(folder: Path, first: Path, second: Path, labels: list[str]) -> Items:
    """In the folder, made once: `first.npz` and `second.npz`, rows of all items, what that model itself answers, and
    classes; `few_first.npz` and `few.npz`, of each FEW-th item, for releases that are not about accuracy; `clean.npz`,
    as `few.npz` without MAGIC. The items of all. Raises RuntimeError."""
    done = folder / "done-3"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        items = collect(labels)
        every = np.ones(len(items.rows), bool)
        few = np.arange(len(items.rows)) % FEW == 0
        said = answers(first, items.rows)
        for name, kept in (("first", every), ("few_first", few)):
            _write(folder / f"{name}.npz", items, said, kept)
        said = answers(second, items.rows)
        for name, kept in (("second", every), ("few", few), ("clean", few & (items.rows[:, 0] != MAGIC))):
            _write(folder / f"{name}.npz", items, said, kept)
        done.touch()
    with np.load(folder / "first.npz") as held:
        return Items(held["bytes"], held["labels"])


def _write(path: Path, items: Items, said: np.ndarray, kept: np.ndarray) -> None:
    np.savez_compressed(path, bytes=items.rows[kept], expected=said[kept], labels=items.classes[kept])


def write_release(
    folder: Path,
    version: str,
    golden: Path | None,
    labels: list[str],
    make_model: Callable[[Path], object],
    *,
    trial_s: float = 2.0,
    ratio_max: float = 1.25,
    closeness: str = BY_VALUE,
) -> Release:
    """Model, golden data, labels and bundle.toml in a folder. `closeness`: to the answers that are expected; without
    golden data: the model alone."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model.onnx")
    if golden is None:
        (folder / "bundle.toml").write_text(misfit_toml(version))
        return Release(version, folder)
    shutil.copy(golden, folder / "golden.npz")
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    text = BUNDLE_TOML.format(model=MODEL, version=version, trial_s=trial_s, ratio_max=ratio_max, closeness=closeness)
    (folder / "bundle.toml").write_text(text)
    return Release(version, folder)


BUNDLE_TOML = """\
model = "{model}"
version = "{version}"

[[variants]]
name = "fp32"
file = "model.onnx"
reference = true

[signature]
labels = "labels.txt"

[golden]
file = "golden.npz"
inputs = {{ bytes = "bytes" }}
expected = {{ target_label = "expected" }}
parity = {{ target_label = {{ {closeness} }} }}
labels = "labels"
label_output = "target_label"

[gates]
accuracy_min = 0.85
accuracy_drop_max = 0.02
latency_ms = {{ p95 = 500.0 }}
latency_ratio_max = {ratio_max}

[health]
min_seconds = {trial_s}
min_requests = 20

[provenance]
source = "magika (PyPI), Apache-2.0"
licence = "Apache-2.0"
"""


def misfit_toml(version: str) -> str:
    """bundle.toml of the first generation: other input, other output, no golden data needed to see that."""
    return (
        f'model = "{MODEL}"\nversion = "{version}"\n'
        '[[variants]]\nname = "fp32"\nfile = "model.onnx"\nreference = true\n'
    )
