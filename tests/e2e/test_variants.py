"""A release in several forms, for real: measured on this machine, the best of them installed, and served again after a
restart of the host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import releases, stopped
from tests.e2e.test_dry_run import Bench, packed
from tests.e2e.test_serving import device
from tests.e2e.world import MODEL, temporary
from tests.host import models

pytestmark = pytest.mark.e2e

SCALE = 3.0
SLOW = 40  # turns of the reference, about 8 ms
FORMS = """\
[[variants]]
name = "fp32"
file = "model.onnx"
reference = true

[[variants]]
name = "light"
file = "light.onnx"

[[variants]]
name = "wrong"
file = "wrong.onnx"

[[variants]]
name = "engine"
file = "engine.onnx"
compiled_context = true
built_for = { gpu = "Orin", driver = "540.3.0", tensorrt = "10.3.0" }

"""


def write(folder: Path, version: str) -> Path:
    """A reference that is slow, the same answers for less, another one's answers, and what only runs elsewhere. Golden
    data has labels, which all of them get right: how close the forms are is asked of the reference here."""
    releases.write(folder, version, SCALE, slow=SLOW)
    models.make_model(folder / "light.onnx", SCALE, slow=SLOW // 8)
    models.make_model(folder / "wrong.onnx", SCALE + 0.1)
    models.make_model(folder / "engine.onnx", SCALE, slow=1)
    text = (folder / "bundle.toml").read_text()
    alone, _, rest = text.partition('[[variants]]\nname = "fp32"\nfile = "model.onnx"\nreference = true\n')
    rest = rest.replace('expected = { y = "y" }\n', "")
    (folder / "bundle.toml").write_text(alone + FORMS + rest)
    return folder


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with temporary() as folder:
        yield Bench(folder)


def by_name(verdict: dict[str, Any]) -> dict[str, str]:
    return {one["variant"]: one["reason"] for one in verdict["others"]}


def test_the_fastest_that_is_right_is_found_by_measuring(bench: Bench) -> None:
    code, said = bench.gate(packed(write(bench.folder / "forms", "2.0.0")))
    verdict = said["verdict"]
    assert (code, verdict["outcome"], verdict["variant"]) == (0, "accept", "light"), verdict["message"]
    assert by_name(verdict) == {"fp32": "ok", "wrong": "golden_mismatch", "engine": "built_for_another"}
    (compared,) = verdict["comparisons"]
    assert (compared["variant"], compared["against"], compared["faster"]) == ("light", "fp32", True)
    assert compared["checks"][0]["high"] < 0.97
    bench.nothing_is_left()


def test_what_was_chosen_is_installed_and_serves_after_a_restart_of_the_host(tmp_path: Path) -> None:
    with device({}) as one:
        one.world.publish(write(tmp_path, "2.0.0"))
        one.settles("2.0.0", one.wish("2.0.0"))
        ours = one.device.state / "slots" / MODEL / "confirmed" / ".interlock"
        seal = json.loads((ours / "seal.json").read_text())
        assert (seal["variant"], seal["serve"]["file"]) == ("light", "light.onnx")
        assert not (ours / "answers.npz").exists(), "what was only for the gate is not kept"
        address = one.address()
        one.device.host.kill()
        one.device.start_host()
        assert stopped.infer(address).release.endswith("2.0.0")
