"""`bundle.toml`: what a release engineer writes beside a model. Parsed, checked, each complaint with line and field.

Rules of the file: the document is data and strict; an unknown key is a mistake, a key that would run something has its
own error. Nothing here opens a model: that is `build`.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field

from interlock_server.publisher import toml_lines
from interlock_shared.base import FileName, Finite, Name, Signed, Timestamp, Version, validate
from interlock_shared.errors import Invalid, NotFound
from interlock_shared.gates import Gates, Golden, Parity
from interlock_shared.health import Health
from interlock_shared.limits import FILES_MAX, MIB, RANK_MAX
from interlock_shared.manifest import COMMAND_KEYS, Dtype, Fact, Provenance, Requirement, Runtime

FILE_NAME = "bundle.toml"
BUNDLE_TOML_MAX_BYTES = 1 * MIB  # a person writes it


class TensorOverride(Signed):
    """What the model's file does not say about one input or output. Of an external model it says nothing: then `dtype`
    and `shape` are needed."""

    dtype: Dtype | None = None
    non_finite: Literal["refused", "allowed"] | None = None
    shape: tuple[int, ...] | None = Field(default=None, max_length=RANK_MAX)
    default: bool | int | Finite | None = None


class SignatureOverride(Signed):
    """Additions to the signature that is read from the model. `labels`: a text file, one label a line."""

    labels: FileName | None = None
    inputs: dict[str, TensorOverride] = Field(default_factory=dict)
    outputs: dict[str, TensorOverride] = Field(default_factory=dict)
    renamed: dict[str, str] = Field(default_factory=dict)
    added: tuple[str, ...] = ()
    labels_appended: bool = False


class VariantEntry(Signed):
    """One form of the model."""

    name: Name
    file: FileName
    runtime: Runtime = "onnxruntime"
    reference: bool | None = None
    requires: tuple[Requirement, ...] = ()
    parity: dict[str, Parity] = Field(default_factory=dict)
    compiled_context: bool = False
    built_for: dict[Fact, str | int] = Field(default_factory=dict)
    custom_ops: tuple[str, ...] = ()

    @property
    def is_onnx(self) -> bool:
        """Whether it can be opened here: not what an application opens, and no engine."""
        return self.runtime == "onnxruntime" or (self.runtime == "tensorrt" and self.file.endswith(".onnx"))


class GoldenEntry(Signed):
    """As the manifest's, with names that may be left out: an array is then called as its tensor, and slices as the
    array of their names says."""

    file: FileName
    inputs: dict[str, str] | None = None
    expected: dict[str, str] = Field(default_factory=dict)
    parity: dict[str, Parity] = Field(default_factory=dict)
    rtol: Finite = Field(default=Golden.model_fields["rtol"].default, ge=0)
    atol: Finite = Field(default=Golden.model_fields["atol"].default, ge=0)
    labels: str | None = None
    label_output: str | None = None
    metric: str = Golden.model_fields["metric"].default
    top_k: int = Golden.model_fields["top_k"].default
    slices: str | None = None
    slice_names: tuple[str, ...] = ()
    batch: int = Field(default=Golden.model_fields["batch"].default, ge=1, le=4096)


class Recipe(Signed):
    """All of a `bundle.toml`."""

    model: Name
    version: Version
    created: Timestamp | None = None
    min_agent: Version = "0.1.0"
    files: tuple[FileName, ...] = Field(default=(), max_length=FILES_MAX)
    variants: tuple[VariantEntry, ...] = Field(min_length=1, max_length=16)
    signature: SignatureOverride = SignatureOverride()
    golden: GoldenEntry | None = None
    gates: Gates | Literal["none"] = Gates()
    health: Health = Health()
    provenance: Provenance = Provenance()


@dataclass(frozen=True)
class Source:
    """A recipe, where it stands, and where its keys do."""

    path: Path
    recipe: Recipe
    lines: dict[toml_lines.Path, int]

    @property
    def folder(self) -> Path:
        """The folder that all files lie in."""
        return self.path.parent

    def refuse(self, path: toml_lines.Path, problem: str, code: str = "invalid") -> NoReturn:
        """Raises Invalid with the line and the field."""
        raise _complaint(self.lines, path, problem, code)


def find(where: Path) -> Path:
    """The `bundle.toml` of a folder, or the file itself. Raises NotFound."""
    path = where / FILE_NAME if where.is_dir() else where
    if not path.is_file():
        if not where.exists():
            raise NotFound(f"there is no folder or file {where}", code="no_bundle_toml")
        raise NotFound(f"there is no {path}; `interlock bundle init` writes one", code="no_bundle_toml")
    return path


def load(where: Path) -> Source:
    """Read and check. Raises NotFound, Invalid (`field`, `line`)."""
    path = find(where)
    data = path.read_bytes()
    if len(data) > BUNDLE_TOML_MAX_BYTES:
        raise Invalid(f"{FILE_NAME}: {len(data)} bytes, at most {BUNDLE_TOML_MAX_BYTES} are read", field=FILE_NAME)
    try:
        text = data.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as bad:
        line = data[: bad.start].count(b"\n") + 1
        raise Invalid(f"{FILE_NAME}:{line}: not UTF-8", line=line, field=FILE_NAME) from None
    except (tomllib.TOMLDecodeError, RecursionError) as bad:
        found = re.search(r"line (\d+)", str(bad))
        line = int(found[1]) if found else text.count("\n") + 1
        raise Invalid(f"{FILE_NAME}:{line}: not TOML: {bad}", line=line, field=FILE_NAME) from None
    lines = toml_lines.locate(text)
    document = _plain(document, (), lines)
    if isinstance(document.get("gates"), str) and document["gates"] != "none":
        raise _complaint(lines, ("gates",), 'a table of limits, or "none"')
    try:
        recipe = validate(Recipe, document, FILE_NAME)
    except Invalid as bad:
        raise _located(bad, document, lines) from None
    source = Source(path, recipe, lines)
    _check_together(source)
    return source


def _complaint(
    lines: dict[toml_lines.Path, int], path: toml_lines.Path, problem: str, code: str = "invalid"
) -> Invalid:
    line, field = toml_lines.line_of(lines, path), ".".join(str(part) for part in path)
    return Invalid(f"{FILE_NAME}:{line}: {field}: {problem}", code=code, field=field, line=line)


def _plain(value: Any, path: toml_lines.Path, lines: dict[toml_lines.Path, int]) -> Any:
    """The value as JSON could hold it; commands, NaN and dates without a zone are refused here."""
    if isinstance(value, dict):
        inside_golden = path[:1] == ("golden",) and len(path) > 1  # names of tensors are keys there
        inside_signature = path in {("signature", side) for side in ("inputs", "outputs", "renamed")}
        named = inside_golden or inside_signature or path == ("gates", "slices")
        for key in value:
            if key.lower() in COMMAND_KEYS and not named:
                raise _complaint(lines, (*path, key), "a bundle brings data, never commands", "command_in_manifest")
        return {key: _plain(one, (*path, key), lines) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, (*path, index), lines) for index, one in enumerate(value)]
    if isinstance(value, float) and not isfinite(value):
        raise _complaint(lines, path, f"{value} is no limit")
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, (datetime, date, time)):
        raise _complaint(lines, path, "a time needs a date and a zone, as in 2026-01-31T12:00:00Z")
    return value


def _located(bad: Invalid, document: Any, lines: dict[toml_lines.Path, int]) -> Invalid:
    """The same complaint with the field as the file has it: pydantic's path also names branches of unions."""
    wanted = str(bad.details.get("field", ""))
    problem = bad.message.removeprefix(f"{FILE_NAME}: {wanted}: ")
    path: toml_lines.Path = ()
    here, rest = document, wanted
    while rest:
        keys = [str(key) for key in here] if isinstance(here, dict) else []
        match = next(
            (key for key in sorted(keys, key=len, reverse=True) if rest == key or rest.startswith(key + ".")), ""
        )
        head = match or rest.partition(".")[0]
        rest = rest[len(head) + 1 :]
        if match:
            here, path = here[match], (*path, match)
        elif isinstance(here, list) and head.isdigit() and int(head) < len(here):
            here, path = here[int(head)], (*path, int(head))
        elif isinstance(here, dict) and not rest:
            path = (*path, head)  # a field that is missing
    return _complaint(lines, path or (wanted,), problem)


