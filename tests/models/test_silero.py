"""Silero's detector of voice (MIT): upgrades that change nothing but weights, other exports of one model, and an export
that lost an input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from interlock_server.publisher import onnx_file
from interlock_shared.errors import Invalid
from tests.e2e.world import temporary
from tests.models import given, speech
from tests.models.judging import Judge, checks_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

BUNDLE = """\
model = "voice"
version = "{version}"
{variants}
[golden]
file = "golden.npz"
expected = {{ output = "output", stateN = "stateN" }}
rtol = 0.0
atol = {atol}

[gates]
latency_ratio_max = 1.25

[provenance]
source = "silero-vad (PyPI)"
licence = "MIT"
"""
VARIANT = """
[[variants]]
name = "{name}"
file = "{name}.onnx"
reference = {reference}
"""
ALIKE = ("5.1.2", "6.0.0", "6.2.0")  # releases whose files differ in their weights alone
AGAIN = 1e-6  # a model's own answers, given again by another process
EXPORTS = (
    4e-6  # … by another export of the same weights: values of the state reach 10, so a few units of the last place
)


def text(version: str, names: tuple[str, ...] = ("fp32",), atol: float = AGAIN) -> str:
    variants = "".join(VARIANT.format(name=name, reference=str(name == names[0]).lower()) for name in names)
    return BUNDLE.format(version=version, variants=variants, atol=atol)


class Releases:
    """A bundle of each release, with what its model says of the sound."""

    def __init__(self, folder: Path) -> None:
        self.judge = Judge(folder)
        self.heard = {version: speech.heard(given.silero(version)) for version in ALIKE}
        self.bundles = {
            version: self.judge.release(
                text(version), {"fp32.onnx": given.silero(version)}, self.heard[version]._asdict(), version
            )
            for version in ALIKE
        }


@pytest.fixture(scope="module")
def releases() -> Iterator[Releases]:
    with temporary() as folder:
        yield Releases(folder)


def names_of(path: Path) -> tuple[list[tuple[str, str]], list[str], list[tuple[str, list[str], list[str]]]]:
    graph = onnx.load(str(path)).graph
    nodes = [(node.op_type, list(node.input), list(node.output)) for node in graph.node]
    tensors = [(tensor.name, str(tensor.type)) for tensor in (*graph.input, *graph.output)]
    return tensors, [tensor.name for tensor in graph.initializer], nodes


def test_three_releases_differ_in_nothing_that_a_cache_of_engines_looks_at() -> None:
    """ONNX Runtime's own key of a compiled engine holds the file's name, the graph's inputs and the nodes' outputs,
    and no weights: these three collide in it."""
    paths = [given.silero(version) for version in ALIKE]
    assert {path.name for path in paths} == {"silero_vad.onnx"}
    assert {path.stat().st_size for path in paths} == {2_327_524}
    first, *others = [names_of(path) for path in paths]
    for other in others:
        assert other == first
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) == len(ALIKE)


def test_the_sound_is_heard_differently_by_different_weights(releases: Releases) -> None:
    """Else parity could not tell one release from another."""
    said = [releases.heard[version].output for version in ALIKE]
    assert all(output.max() > 0.5 > 0.1 > output.min() for output in said), "voice, and none"
    assert min(np.abs(said[0] - said[1]).max(), np.abs(said[1] - said[2]).max()) > 0.1


@pytest.mark.parametrize(("old", "new"), list(pairwise(ALIKE)))
def test_new_weights_of_the_same_graph_are_accepted(releases: Releases, old: str, new: str) -> None:
    said = releases.judge.judge(releases.bundles[new], releases.bundles[old])
    assert said.outcome == (0, "accept", "ok"), said.verdict["message"]
    for output in ("output", "stateN"):
        assert said.checks[f"parity {output}"]["measured"] == 0
    for scale in ("work", "wall"):
        ratio = said.checks[f"latency_ratio_{scale}"]
        assert ratio["low"] < 1.05, "the same graph"
        assert ratio["high"] > 0.95
    assert said.checks["determinism"]["outcome"] == "pass"


def test_the_old_weights_under_the_new_name_are_found_out(releases: Releases) -> None:
    """What a cache that confuses them would serve: right in every name, shape and size."""
    old, new = ALIKE[:2]
    stale = releases.judge.release(
        text("6.0.1"), {"fp32.onnx": given.silero(old)}, releases.heard[new]._asdict(), "stale"
    )
    said = releases.judge.judge(stale, releases.bundles[old])
    assert said.outcome == (1, "reject", "golden_mismatch")
    assert said.checks["parity output"]["measured"] > 0


def test_other_exports_of_the_same_weights_are_variants_that_pass(releases: Releases) -> None:
    names = {"fp32": "silero-6.2.3", "op15": "silero-6.2.3-op15", "ifless": "silero-6.2.3-ifless"}
    models = {f"{name}.onnx": given.model(of) for name, of in names.items()}
    heard = speech.heard(models["fp32.onnx"])
    bundle = releases.judge.release(text("6.2.3", tuple(names), EXPORTS), models, heard._asdict(), "exports")
    said = releases.judge.judge(bundle, releases.bundles["6.2.0"])
    assert (said.code, said.verdict["outcome"]) == (0, "accept"), said.verdict["message"]
    assert said.variants.keys() == names.keys()
    far = {}
    for name, found in said.variants.items():
        checks = checks_of(found)
        rows = [checks[f"parity {output}"] for output in ("output", "stateN")]
        assert [row["measured"] for row in rows] == [0, 0], name
        far[name] = rows[0]["detail"]["max_abs"]
    assert far["fp32"] == 0
    assert max(far.values()) < 4e-7, far


def test_an_export_without_the_sample_rate_is_no_variant_and_no_next_release(releases: Releases) -> None:
    half, whole = given.model("silero-6.2.3-half"), given.model("silero-6.2.3")
    assert [tensor.name for tensor in onnx_file.read(half).inputs] == ["input", "state"]
    both = text("6.2.4", ("fp32", "half")).partition("[golden]")[0]
    with pytest.raises(Invalid, match="its inputs differ from the reference's: sr INT64"):
        releases.judge.release(both, {"fp32.onnx": whole, "half.onnx": half}, None, "half")
    alone = text("6.2.5").partition("[golden]")[0]
    bundle = releases.judge.release(alone, {"fp32.onnx": half}, None, "alone")
    said = releases.judge.judge(bundle, releases.bundles["6.2.0"])
    assert said.outcome == (1, "reject", "contract_broken")
    assert "input sr is gone" in said.checks["contract"]["detail"]["problems"]
