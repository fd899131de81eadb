"""The same folder gives the same bytes; what a device would refuse is refused here, with line and field."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from interlock_server.publisher import archives, build, bundle_toml, export, onnx_file, parcels, payload, template
from interlock_shared import manifest
from interlock_shared.archive import Head
from interlock_shared.errors import Conflict, Incompatible, Invalid
from tests.publisher import models


def bundle(where: Path) -> bytes:
    made = build.build(bundle_toml.load(where))
    out = io.BytesIO()
    archives.write(out, Head(made.data, made.manifest), payload.travel(made.folder, made.manifest))
    return out.getvalue()


def test_building_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = bundle(folder)
    other = tmp_path / "elsewhere" / "detector"
    shutil.copytree(folder, other)
    for path in other.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    assert bundle(other) == first == bundle(folder / "bundle.toml")


def test_the_signature_is_the_models(folder: Path) -> None:
    made = build.build(bundle_toml.load(folder)).manifest
    assert [(t.name, t.dtype, t.shape) for t in made.signature.inputs] == [("x", "FP32", (-1, 4))]
    assert [(t.name, t.dtype, t.shape) for t in made.signature.outputs] == [("y", "FP32", (-1, 3))]
    assert made.reference.name == "fp32"
    assert made.golden is not None
    assert made.golden.inputs == {"x": "x"}
    assert manifest.parse(manifest.to_bytes(made)) == made


def test_the_signature_can_be_completed(folder: Path) -> None:
    (folder / "labels.txt").write_text("cat\ndog\nüber\n")
    extra = '[signature]\nlabels = "labels.txt"\n[signature.outputs.y]\nnon_finite = "allowed"\nshape = [8, 3]\n'
    (folder / "bundle.toml").write_text(models.TOML + extra)
    signature = build.build(bundle_toml.load(folder)).manifest.signature
    assert signature.labels == ("cat", "dog", "über")
    assert (signature.outputs[0].non_finite, signature.outputs[0].shape) == ("allowed", (8, 3))


def test_what_init_wrote_can_be_built(folder: Path) -> None:
    (folder / "bundle.toml").unlink()
    path = template.write(folder, "model.onnx", None, "2.0.0")
    made = build.build(bundle_toml.load(path)).manifest
    assert made.release == "detector 2.0.0"
    with pytest.raises(Conflict) as refused:
        template.write(folder, "model.onnx", None, "2.0.0")
    assert refused.value.code == "bundle_toml_exists"


def test_every_type_has_its_word(tmp_path: Path) -> None:
    names = [*onnx_file.DTYPES]
    inputs = [models.value(f"i{n}", [1, "N", None], getattr(TensorProto, name)) for n, name in enumerate(names)]
    outputs = [models.value(f"o{n}", [], getattr(TensorProto, name)) for n, name in enumerate(names)]
    onnx.save(models.graph_model([], inputs, outputs, []), str(tmp_path / "m.onnx"))
    found = onnx_file.read(tmp_path / "m.onnx")
    assert [one.dtype for one in found.inputs] == [*onnx_file.DTYPES.values()]
    assert {one.shape for one in found.inputs} == {(1, -1, -1)}
    assert {one.shape for one in found.outputs} == {()}
    assert {*onnx_file.DTYPES.values()} == {*onnx_file.OIP_DTYPES}


def test_a_large_model_is_looked_at_without_its_weights(tmp_path: Path) -> None:
    big = models.graph_model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [models.value("x", [4])],
        [models.value("y", [4])],
        [onnx.numpy_helper.from_array(np.zeros(1_000_000, np.float32), f"w{n}") for n in range(4)],
    )
    onnx.save(big, str(tmp_path / "m.onnx"))
    assert len(onnx_file.graph_bytes(tmp_path / "m.onnx")) < 500


def test_a_shape_the_model_does_not_say_is_asked_for(tmp_path: Path) -> None:
    model = models.graph_model(
        [helper.make_node("Identity", ["x"], ["y"])], [models.value("x", [4])], [models.value("y", None)], []
    )
    toml = 'model = "m"\nversion = "1.0.0"\n[[variants]]\nname = "a"\nfile = "model.onnx"\n'
    where = models.folder(tmp_path / "m", model, toml)
    with pytest.raises(Invalid, match=r"does not say the shape of y"):
        build.build(bundle_toml.load(where))
    (where / "bundle.toml").write_text(toml + "[signature.outputs.y]\nshape = [4]\n")
    assert build.build(bundle_toml.load(where)).manifest.signature.outputs[0].shape == (4,)


def node(name: str, **more: Any) -> Any:
    return helper.make_node(name, ["x"], ["y"], **more)


def one(made: Any, **more: Any) -> Any:
    return models.graph_model([made], [models.value("x", ["N", 4])], [models.value("y", ["N", 4])], [], **more)


def branch() -> Any:
    inner = helper.make_graph([node("EPContext", domain="com.microsoft")], "t", [], [models.value("y", ["N", 4])])
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


def with_external(location: str) -> Any:
    model = models.linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


SEQUENCE = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [4])
FORBIDDEN = [
    ("compiled_context", one(node("EPContext", domain="com.microsoft"))),
    ("compiled_context", one(branch(), opsets=[helper.make_opsetid("com.microsoft", 1)])),
    ("custom_operator", one(node("Weird", domain="org.example"), opsets=[helper.make_opsetid("org.example", 1)])),
    ("foreign_external_data", with_external("weights.bin")),
    ("foreign_external_data", with_external("../weights.bin")),
    ("foreign_external_data", with_external("/etc/passwd")),
    ("unsupported_type", models.graph_model([], [SEQUENCE], [models.value("y", [4])], [])),
    ("unsupported_type", models.graph_model([], [models.value("x", [4], 14)], [models.value("y", [4])], [])),
    ("not_onnx", models.graph_model([], [], [models.value("y", [4])], [])),
]


@pytest.mark.parametrize(("code", "model"), FORBIDDEN)
def test_what_has_no_place_in_a_bundle_is_refused(tmp_path: Path, code: str, model: Any) -> None:
    where = models.folder(tmp_path / "m", model)
    with pytest.raises((Invalid, Incompatible)) as refused:
        build.build(bundle_toml.load(where))
    assert refused.value.code == code
    assert refused.value.details["line"] == 6
    assert "bundle.toml:6: variants.0.file" in refused.value.message


def test_listed_external_data_is_carried(tmp_path: Path) -> None:
    toml = models.TOML.replace("\n\n", '\nfiles = ["weights.bin"]\n', 1)
    where = models.folder(tmp_path / "m", with_external("weights.bin"), toml)
    (where / "weights.bin").write_bytes(models.weights().tobytes())
    made = build.build(bundle_toml.load(where)).manifest
    assert [file.name for file in made.files] == ["model.onnx", "weights.bin", "golden.npz"]


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 20, b"not a model", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x02"])
def test_what_is_no_model_is_said_to_be_none(folder: Path, data: bytes) -> None:
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(Invalid) as refused:
        build.build(bundle_toml.load(folder))
    assert refused.value.code == "not_onnx"


def link(where: Path) -> None:
    (where / "model.onnx").rename(where / "other.onnx")
    (where / "model.onnx").symlink_to("other.onnx")


def fifo(where: Path) -> None:
    (where / "model.onnx").unlink()
    os.mkfifo(where / "model.onnx")


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (link, "not_a_plain_file"),
        (fifo, "not_a_plain_file"),
        (lambda where: (where / "model.onnx").unlink(), "missing_file"),
        (lambda where: ((where / "model.onnx").unlink(), (where / "model.onnx").mkdir()), "not_a_plain_file"),
    ],
)
def test_only_plain_files_are_carried(folder: Path, harm: Any, code: str) -> None:
    harm(folder)
    with pytest.raises(Invalid, match=r"bundle.toml:6: variants.0.file") as refused:
        build.build(bundle_toml.load(folder))
    assert refused.value.code == code


GOLDEN = [
    ({"x": None}, "golden.inputs.x", "no array 'x'"),
    ({"y": None}, "golden.expected.y", "no array 'y'"),
    ({"labels": None}, "golden.labels", "no array 'labels'"),
    ({"x": np.zeros((8, 4))}, "golden.inputs.x", "float64, x is FP32"),
    ({"x": np.zeros((8, 5), np.float32)}, "golden.inputs.x", "shape"),
    ({"x": np.float32(1)}, "golden.inputs.x", "no item axis"),
    ({"y": np.zeros((7, 3), np.float32)}, "golden", "differ in their number of items"),
    ({"labels": np.zeros((8,), np.float32)}, "golden.labels", "whole numbers"),
    ({"labels": np.full((8,), 3)}, "golden.labels", "3 classes"),
    ({"labels": np.full((8,), -1)}, "golden.labels", "run from -1"),
    ({"x": np.array([frozenset()] * 8)}, "golden.file", "Python objects"),
    (
        {"x": np.zeros((0, 4), np.float32), "y": np.zeros((0, 3), np.float32), "labels": np.zeros(0, int)},
        "golden.file",
        "no items",
    ),
]


@pytest.mark.parametrize(("replace", "field", "words"), GOLDEN, ids=str)
def test_golden_data_must_fit(folder: Path, replace: dict[str, Any], field: str, words: str) -> None:
    models.golden(folder / "golden.npz", **replace)
    with pytest.raises(Invalid, match=words) as refused:
        build.build(bundle_toml.load(folder))
    assert refused.value.details["field"] == field


@pytest.mark.parametrize("data", [b"", b"PK", b"no archive"])
def test_golden_data_that_is_none(folder: Path, data: bytes) -> None:
    (folder / "golden.npz").write_bytes(data)
    with pytest.raises(Invalid) as refused:
        build.build(bundle_toml.load(folder))
    assert refused.value.code == "invalid_golden"


def test_a_file_that_changed_after_the_build_is_no_release(folder: Path) -> None:
    made = build.build(bundle_toml.load(folder))
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(Conflict) as refused:
        list(payload.travel(folder, made.manifest))
    assert refused.value.code == "file_changed"


def test_a_bundle_carries_what_the_folder_held(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    path.write_bytes(bundle(folder))
    parcel, source = parcels.of_bundle(path), parcels.of_folder(folder)
    wanted = set(parcel.manifest.segments())
    assert parcel.data == source.data
    assert list(parcel.segments(wanted)) == list(source.segments(wanted))
    assert export.summary(parcel.manifest, parcel.data)["segments"] == len(wanted)
