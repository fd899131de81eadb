"""From a folder with a `bundle.toml` to a manifest: signature, files, golden data, gates; and nothing that could run.

The same folder gives the same bytes: nothing here asks the clock, the machine or the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from interlock_server.publisher import bundle_toml, golden, onnx_file, payload, toml_lines
from interlock_server.publisher.bundle_toml import Recipe, Source
from interlock_shared import manifest
from interlock_shared.errors import InterlockError, Invalid
from interlock_shared.limits import LABELS_MAX, MIB
from interlock_shared.manifest import File, Manifest, Signature, Tensor

LABELS_FILE_MAX_BYTES = 16 * MIB  # 100,000 labels of 160 characters


@dataclass(frozen=True)
class Built:
    """A manifest, and the folder that its files lie in."""

    source: Source
    manifest: Manifest
    data: bytes
    items: int  # golden items; 0 without golden data

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.source.folder


def total_bytes(source: Source) -> int:
    """What `build` is going to read: for a progress bar."""
    paths = [source.folder / name for name in bundle_toml.file_names(source.recipe)]
    return sum(path.stat().st_size for path in paths if path.is_file())


def build(source: Source, progress: payload.Progress = payload.silent) -> Built:
    """Check everything that can be checked here, hash the files. Raises Invalid, Incompatible, Conflict."""
    recipe = source.recipe
    for name in bundle_toml.file_names(recipe):
        _plain(source, name)
    signature = _signature(source)
    entry = golden.settle(source, recipe.golden, signature) if recipe.golden else None
    items = golden.check(source, entry, signature) if entry else 0
    files = _files(source, progress)
    document: dict[str, Any] = {
        "schema": manifest.SCHEMA,
        "min_agent": recipe.min_agent,
        "model": recipe.model,
        "version": recipe.version,
        "created": recipe.created,
        "provenance": recipe.provenance.model_dump(mode="json"),
        "signature": signature.model_dump(mode="json"),
        "variants": [_variant(recipe, index) for index in range(len(recipe.variants))],
        "files": [file.model_dump(mode="json") for file in files],
        "golden": entry.model_dump(mode="json") if entry else None,
        "gates": recipe.gates if isinstance(recipe.gates, str) else recipe.gates.model_dump(mode="json"),
        "health": recipe.health.model_dump(mode="json"),
    }
    made = manifest.from_document(document)
    data = manifest.to_bytes(made)
    manifest.parse(data)  # what a device is going to do: too large a manifest is found here
    return Built(source, made, data, items)


def _variant(recipe: Recipe, index: int) -> dict[str, Any]:
    entry = recipe.variants[index]
    document = entry.model_dump(mode="json")
    return {**document, "reference": bool(entry.reference) or len(recipe.variants) == 1}


def _path_of(source: Source, name: str) -> tuple[str | int, ...]:
    """The field of `bundle.toml` that names the file."""
    for index, variant in enumerate(source.recipe.variants):
        if variant.file == name:
            return ("variants", index, "file")
    if name in source.recipe.files:
        return ("files", source.recipe.files.index(name))
    return ("golden", "file")


def _plain(source: Source, name: str) -> None:
    try:
        payload.open_plain(source.folder / name).close()
    except Invalid as bad:
        source.refuse(_path_of(source, name), bad.message, bad.code)


def _files(source: Source, progress: payload.Progress) -> list[File]:
    files = []
    for name in bundle_toml.file_names(source.recipe):
        try:
            files.append(payload.describe(source.folder / name, progress))
        except Invalid as bad:
            source.refuse(_path_of(source, name), bad.message, bad.code)
    return files


def _look(source: Source, index: int) -> onnx_file.OnnxFile:
    """One variant's model; its complaints get the line of the variant. Raises Invalid, Incompatible."""
    variant, path = source.recipe.variants[index], ("variants", index, "file")
    try:
        model = onnx_file.read(
            source.folder / variant.file, compiled_context=variant.compiled_context, custom_ops=variant.custom_ops
        )
    except InterlockError as bad:
        line = toml_lines.line_of(source.lines, path)
        where = {"line": line, "field": f"variants.{index}.file"}
        message = f"{bundle_toml.FILE_NAME}:{line}: {where['field']}: {bad.message}"
        raise type(bad)(message, code=bad.code, **{**bad.details, **where}) from None
    known = bundle_toml.file_names(source.recipe)
    for name in model.external:
        if name not in known:
            source.refuse(path, f"its weights are in {name!r}, which is not among `files`", "foreign_external_data")
    return model


