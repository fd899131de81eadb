"""A renamed model is asked and answers by the names that applications know; what it may do without, it does without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock_agent.host import messages
from interlock_agent.host.wire import NO_HEADER
from interlock_agent.host.worker import inference, names
from interlock_agent.host.worker.errors import BadRequest
from tests.host import clients, models
from tests.host.rig import UNIT, running

X: dict[str, Any] = {"name": "image", "dtype": "FP32", "shape": [-1, 4]}
GAIN: dict[str, Any] = {"name": "gain", "dtype": "FP32", "shape": [-1, 1]}
RATE: dict[str, Any] = {"name": "rate", "dtype": "INT64", "shape": []}
Y: dict[str, Any] = {"name": "scores", "dtype": "FP32", "shape": [-1, 4]}


class Plain:
    """scores = image * gain + rate."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, Any]] = [X, GAIN, RATE]
        self.outputs: list[dict[str, Any]] = [Y, {**Y, "name": "more"}]

    def run(self, wanted: list[str], feeds: dict[str, Any]) -> list[Any]:
        assert set(feeds) == {"image", "gain", "rate"}
        scores = feeds["image"] * feeds["gain"] + np.float32(feeds["rate"])
        return [{"scores": scores, "more": -scores}[name] for name in wanted]


SERVE = {
    "inputs": [X, {**GAIN, "default": 2.0}, {**RATE, "default": 1}],
    "renamed": {"image": "x", "scores": "y"},
}
MODEL = inference.Model("m", "1.0.0", names.served(Plain(), SERVE), frozenset())


def ask(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = inference.infer(
        MODEL, bytearray(json.dumps({"inputs": inputs, **more}).encode()), NO_HEADER, inference.Asker()
    )
    return dict(json.loads(bytes(answer.body[0])))


def sent(name: str, shape: list[int], data: list[Any], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_an_application_asks_with_the_old_names_and_knows_of_nothing_new() -> None:
    outputs = ask(sent("x", [2, 4], list(range(8))), outputs=[{"name": "y"}])["outputs"]
    assert [one["name"] for one in outputs] == ["y"]
    assert outputs[0]["data"] == [2.0 * n + 1 for n in range(8)]


def test_what_has_a_default_may_be_sent() -> None:
    given = (sent("gain", [1, 1], [3.0]), sent("rate", [], [0], "INT64"))
    outputs = ask(sent("x", [1, 4], [1, 2, 3, 4]), *given)["outputs"]
    assert {one["name"]: one["data"][0] for one in outputs} == {"y": 3.0, "more": -3.0}


@pytest.mark.parametrize("inputs", [[sent("image", [1, 4], [1, 2, 3, 4])], [sent("gain", [1, 1], [3.0])]])
def test_names_of_the_model_itself_are_unknown_outside_and_the_rest_is_needed(inputs: list[Any]) -> None:
    with pytest.raises(BadRequest, match=r"no input|missing: x"):
        ask(*inputs)


def test_metadata_tells_the_names_that_are_served() -> None:
    metadata = MODEL.metadata("p")
    assert [one["name"] for one in metadata["inputs"]] == ["x", "gain", "rate"]
    assert [one["name"] for one in metadata["outputs"]] == ["y", "more"]


def test_a_model_that_was_not_renamed_is_left_alone() -> None:
    plain: inference.Backend = Plain()
    assert names.served(plain, {"inputs": [X, GAIN]}) is plain


@pytest.mark.e2e
async def test_a_renamed_model_serves_and_is_measured_beside_a_twin_of_the_old_names(short_path: Path) -> None:
    """The tiny model is called x and y inside; here it is `x` -> `image`, and the incumbent has `x` and `y`."""
    async with running(short_path) as rig:
        await rig.confirmed(1)
        serve = {
            "runtime": "onnxruntime",
            "file": "model.onnx",
            "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, 4], "non_finite": "refused"}],
            "renamed": {"x": "image", "y": "scores"},
        }
        # A fresh unit would be served under its own names; this release is known to applications as image -> scores.
        worker = (await rig.load(2, serve=serve))["worker"]
        evaluation = await rig.agent.order(messages.Evaluate(worker, 2))
        assert [(one["name"], one["outside"]) for one in evaluation["outputs"]] == [("y", 0)]  # its golden data's names
        # The same golden data, from a release whose tensors have other names inside and the same outside.
        other = short_path / "golden"
        models.make_slot(other, UNIT, "9.0.0", 2)
        seal = json.loads((other / ".interlock" / "seal.json").read_text())
        described = {**seal["golden"], "inputs": {"pixels": "x"}, "expected": {"logits": "y"}, "label_output": "logits"}
        renamed = {"pixels": "x", "logits": "y"}
        models.seal(other, UNIT, "9.0.0", 2, golden=described, serve={**seal["serve"], "renamed": renamed})
        options = {"golden_folder": str(other)}
        twin = await rig.agent.order(messages.Load(UNIT, 2, str(rig.slots / "a"), "twin", options))
        evaluation = await rig.agent.order(messages.Evaluate(twin["worker"], 2))
        assert [(one["name"], one["outside"]) for one in evaluation["outputs"]] == [("logits", 0)]
        await rig.promote(3, serve=serve)
        async with clients.Connection(rig.address) as connection:
            asked = clients.request(f"/v2/models/{UNIT}/infer", clients.inference([1.0, 2.0, 3.0, 4.0], "image"))
            reply = await connection.ask(asked)
            assert reply.status == 200, reply.body
            assert reply.json()["outputs"][0]["name"] == "scores"
            described = (await clients.get(rig.address, f"/v2/models/{UNIT}")).json()
            assert [one["name"] for one in described["inputs"]] == ["image"]
