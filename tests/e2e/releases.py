"""Tiny releases: y = x * scale, a folder that `interlock publish` takes, made and published in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.host import models

MODEL = "filetype"  # the name that tests/host/clients.py asks for

BUNDLE = """\
model = "{model}"
version = "{version}"

[[variants]]
name = "fp32"
file = "model.onnx"
reference = true
{golden}
[gates]
latency_ratio_max = 1000.0

[health]
min_seconds = {trial_s}
min_requests = {requests}
{more}
"""

GOLDEN = """
[golden]
file = "golden.npz"
inputs = { x = "x" }
expected = { y = "y" }
labels = "labels"
label_output = "y"
"""


def write(
    folder: Path,
    version: str,
    scale: float,
    *,
    model: str = MODEL,
    trial_s: float = 0.3,
    requests: int = 5,
    padding: int = 0,
    wrong: float = 0.0,
    golden: bool = True,
    more: str = "",
    **options: Any,
) -> Path:
    """A release folder. `padding`: bytes that do not compress, so that a fetch takes a while; `wrong`: added to what
    golden data expects; `options`: make_model's."""
    folder.mkdir(parents=True, exist_ok=True)
    models.make_model(folder / "model.onnx", scale, **options)
    if padding:
        _pad(folder / "model.onnx", padding)
    if golden:
        rng = np.random.default_rng(7)
        x = rng.normal(size=(40, options.get("width", models.WIDTH))).astype(np.float32)
        y = x * np.float32(scale)
        np.savez(folder / "golden.npz", x=x, y=y + np.float32(wrong), labels=y.argmax(axis=-1))
    text = BUNDLE.format(
        model=model,
        version=version,
        trial_s=trial_s,
        requests=requests,
        golden=GOLDEN if golden else "",
        more=more,
    )
    (folder / "bundle.toml").write_text(text)
    return folder


def _pad(path: Path, size: int) -> None:
    """A note in the file: content that no other release shares, and that no runtime looks at."""
    model = onnx.load(str(path))
    noise = np.random.default_rng(path.stat().st_ino).integers(33, 126, size, dtype=np.uint8)
    model.doc_string = noise.tobytes().decode("ascii")
    path.write_bytes(model.SerializeToString())
