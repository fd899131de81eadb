"""What a bundle is: the manifest, to and from canonical bytes.

The manifest is the one signed document about a release; payload is named in it by hash. It brings data, never
commands: a field that would run something is refused by its own error, before anything else is looked at.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from interlock_shared import canonical
from interlock_shared.base import FileName, Finite, Name, Sha256, Signed, Timestamp, Version, check_speakable, validate
from interlock_shared.errors import Invalid
from interlock_shared.gates import Gates, Golden, Parity, check_gates
from interlock_shared.health import Health
from interlock_shared.limits import (
    FILE_MAX_BYTES,
    FILES_MAX,
    LABELS_MAX,
    MANIFEST_MAX_BYTES,
    RANK_MAX,
    SEGMENT_MAX_BYTES,
    SEGMENTS_MAX,
    TENSORS_MAX,
)

SCHEMA = "interlock.bundle/1"

Dtype = (
    Literal["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
    | Literal["FP16", "FP32", "FP64", "BF16", "BYTES"]
)
"""Open Inference Protocol names."""

DEFAULT_ELEMENTS_MAX = 65_536  # of an input that applications need not send; filled anew for each request

COMMAND_KEYS = frozenset({"exec", "command", "cmd", "hook", "hooks", "http", "systemd", "script", "run", "shell"})


class Tensor(Signed):
    """One input or output. A shape entry of -1 is a dynamic axis."""

    name: str = Field(min_length=1, max_length=256)
    dtype: Dtype
    shape: tuple[int, ...] = Field(max_length=RANK_MAX)
    non_finite: Literal["refused", "allowed"] = "refused"  # NaN and Inf in answers; outputs only
    # Inputs only: what every element is where an application does not send it. A first axis of -1 is then the batch.
    default: bool | int | Finite | None = None

    @model_validator(mode="after")
    def _axes(self) -> Tensor:
        if any(axis < -1 for axis in self.shape):
            raise ValueError("an axis is -1 (dynamic) or not negative")
        if self.default is not None:
            _check_default(self.default, self.dtype, self.shape)
        return self


def _check_default(default: bool | float, dtype: str, shape: tuple[int, ...]) -> None:
    """A default is of the tensor's type and of a size that a worker may fill. Raises ValueError."""
    kind = bool if dtype == "BOOL" else int if "INT" in dtype else float
    fits = type(default) is kind or (kind is float and type(default) is int)
    if not fits or dtype in {"BYTES", "BF16"}:
        raise ValueError(f"a default of {dtype} is not {default!r}")
    if kind is int:
        bits, signed = int(dtype.lstrip("UINT")), dtype.startswith("INT")
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
        if not low <= default < high:
            raise ValueError(f"{default} is no {dtype}")
    if any(axis < 0 for axis in shape[1:]):
        raise ValueError("with a default, only the first axis may be dynamic")
    if math.prod(shape[1:]) * max(1, *shape[:1]) > DEFAULT_ELEMENTS_MAX:
        raise ValueError(f"a default of more than {DEFAULT_ELEMENTS_MAX} elements")


class Signature(Signed):
    """What applications see: inputs, outputs, and the labels an output's last axis stands for.

    The names are the model's own. One in `renamed` is served under the name on the right: the one that applications
    know from earlier releases. `added` names outputs, and `labels_appended` says that there are labels at the end of
    the map, that no earlier release had: so that nothing new reaches an application unannounced.
    """

    inputs: tuple[Tensor, ...] = Field(min_length=1, max_length=TENSORS_MAX)
    outputs: tuple[Tensor, ...] = Field(min_length=1, max_length=TENSORS_MAX)
    labels: tuple[str, ...] | None = Field(default=None, max_length=LABELS_MAX)
    renamed: dict[str, Annotated[str, Field(min_length=1, max_length=256)]] = Field(default_factory=dict)
    added: tuple[str, ...] = Field(default=(), max_length=TENSORS_MAX)
    labels_appended: bool = False

    @model_validator(mode="after")
    def _unique(self) -> Signature:
        for side in (self.inputs, self.outputs):
            names = [tensor.name for tensor in side]
            if len(set(names)) != len(names):
                raise ValueError("a tensor's name occurs twice")
            served = [self.renamed.get(name, name) for name in names]
            if len(set(served)) != len(served):
                raise ValueError("renamed: two tensors would have one name")
        outputs = {tensor.name for tensor in self.outputs}
        unknown = (set(self.renamed) - outputs - {tensor.name for tensor in self.inputs}) | (set(self.added) - outputs)
        if unknown:
            raise ValueError(f"renamed, added: no such tensor: {', '.join(sorted(unknown))}")
        if any(tensor.default is not None for tensor in self.outputs):
            raise ValueError("a default is for inputs")
        if all(tensor.default is not None for tensor in self.inputs):
            raise ValueError("at least one input is without a default")
        return self

    def declared(self) -> dict[str, Any]:
        """What is said beyond the tensors themselves; empty when nothing is. A release that was refused for want of it
        is another one with it."""
        said = {
            "signature.renamed": self.renamed,
            "signature.added": list(self.added),
            "signature.labels": self.labels_appended,
            "signature.defaults": {t.name: t.default for t in self.inputs if t.default is not None},
        }
        return {name: value for name, value in said.items() if value}


