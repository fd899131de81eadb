"""Every type of the protocol, in JSON and in bytes, to the runtime and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from interlock_agent.host import messages
from interlock_agent.host.wire import NO_HEADER
from interlock_agent.host.worker import inference, tensors
from interlock_agent.host.worker.backends.onnxruntime import Session
from interlock_agent.host.worker.errors import BadRequest
from tests.host import models
from tests.host.clients import INFER, Connection, request
from tests.host.rig import UNIT, Rig, running


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path) as rig:
        yield rig


def inputs(*tensors: dict[str, Any]) -> bytes:
    return json.dumps({"inputs": tensors}).encode()


NUMBERS = {
    "FP16": TensorProto.FLOAT16,
    "FP64": TensorProto.DOUBLE,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "BOOL": TensorProto.BOOL,
    "BYTES": TensorProto.STRING,
}


def every_dtype(path: Path) -> None:
    """A model that hands an input of every dtype through."""
    nodes, given, got = [], [], []
    for name, kind in NUMBERS.items():
        nodes.append(helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]))
        given.append(helper.make_tensor_value_info(f"in_{name}", kind, ["N"]))
        got.append(helper.make_tensor_value_info(f"out_{name}", kind, ["N"]))
    graph = helper.make_graph(nodes, "all", given, got)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


@pytest.mark.e2e
async def test_every_dtype_in_json_and_in_bytes(rig: Rig) -> None:
    import tritonclient.http as triton

    folder = rig.state / "incoming" / "all"
    folder.mkdir(parents=True)
    every_dtype(folder / "model.onnx")
    models.seal(folder, UNIT, "2.0.0", 2)
    worker = (await rig.agent.order(messages.Load(UNIT, 2, str(folder), "candidate", {})))["worker"]
    await asyncio.to_thread(rig.place, folder, "b")
    await rig.agent.order(messages.Promote(UNIT, 2, worker, "b"))
    values: dict[str, Any] = {name: np.array([1, 0, 7], triton.triton_to_np_dtype(name)) for name in NUMBERS}
    values["BYTES"] = np.array(["a", "", "ü"], dtype=object)

    def talk(as_bytes: bool) -> None:
        client = triton.InferenceServerClient(rig.address)
        try:
            given = []
            for name, value in values.items():
                tensor = triton.InferInput(f"in_{name}", [3], name)
                tensor.set_data_from_numpy(value, binary_data=as_bytes or name == "FP16")
                given.append(tensor)
            asked = [triton.InferRequestedOutput(f"out_{name}", binary_data=as_bytes) for name in values]
            result = client.infer(UNIT, given, outputs=asked)
            for name, value in values.items():
                found = result.as_numpy(f"out_{name}")
                texts = [item.decode() if isinstance(item, bytes) else item for item in found.tolist()]
                assert texts == value.tolist(), name
        finally:
            client.close()

    await asyncio.to_thread(talk, True)
    await asyncio.to_thread(talk, False)
    async with Connection(rig.address) as c:
        for name, data, code in (
            ("UINT8", [1, 2, 256], "wrong_data"),
            ("UINT8", [1, 2, -1], "wrong_data"),
            ("INT64", [1, 2, 3.5], "wrong_data"),
            ("BOOL", [1, 0, 1], "wrong_data"),
            ("BYTES", [1, 2, 3], "wrong_data"),
            ("UINT8", [1, 2, 3], "missing_input"),
        ):
            one = {"name": f"in_{name}", "datatype": name, "shape": [3], "data": data}
            reply = await c.ask(request(INFER, inputs(one)))
            assert reply.json()["code"] == code, (name, data)
        broken = {"name": "in_BYTES", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
        for raw in (b"\x09\0\0\0ab", b"\x02\0\0\0\xff\xff"):
            head = inputs(broken)
            reply = await c.ask(request(INFER, head + raw, Inference_Header_Content_Length=str(len(head))))
            assert reply.status == 400


# --- BF16 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> inference.Model:
    """Hands BF16 and FP32 through."""
    kinds = {"b": TensorProto.BFLOAT16, "f": TensorProto.FLOAT}
    given = [helper.make_tensor_value_info(name, kind, ["N"]) for name, kind in kinds.items()]
    got = [helper.make_tensor_value_info(f"{name}_out", kind, ["N"]) for name, kind in kinds.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    graph = helper.make_graph(nodes, "bits", given, got)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return inference.Model("m", "1", Session(str(path), {}), frozenset())


def ask(model: inference.Model, b: dict[str, Any], raw: bytes = b"", **more: Any) -> tuple[Any, bytes, bool]:
    f = {"name": "f", "datatype": "FP32", "shape": b["shape"], "data": [0.5] * b["shape"][0]}
    head = json.dumps({"inputs": [{"name": "b", "datatype": "BF16", **b}, f], **more}).encode()
    answer = inference.infer(model, bytearray(head + raw), len(head) if raw else NO_HEADER, inference.Asker())
    return json.loads(bytes(answer.body[0])), b"".join(answer.body[1:]), answer.non_finite


def test_bf16_in_json_is_the_nearest_number(model: inference.Model) -> None:
    values = [0.0, 1.0, -2.5, 3.14159265, 1e-40, 1.00390625, 1.01171875, -65504.0, 3.3e38]
    expected = np.array(values, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    said, _, _ = ask(model, {"shape": [len(values)], "data": values})
    outputs = {output["name"]: output for output in said["outputs"]}
    assert outputs["b_out"]["datatype"] == "BF16"
    assert outputs["b_out"]["data"] == expected.tolist()
    assert outputs["f_out"]["data"] == [0.5] * len(values)
    said, _, _ = ask(model, {"shape": [0], "data": []})
    assert said["outputs"][0]["data"] == []


def test_bf16_in_bytes_is_its_bits(model: inference.Model) -> None:
    bits = np.array([1.5, -3.0, 1e30], ml_dtypes.bfloat16)
    binary = {"shape": [3], "parameters": {"binary_data_size": 6}}
    wanted = [{"name": "b_out", "parameters": {"binary_data": True}}]
    _, back, non_finite = ask(model, binary, bits.tobytes(), outputs=wanted)
    assert (back, non_finite) == (bits.tobytes(), False)
    for bad in (np.nan, np.inf, -np.inf):
        bits[1] = bad
        assert ask(model, binary, bits.tobytes(), outputs=wanted)[2], f"{bad} is held back"


@pytest.mark.parametrize(
    ("data", "code"),
    [([3.4e38], "wrong_data"), ([1e39], "wrong_data"), ([True], "wrong_data"), (["1"], "wrong_data")],
)
def test_what_is_no_bf16(model: inference.Model, data: list[Any], code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        ask(model, {"shape": [1], "data": data})
    assert refused.value.code == code


def test_every_bf16_keeps_its_bits_in_json() -> None:
    bits = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    finite = bits[(bits & 0x7F80) != 0x7F80]
    back = tensors.from_json("b", tensors.to_json(finite, "BF16"), "BF16", finite.shape)
    assert np.array_equal(back, finite)
    assert tensors.to_json(np.array([0x7F80, 0xFF80, 0x7FC0], np.uint16), "BF16") == [None] * 3