def _told(source: Source) -> onnx_file.OnnxFile:
    """An external model, as `bundle.toml` describes it."""
    sides: dict[str, list[onnx_file.TensorInfo]] = {}
    for side in ("inputs", "outputs"):
        sides[side] = []
        for name, tensor in getattr(source.recipe.signature, side).items():
            if tensor.dtype is None or tensor.shape is None:
                source.refuse(("signature", side, name), "of an external model, dtype and shape are needed here")
            sides[side].append(onnx_file.TensorInfo(name, tensor.dtype, tensor.shape))
        if not sides[side]:
            source.refuse(("signature",), f"an external model is not opened: give its {side} here")
    return onnx_file.OnnxFile(tuple(sides["inputs"]), tuple(sides["outputs"]), ())


def _signature(source: Source) -> Signature:
    """The reference's signature with the overrides; every other variant must have the same names and types."""
    recipe = source.recipe
    opened = [index for index, variant in enumerate(recipe.variants) if variant.is_onnx]
    models = {index: _look(source, index) for index in opened}
    reference = next((index for index, variant in enumerate(recipe.variants) if variant.reference), 0)
    if reference not in models:
        models = {reference: _told(source), **models}
    for index, model in models.items():
        for side in ("inputs", "outputs"):
            mine = {(one.name, one.dtype) for one in getattr(model, side)}
            wanted = {(one.name, one.dtype) for one in getattr(models[reference], side)}
            if mine != wanted:
                other = min(mine ^ wanted)
                source.refuse(
                    ("variants", index, "file"), f"its {side} differ from the reference's: {other[0]} {other[1]}"
                )
    chosen = models[reference]
    inputs = [_tensor(source, "inputs", one) for one in chosen.inputs]
    outputs = [_tensor(source, "outputs", one) for one in chosen.outputs]
    for side, known in (("inputs", inputs), ("outputs", outputs)):
        for name in getattr(recipe.signature, side):
            if name not in {tensor.name for tensor in known}:
                source.refuse(("signature", side, name), f"the model has no such tensor among its {side}")
    said = {name: getattr(recipe.signature, name) for name in ("renamed", "added", "labels_appended")}
    try:
        return Signature(inputs=tuple(inputs), outputs=tuple(outputs), labels=_labels(source, outputs), **said)
    except ValidationError as bad:
        path = ("signature",) if any(said.values()) else ("variants", reference, "file")
        source.refuse(path, f"its signature: {bad.errors()[0]['msg']}")


def _tensor(source: Source, side: str, found: onnx_file.TensorInfo) -> Tensor:
    override = getattr(source.recipe.signature, side).get(found.name, bundle_toml.TensorOverride())
    path = ("signature", side, found.name)
    if side == "inputs" and override.non_finite is not None:
        source.refuse((*path, "non_finite"), "is said of outputs alone")
    if override.dtype is not None and override.dtype != found.dtype:
        source.refuse((*path, "dtype"), f"the model says {found.dtype}")
    shape = found.shape
    if override.shape is not None:
        if any(axis < -1 for axis in override.shape):
            source.refuse((*path, "shape"), "an axis is -1 (dynamic) or not negative")
        if shape is not None and not _narrows(override.shape, shape):
            source.refuse((*path, "shape"), f"the model says {list(shape)}")
        shape = override.shape
    if shape is None:
        source.refuse(path, f"the model does not say the shape of {found.name}: give it here, as shape = [-1, 3]")
    try:
        return Tensor(
            name=found.name,
            dtype=_dtype(found.dtype),
            shape=shape,
            non_finite=override.non_finite or "refused",
            default=override.default,
        )
    except ValidationError as bad:
        source.refuse((*path, "default"), str(bad.errors()[0]["msg"]))


def _dtype(name: str) -> Any:
    return name  # one of manifest.Dtype: onnx_file maps to nothing else


def _narrows(given: tuple[int, ...], found: tuple[int, ...]) -> bool:
    return len(given) == len(found) and all(old in {-1, new} for new, old in zip(given, found, strict=True))


def _labels(source: Source, outputs: list[Tensor]) -> tuple[str, ...] | None:
    """One label a line; as many as some output's last axis has classes."""
    name, path = source.recipe.signature.labels, ("signature", "labels")
    if name is None:
        return None
    try:
        with payload.open_plain(source.folder / name) as file:
            data = file.read(LABELS_FILE_MAX_BYTES + 1)
    except Invalid as bad:
        source.refuse(path, bad.message, bad.code)
    try:
        labels = tuple(data.decode().rstrip("\n").splitlines())
    except UnicodeDecodeError:
        source.refuse(path, f"{name}: not UTF-8")
    if len(data) > LABELS_FILE_MAX_BYTES or len(labels) > LABELS_MAX:
        source.refuse(path, f"{name}: more than {LABELS_MAX} labels")
    last = [tensor.shape[-1] for tensor in outputs if tensor.shape]
    if len(labels) not in last and -1 not in last:
        source.refuse(path, f"{name}: {len(labels)} labels, the outputs' last axes are {last}")
    return labels