Fact = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]*$", max_length=64)]


class Requirement(Signed):
    """A fact of the device's fingerprint, compared with a value. Versions compare as versions."""

    fact: Fact
    op: Literal["==", "!=", ">=", ">", "<=", "<", "in"]
    value: str | int | Finite | tuple[str, ...]


Runtime = Literal["onnxruntime", "tensorrt", "external"]
"""`tensorrt`: an engine is built on the device from an ONNX file, or opened as it is, built for that very device.
`external`: Interlock holds the file and does not open it; an application of the device's owner does, from `live/`, and
a command of his measures it (`gate.command`)."""


COMPILERS = frozenset({"cuda", "onnxruntime", "tensorrt"})
"""Facts that say whose compiled forms a device can open: an engine is bound to the very version that built it."""


class Variant(Signed):
    """One form of the model. The one with `reference` is what the others are compared with.

    A compiled form runs nowhere but on what it was compiled for: `built_for` names those facts of the fingerprint, each
    of which must be the very same there.
    """

    name: Name
    runtime: Runtime = "onnxruntime"
    file: FileName
    reference: bool = False
    requires: tuple[Requirement, ...] = ()
    parity: dict[str, Parity] = Field(default_factory=dict)  # output name -> how close; else as `golden` says
    compiled_context: bool = False  # the file holds compiled contexts (EPContext nodes): native code, run when opened
    built_for: dict[Fact, str | int] = Field(default_factory=dict)
    custom_ops: tuple[str, ...] = Field(default=(), max_length=16)  # domains of operators that no runtime has by itself

    @model_validator(mode="after")
    def _compiled_somewhere(self) -> Variant:
        named = set(self.built_for)
        if self.compiled_context and not ({"gpu", "driver"} <= named and named & COMPILERS):
            needed = f"the gpu, the driver, and one of {', '.join(sorted(COMPILERS))}"
            raise ValueError(f"built_for: a compiled form names at least {needed} that it was built for")
        if self.runtime == "tensorrt" and not self.file.endswith(".onnx") and not {"gpu", "tensorrt"} <= named:
            raise ValueError("built_for: an engine names at least the gpu and the tensorrt that it was built for")
        if self.reference and self.built_for:
            raise ValueError("built_for: the reference runs anywhere; a compiled form cannot be it")
        return self


class SegmentRef(Signed):
    """SHA-256 and length of the uncompressed content."""

    sha256: Sha256
    size: int = Field(ge=1, le=SEGMENT_MAX_BYTES)


