"""What is published in a simulation: small manifests, and how each release behaves."""

from __future__ import annotations

from functools import cache
from typing import Any

from interlock_shared import canonical
from interlock_shared import manifest as manifests
from interlock_shared.manifest import Manifest
from tests.fakes.host_world import Conduct

UNIT = "detector"
MIN_SECONDS = 1.0  # of every trial here


@cache
def manifest(version: str, content: str = "", golden: bool = False, inputs: str = "x") -> Manifest:
    """A manifest whose payload is `content` (its version, when not said)."""
    payload = (content or version).encode()
    digest = canonical.sha256(payload)
    tensor: dict[str, Any] = {"dtype": "FP32", "shape": [-1, 4]}
    files = [
        {"name": name, "size": len(payload), "sha256": digest, "segments": [{"sha256": digest, "size": len(payload)}]}
        for name in ("model.onnx", "golden.npz")
    ]
    return manifests.from_document(
        {
            "schema": manifests.SCHEMA,
            "model": UNIT,
            "version": version,
            "signature": {"inputs": [{"name": inputs, **tensor}], "outputs": [{"name": "y", **tensor}]},
            "variants": [{"name": "fp32", "file": "model.onnx", "reference": True}],
            "files": files,
            "golden": {"file": "golden.npz", "inputs": {inputs: "x"}, "expected": {"y": "y"}} if golden else None,
            "health": {"min_seconds": MIN_SECONDS, "min_requests": 0},
        }
    )


def digest(what: Manifest) -> str:
    """The manifest's own digest."""
    return canonical.sha256(manifests.to_bytes(what))


CATALOGUE: dict[str, tuple[Manifest, Conduct]] = {
    "1.0.0": (manifest("1.0.0"), Conduct()),
    "1.1.0": (manifest("1.1.0"), Conduct()),
    "1.2.0": (manifest("1.2.0"), Conduct()),
    "2.0.0": (manifest("2.0.0", golden=True), Conduct(golden=True, outside=3)),  # the gate rejects it
    "2.1.0": (manifest("2.1.0", inputs="z"), Conduct()),  # breaks the contract
    "2.2.0": (manifest("2.2.0", golden=True), Conduct(golden=True, noise=True)),  # nothing can be said of it
    "2.3.0": (manifest("2.3.0", golden=True), Conduct(golden=True, dies_in_gate=True)),
    "2.4.0": (manifest("2.4.0"), Conduct(opens=False)),
    "2.5.0": (manifest("2.5.0"), Conduct(kills_host=True)),
    "3.0.0": (manifest("3.0.0"), Conduct(dies_after=0.5)),  # its worker dies in the trial
    "3.1.0": (manifest("3.1.0", content="3.0.0"), Conduct(dies_after=0.5)),  # the same bytes again
    "3.2.0": (manifest("3.2.0"), Conduct(non_finite_after=0.4)),
    "4.0.0": (manifest("4.0.0"), Conduct(bad_after=4.0)),  # long after its trial
    "4.1.0": (manifest("4.1.0"), Conduct(bad_after=15.0)),
    "4.2.0": (manifest("4.2.0", content="4.0.0"), Conduct(bad_after=4.0)),  # the same bytes again
    "9.0.0": (manifest("9.0.0"), Conduct()),  # not signed
}
FORGED = frozenset({"9.0.0"})
