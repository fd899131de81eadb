"""Golden data and limits in a manifest: what goes together, and names that are data."""

from __future__ import annotations

from typing import Any

import pytest

from interlock_shared import manifest as manifests
from interlock_shared.errors import Invalid
from tests.agent.material import the_manifest

GOLDEN: dict[str, Any] = {
    "file": "golden.npz",
    "inputs": {"x": "x"},
    "labels": "l",
    "label_output": "y",
    "slices": "s",
    "slice_names": ["day", "night"],
}


def manifest(golden: dict[str, Any] | None, gates: Any) -> manifests.Manifest:
    document = the_manifest(golden=True).model_dump(mode="json", by_alias=True)
    return manifests.from_document({**document, "golden": golden, "gates": gates})


@pytest.mark.parametrize(
    ("golden", "gates"),
    [
        (GOLDEN, {}),
        (GOLDEN, "none"),
        (GOLDEN, {"slice_drop_max": 0.1, "slices": {"night": {"accuracy_min": 0.5}}}),
        ({**GOLDEN, "metric": "wer"}, {"error_max": 0.3, "slices": {"day": {"error_rise_max": 0.1}}}),
        ({**GOLDEN, "metric": "a-plug-in"}, {"error_max": 0.3}),
        ({**GOLDEN, "metric": "a-plug-in"}, {"accuracy_min": 0.3}),
        ({**GOLDEN, "parity": {"y": {"atol": 0.0}}}, {}),  # of a second look alone
        ({**GOLDEN, "slice_names": ["run", "exec"]}, {"slices": {"run": {"accuracy_min": 0.5}}}),
    ],
)
def test_what_goes_together(golden: dict[str, Any], gates: Any) -> None:
    made = manifest(golden, gates)
    assert manifests.parse(manifests.to_bytes(made)) == made


@pytest.mark.parametrize(
    ("golden", "gates", "words"),
    [
        (None, {"slices": {"night": {}}}, "there are none"),
        (GOLDEN, {"slices": {"dusk": {}}}, "no such slice: dusk"),
        (GOLDEN, {"slices": {"night": {"exec": "x"}}}, "a bundle brings data"),
        (GOLDEN, {"error_max": 0.3}, "error_max is not about top1"),
        (GOLDEN, {"slices": {"night": {"error_rise_max": 0.3}}}, "error_rise_max is not about top1"),
        ({**GOLDEN, "metric": "mae"}, {"accuracy_min": 0.3}, "accuracy_min is not about mae"),
        ({**GOLDEN, "metric": "../x"}, {}, "metric"),
        ({**GOLDEN, "slices": None}, {}, "slices and slice_names go together"),
        ({**GOLDEN, "slice_names": []}, {}, "slices and slice_names go together"),
        ({**GOLDEN, "slice_names": ["a", "a"]}, {}, "occurs twice"),
        ({**GOLDEN, "slice_names": ["a\n"]}, {}, "slice_names"),
        ({**GOLDEN, "parity": {"z": {"rtol": 0.1}}}, {}, "no such output: z"),
        ({**GOLDEN, "parity": {"y": {"cosine_min": 0.9}}}, {}, "nothing is expected of this output"),
        ({**GOLDEN, "parity": {"y": {}}}, {}, "name rtol, atol, cosine_min or agreement_min"),
        ({**GOLDEN, "parity": {"y": {"cosine_min": 2}}}, {}, "cosine_min"),
        (GOLDEN, {"slice_drop_max": 2}, "slice_drop_max"),
    ],
)
def test_what_does_not(golden: dict[str, Any] | None, gates: Any, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        manifest(golden, gates)