class File(Signed):
    """Size and ordered segments. `sha256` of the whole file is for people; devices hash segments, once."""

    name: FileName
    size: int = Field(ge=0, le=FILE_MAX_BYTES)
    sha256: Sha256
    segments: tuple[SegmentRef, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> File:
        if sum(segment.size for segment in self.segments) != self.size:
            raise ValueError("the segments do not add up to the file's size")
        return self


class Provenance(Signed):
    """Where the model comes from; for people and for audits."""

    commit: str | None = Field(default=None, max_length=256)
    training_run: str | None = Field(default=None, max_length=1024)
    datasets: tuple[str, ...] = ()
    framework: str | None = Field(default=None, max_length=256)
    author: str | None = Field(default=None, max_length=256)
    licence: str | None = Field(default=None, max_length=256)
    parent: Version | None = None
    source: str | None = Field(default=None, max_length=1024)


class Manifest(Signed):
    """Everything about a release."""

    schema_: Literal["interlock.bundle/1"] = Field(alias="schema", default="interlock.bundle/1")
    min_agent: Version = "0.1.0"
    model: Name
    version: Version
    created: Timestamp | None = None
    provenance: Provenance = Provenance()
    signature: Signature
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=16)
    files: tuple[File, ...] = Field(min_length=1, max_length=FILES_MAX)
    golden: Golden | None = None
    gates: Gates | Literal["none"] = Gates()
    health: Health = Health()

    @model_validator(mode="after")
    def _holds_together(self) -> Manifest:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("a file's name occurs twice")
        for variant in self.variants:
            if variant.file not in names:
                raise ValueError(f"variant {variant.name}: file {variant.file} is not in the bundle")
        if len({variant.name for variant in self.variants}) != len(self.variants):
            raise ValueError("a variant's name occurs twice")
        if sum(variant.reference for variant in self.variants) != 1:
            raise ValueError("exactly one variant is the reference")
        if sum(len(file.segments) for file in self.files) > SEGMENTS_MAX:
            raise ValueError(f"more than {SEGMENTS_MAX} segments")
        for variant in self.variants:
            unknown = set(variant.parity) - {tensor.name for tensor in self.signature.outputs}
            if unknown:
                raise ValueError(f"variant {variant.name}: parity: no such output: {', '.join(sorted(unknown))}")
        self._golden_fits(names)
        self._health_fits()
        return self

    def _health_fits(self) -> None:
        outputs = {tensor.name for tensor in self.signature.outputs}
        for check in self.health.checks:
            if check.output is not None and check.output not in outputs:
                raise ValueError(f"health: {check.name}: no such output")
            if check.check == "golden" and self.golden is None:
                raise ValueError("health: a golden check, and there are no golden items")

    def _golden_fits(self, names: list[str]) -> None:
        if self.golden is None:
            if isinstance(self.gates, Gates) and self.gates.slices:
                raise ValueError("gates: slices are groups of golden items, and there are none")
            return
        if self.golden.file not in names:
            raise ValueError(f"golden: file {self.golden.file} is not in the bundle")
        if set(self.golden.inputs) != {tensor.name for tensor in self.signature.inputs}:
            raise ValueError("golden: inputs are not those of the signature")
        outputs = {tensor.name for tensor in self.signature.outputs}
        named = {*self.golden.expected, *self.golden.parity}
        named |= {self.golden.label_output} if self.golden.label_output else set()
        if not named <= outputs:
            raise ValueError(f"golden: no such output: {', '.join(sorted(named - outputs))}")
        if isinstance(self.gates, Gates):
            check_gates(self.gates, self.golden)

    @property
    def release(self) -> str:
        """`model version`, as people say it."""
        return f"{self.model} {self.version}"

    @property
    def reference(self) -> Variant:
        """The reference variant."""
        return next(variant for variant in self.variants if variant.reference)

    @property
    def payload_size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def file(self, name: str) -> File:
        """The file of that name. Raises KeyError."""
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)

    def segments(self) -> dict[str, SegmentRef]:
        """Every distinct segment by digest, in manifest order."""
        return {segment.sha256: segment for file in self.files for segment in file.segments}

    def payload_sha256(self) -> str:
        """Digest of what runs: variants, the content of their files, and what is declared of both. A new version number
        does not change it, nor do other golden data, gates or provenance.
        """
        served = sorted({variant.file for variant in self.variants})
        declared = self.signature.declared() | {
            variant.name: [variant.compiled_context, variant.built_for, *variant.custom_ops]
            for variant in self.variants
            if variant.compiled_context or variant.built_for or variant.custom_ops
        }
        document: dict[str, Any] = {
            "files": [[name, [[s.sha256, s.size] for s in self.file(name).segments]] for name in served],
            "variants": [[v.name, v.runtime, v.file] for v in self.variants],
        }
        return canonical.sha256(canonical.encode(document | ({"declared": declared} if declared else {})))


def _find_command(document: Any, path: str = "") -> str | None:
    """The path of the first key that would run something."""
    if isinstance(document, dict):
        for key, value in document.items():
            here = f"{path}.{key}" if path else key
            # Names of tensors are keys in `golden`, those of slices in `gates.slices`: data, whatever they are called.
            named = path in ("golden", "gates.slices") or path.startswith("golden.")
            if key.lower() in COMMAND_KEYS and not named:
                return here
            found = _find_command(value, here)
            if found:
                return found
    elif isinstance(document, list):
        for index, value in enumerate(document):
            found = _find_command(value, f"{path}.{index}")
            if found:
                return found
    return None


def from_document(document: dict[str, Any]) -> Manifest:
    """A manifest from a parsed document. Raises Invalid (naming the field), Incompatible (`needs_agent`)."""
    command = _find_command(document)
    if command:
        raise Invalid(
            f"manifest: {command}: a bundle brings data, never commands", code="command_in_manifest", field=command
        )
    check_speakable(document, SCHEMA, "manifest")
    return validate(Manifest, document, "manifest")


def parse(data: bytes) -> Manifest:
    """A manifest from its bytes, which must be canonical. Raises Invalid, Incompatible."""
    document = canonical.decode(data, limit=MANIFEST_MAX_BYTES, what="manifest")
    manifest = from_document(document)
    if canonical.encode(document) != data:
        raise Invalid("manifest: not canonical JSON", code="not_canonical", field="manifest")
    return manifest


def to_bytes(manifest: Manifest) -> bytes:
    """Canonical bytes: the same manifest gives the same bytes, everywhere."""
    return canonical.encode(manifest.model_dump(mode="json", by_alias=True))