def _check_together(source: Source) -> None:
    recipe = source.recipe
    _refuse_twice(source, [variant.name for variant in recipe.variants], "variants", "name")
    _refuse_twice(source, list(recipe.files), "files", None)
    chosen = [index for index, variant in enumerate(recipe.variants) if variant.reference]
    if len(chosen) > 1:
        source.refuse(("variants", chosen[1], "reference"), "exactly one variant is the reference")
    if not chosen and len(recipe.variants) > 1:
        source.refuse(("variants",), "say which one is the reference: reference = true")
    if not chosen and recipe.variants[0].reference is False:
        source.refuse(("variants", 0, "reference"), "exactly one variant is the reference")
    golden = recipe.golden
    if golden and (golden.labels is None) != (golden.label_output is None):
        source.refuse(("golden", "labels" if golden.labels else "label_output"), "labels and label_output go together")
    if golden and not golden.expected and golden.labels is None:
        source.refuse(("golden",), "expected outputs or labels are needed: what else could be checked?")


def _refuse_twice(source: Source, values: list[str], field: str, key: str | None) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            path: toml_lines.Path = (field, index) if key is None else (field, index, key)
            source.refuse(path, f"{value!r} occurs twice")


def file_names(recipe: Recipe) -> list[str]:
    """Every file of the bundle, in manifest order: variants, the listed ones, golden data."""
    names = [variant.file for variant in recipe.variants] + list(recipe.files)
    if recipe.golden:
        names.append(recipe.golden.file)
    return list(dict.fromkeys(names))
