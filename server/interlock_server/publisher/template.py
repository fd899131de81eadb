"""The commented `bundle.toml` that `interlock bundle init` writes beside a model."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from interlock_server.publisher import bundle_toml, onnx_file
from interlock_shared.base import FileName, Name, Version
from interlock_shared.errors import Conflict, Invalid

_TEXT = """\
# A release of one model. `interlock bundle build` makes a bundle of it; docs/reference/bundle.md describes every field.
model = {model}
version = {version}
# created = 2026-01-31T12:00:00Z       # only what stands here goes in, so that building twice gives the same bytes

# Further files of the bundle: external weights, vocabularies. Variants and golden data are in it anyway.
files = []

# "none" must be written out, and the device's owner may forbid it.
# gates = "none"

[[variants]]
name = "original"
file = {file}
reference = true
# requires = [{{ fact = "gpu_memory_free_bytes", op = ">=", value = 2000000000 }}]

# Another form of the same model: the device judges all of them, and takes the fastest that is right.
# [[variants]]
# name = "int8"
# file = "model-int8.onnx"
# parity = {{ {output} = {{ agreement_min = 0.99 }} }} # where golden data is too strict

# Read from the model when the bundle is built:
{signature}
[signature]
# labels = "labels.txt"                # one label a line; what the last axis of an output stands for
# [signature.outputs.{output}]
# non_finite = "allowed"               # NaN and Inf are answers of this output, not faults

# Items with known answers: an .npz whose arrays have the item axis first.
# [golden]
# file = "golden.npz"
# inputs = {{ {inputs} }}
# expected = {{ {output} = "expected" }} # what the reference answers
# labels = "labels"                    # class indices …
# label_output = {output_string}       # … compared with the largest value of this output
# metric = "top1"                      # or topk, f1, map, mae, rmse, wer
# slices = "slices"                    # each item's group by name; limits in [gates.slices.NAME]
# rtol = 0.001
# atol = 0.0001
# [golden.parity.{output}]             # instead, for one output
# cosine_min = 0.999

[gates]
# accuracy_min = 0.9                   # share of right labels
# accuracy_drop_max = 0.01             # against the release that serves now, on the same items
# latency_ms = {{ p95 = 50.0 }}          # quantiles of wall time
# latency_ratio_max = 1.25             # to the release that serves now, measured on the device
# throughput_min = {{ 4 = 100.0 }}       # inferences a second, with so many at a time
# load_s_max = 30.0                    # from the start of its process to its first answer
# memory_max_bytes = 2000000000

[health]
# min_seconds = 10.0                   # the trial lasts at least so long …
# min_requests = 20                    # … and sees so many requests

[provenance]
# commit = ""
# training_run = ""
# datasets = []
# framework = ""
# author = ""
# licence = ""
# source = ""
"""


def _checked(kind: Any, value: str, field: str) -> str:
    try:
        return str(TypeAdapter(kind).validate_python(value))
    except ValidationError as bad:
        raise Invalid(f"{field}: {value!r}: {bad.errors()[0]['msg']}", field=field) from None


def _signature(model: onnx_file.OnnxFile) -> str:
    lines = []
    for side, tensors in (("input ", model.inputs), ("output", model.outputs)):
        for tensor in tensors:
            shape = "shape unknown, give it below" if tensor.shape is None else list(tensor.shape)
            lines.append(f"#   {side} {tensor.name} {tensor.dtype} {shape}\n".replace("\r", "?"))
    return "".join(lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def render(file: str, model: onnx_file.OnnxFile, name: str, version: str) -> str:
    """The text. Raises Invalid when a name cannot be one."""
    first = model.outputs[0].name
    return _TEXT.format(
        model=json.dumps(_checked(Name, name, "model")),
        version=json.dumps(_checked(Version, version, "version")),
        file=json.dumps(_checked(FileName, file, "model-file")),
        signature=_signature(model),
        output=_key(first),
        output_string=json.dumps(first),
        inputs=", ".join(f"{_key(tensor.name)} = {json.dumps(tensor.name)}" for tensor in model.inputs),
    )


def write(folder: Path, file: str | None, name: str | None, version: str) -> Path:
    """Write `bundle.toml` into the folder. Raises Conflict (`bundle_toml_exists`), Invalid, Incompatible."""
    if not folder.is_dir():
        raise Invalid(f"{folder}: there is no such folder", field="folder")
    found = sorted(path.name for path in folder.glob("*.onnx"))
    if file is None and len(found) != 1:
        raise Invalid(f"{folder} holds {len(found)} .onnx files: name one with --model-file", field="model-file")
    chosen = Path(file or found[0])
    if chosen.parent != Path() and (folder / chosen.name).resolve() != chosen.resolve():
        raise Invalid(f"{chosen}: the model must lie in {folder}", field="model-file")
    path = folder / chosen.name
    if path.is_symlink() or not path.is_file():
        raise Invalid(f"{path}: there is no such plain file", code="missing_file", field="model-file")
    guessed = re.sub(r"[^a-z0-9._-]+", "-", (folder.resolve().name or "model").lower()).strip("-._")
    text = render(path.name, onnx_file.read(path), name or guessed or "model", version)
    target = folder / bundle_toml.FILE_NAME
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise Conflict(f"{target} is there already", code="bundle_toml_exists") from None
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
    return target
