"""What the agent's tests are about: small manifests and records."""

from __future__ import annotations

from typing import Any

from interlock_agent.core.records import Attempt, Installed, UnitRecord, Wish
from interlock_agent.core.states import Phase
from interlock_shared import canonical
from interlock_shared import manifest as manifests
from interlock_shared.manifest import Manifest

UNIT = "detector"
OLD, NEW, OTHER = "0" * 64, "1" * 64, "2" * 64


def tensor(name: str, shape: list[int] | None = None, dtype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": [-1, 4] if shape is None else shape}


def the_manifest(
    version: str = "1.1.0", content: bytes = b"", golden: bool = False, labels: bool = False, **more: Any
) -> Manifest:
    """A manifest of one file of one segment; with `golden` two."""
    data = content or version.encode()
    digest = canonical.sha256(data)
    names = ("model.onnx", "golden.npz") if golden else ("model.onnx",)
    document: dict[str, Any] = {
        "schema": manifests.SCHEMA,
        "model": UNIT,
        "version": version,
        "signature": {"inputs": [tensor("x")], "outputs": [tensor("y")]},
        "variants": [{"name": "fp32", "file": "model.onnx", "reference": True}],
        "files": [
            {"name": name, "size": len(data), "sha256": digest, "segments": [{"sha256": digest, "size": len(data)}]}
            for name in names
        ],
    }
    if golden:
        document["golden"] = {"file": "golden.npz", "inputs": {"x": "x"}, "expected": {"y": "y"}}
    if labels:
        document["golden"] |= {"labels": "labels", "label_output": "y"}
    return manifests.from_document(document | more)


def digest_of(manifest: Manifest) -> str:
    return canonical.sha256(manifests.to_bytes(manifest))


def wish(assignment: str = "w1", **more: Any) -> Wish:
    fields: dict[str, Any] = {"version": "1.1.0", "manifest_sha256": NEW, "assignment": assignment}
    return Wish(**(fields | more))


def record(phase: Phase = Phase.IDLE, of: Wish | None = None, *, confirmed: bool = False, **more: Any) -> UnitRecord:
    """A unit in a phase, with an attempt when a wish is given."""
    attempt = None if of is None else Attempt(of, payload_sha256=OTHER, slot="b")
    here = Installed("1.0.0", OLD, OLD, "a") if confirmed else None
    return UnitRecord(UNIT, phase=phase.value, generation=3, attempt=attempt, confirmed=here, **more)
