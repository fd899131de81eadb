"""The seal: what a complete folder holds, under `.interlock/seal.json`. Written last; a folder without one is not
complete. The host reads it to serve, so that it needs neither the manifest nor pydantic."""

from __future__ import annotations

from typing import Any

from interlock_shared import canonical
from interlock_shared.manifest import Manifest

SCHEMA = "interlock.seal/1"


def seal(manifest: Manifest, manifest_sha256: str, variant: str, generation: int) -> dict[str, Any]:
    """The seal document of a release whose chosen variant is `variant`. Raises KeyError for an unknown one."""
    chosen = next((one for one in manifest.variants if one.name == variant), None)
    if chosen is None:
        raise KeyError(variant)
    golden = None if manifest.golden is None else manifest.golden.model_dump(mode="json")
    if golden is not None:
        closeness = {name: rule.model_dump(mode="json") for name, rule in chosen.parity.items()}
        golden["parity"] = {**golden["parity"], **closeness}
    return {
        "schema": SCHEMA,
        "model": manifest.model,
        "version": manifest.version,
        "manifest_sha256": manifest_sha256,
        "payload_sha256": manifest.payload_sha256(),
        "variant": variant,
        "generation": generation,
        "serve": {
            "runtime": chosen.runtime,
            "file": chosen.file,
            "inputs": [t.model_dump(mode="json", exclude={"non_finite"}) for t in manifest.signature.inputs],
            "outputs": [t.model_dump(mode="json", exclude={"default"}) for t in manifest.signature.outputs],
            "labels": list(manifest.signature.labels) if manifest.signature.labels is not None else None,
            "renamed": manifest.signature.renamed,
            "compiled_context": chosen.compiled_context,
            "custom_ops": list(chosen.custom_ops),
            "sanity": manifest.health.sanity(),
        },
        "golden": golden,
        "files": [
            {"name": f.name, "size": f.size, "segments": [s.model_dump(mode="json") for s in f.segments]}
            for f in manifest.files
        ],
    }


def encode(document: dict[str, Any]) -> bytes:
    """Bytes of a seal."""
    return canonical.encode(document)
