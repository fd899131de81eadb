"""Where engines are kept: never under a name that two models share, and as the runtime is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from interlock_agent.config import Unit
from interlock_agent.host.worker import engines
from interlock_agent.host.worker.backends import onnxruntime as backend
from interlock_agent.host.worker.errors import LoadError
from interlock_shared import canonical, seals
from interlock_shared.manifest import Manifest, from_document
from tests.host import models
from tests.models.given import silero

FACTS = {"runtime": "onnxruntime 1.20.0", "tensorrt": "100300.26", "cuda": "12060", "gpu": "Orin", "l4t": "# R36"}
OPTIONS = {"providers": ["TensorrtExecutionProvider", "CUDAExecutionProvider"], "threads": 1}


def sealed(content: bytes, version: str = "1.0.0", golden: bytes = b"golden", **more: Any) -> dict[str, Any]:
    """The seal of a release whose model's bytes these are."""
    files = {"silero_vad.onnx": content, "weights.bin": b"beside it", "golden.npz": golden}
    tensor = {"name": "x", "dtype": "FP32", "shape": [-1, 4]}
    document = {
        "schema": "interlock.bundle/1",
        "model": "vad",
        "version": version,
        "signature": {"inputs": [tensor], "outputs": [{**tensor, "name": "y"}]},
        "variants": [{"name": "fp32", "file": "silero_vad.onnx", "reference": True}],
        "golden": {"file": "golden.npz", "inputs": {"x": "x"}, "expected": {"y": "y"}},
        "files": [described(name, data) for name, data in files.items()],
    }
    manifest: Manifest = from_document(document | more)
    return seals.seal(manifest, "0" * 64, "fp32", 1)


def described(name: str, data: bytes) -> dict[str, Any]:
    segment = {"sha256": canonical.sha256(data), "size": len(data)}
    return {"name": name, "size": len(data), "sha256": segment["sha256"], "segments": [segment]}


def key(seal: dict[str, Any] | None = None, options: dict[str, Any] = OPTIONS) -> str:
    return engines.key(seal or sealed(b"model"), options, FACTS)


def test_the_same_is_the_same_whatever_version_it_is_called() -> None:
    assert key() == key(sealed(b"model", "2.0.0")) == key(sealed(b"model", golden=b"other items"))
    assert len(key()) == 64


@pytest.mark.parametrize("fact", sorted(FACTS))
def test_every_fact_of_the_device_is_in_the_key(fact: str) -> None:
    assert engines.key(sealed(b"model"), OPTIONS, FACTS | {fact: "another"}) != key()


@pytest.mark.parametrize(
    "other",
    [
        key(sealed(b"other")),
        key(sealed(b"model", files=[described(name, data) for name, data in (("silero_vad.onnx", b"model"),
                                    ("weights.bin", b"others"), ("golden.npz", b"golden"))])),
        key(sealed(b"model", signature={"inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 8]}],
                                        "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, 4]}]})),
        key(sealed(b"model", signature={"inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}],
                                        "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, 8]}]})),
        key(sealed(b"model", variants=[{"name": "fp32", "file": "weights.bin", "reference": True}])),
        key(options=OPTIONS | {"providers": ["TensorrtExecutionProvider"]}),
        key(options=OPTIONS | {"provider_options": {"TensorrtExecutionProvider": {"trt_fp16_enable": "1"}}}),
        key(options=OPTIONS | {"threads": 2}),
    ],
    ids=["weights", "weights beside", "shapes", "outputs", "which file", "providers", "options", "threads"],
)  # fmt: skip
def test_so_is_every_byte_and_every_option(other: str) -> None:
    assert other != key()


def test_published_models_that_differ_in_weights_alone_have_keys_of_their_own() -> None:
    """What ONNX Runtime's own key is made of is the same in all three: the first one's engine would serve for ever."""
    paths = [silero(version) for version in ("5.1.2", "6.0.0", "6.2.0")]
    assert len({path.stat().st_size for path in paths}) == 1
    assert len({path.name for path in paths}) == 1
    assert len({json.dumps(topology(path)) for path in paths}) == 1
    assert len({key(sealed(path.read_bytes())) for path in paths}) == len(paths)


def topology(path: Path) -> list[Any]:
    """Names of inputs and of what nodes make: what the runtime's key sees of a model."""
    graph = onnx.load(str(path)).graph
    return [[one.name for one in graph.input], [list(node.output) for node in graph.node]]


# --- what the runtime is told ---------------------------------------------------------------------------------------


class Opened(Exception):
    """Instead of a session."""


def told(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> list[Any]:
    """The providers that a session would be opened with, on a machine that has them all."""
    found: list[Any] = []

    def session(path: str, settings: Any, providers: list[Any], enable_fallback: int) -> Any:
        assert not enable_fallback, "another provider would be taken in silence"
        del path, settings
        found.extend(providers)
        raise Opened

    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(LoadError, match="onnxruntime"):
        backend.Session("model.onnx", options)
    return found


def test_the_runtime_is_told_our_folder_and_prefix_and_the_owners_options(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = {"TensorrtExecutionProvider": {"trt_fp16_enable": "1", "trt_engine_cache_path": "/tmp/theirs"}}
    name = key()
    found = dict(
        told(monkeypatch, {**OPTIONS, "provider_options": owner, "engines": ["/slot/.interlock/engines", name]})
    )
    assert found["TensorrtExecutionProvider"] == {
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"/slot/.interlock/engines/{name}",
        "trt_engine_cache_prefix": name[:16],
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/slot/.interlock/engines",
    }
    assert found["CUDAExecutionProvider"] == {}


def test_without_a_provider_that_compiles_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, {"providers": ["CUDAExecutionProvider"]}) == [("CUDAExecutionProvider", {})]
    assert not engines.compiles(["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert engines.compiles(["NvTensorRTRTXExecutionProvider"])


def test_engines_of_another_key_go_when_they_are_replaced(tmp_path: Path) -> None:
    folder, old, new = str(tmp_path / "engines"), "0" * 64, "1" * 64
    assert not engines.make_folder(folder, old)
    (tmp_path / "engines" / old / "x.engine").touch()
    assert engines.make_folder(folder, old), "it is there"
    assert not engines.make_folder(folder, new)
    (tmp_path / "engines" / "timing.cache").touch()
    engines.remove_others(folder, new)
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == [new, "timing.cache"]


def build_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is a file that the CPU's session does not look at."""
    real = backend.Session.__init__

    def on_cpu(self: Any, path: str, options: dict[str, Any]) -> None:
        folder, name = options["engines"]
        Path(folder, name, "built.engine").write_bytes(b"compiled")
        real(self, path, {"providers": ["CPUExecutionProvider"]})

    monkeypatch.setattr(backend.Session, "__init__", on_cpu)


def test_the_engines_of_the_form_that_is_taken_outlive_the_trying_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are candidates in one folder; what serves is started from it again after a power cut, and builds nothing."""
    from interlock_agent.host.worker.__main__ import Worker

    slot = tmp_path / "incoming"
    models.make_slot(slot, "detector", "1.0.0", 1, scale=2.0)
    build_on_cpu(monkeypatch)

    def start(role: str, threads: int) -> dict[str, Any]:
        options = {**OPTIONS, "role": role, "threads": threads}  # threads stand for a form: another key
        return dict(Worker({"folder": str(slot), "socket": str(tmp_path / "w.sock"), "options": options})._engine)

    taken, other = start("candidate", 1), start("candidate", 2)
    assert taken["key"] != other["key"]
    assert start("own", 1) == {"key": taken["key"], "cached": True}
    assert [path.name for path in (slot / ".interlock" / "engines").iterdir()] == [taken["key"]], "the other's are gone"


def test_a_slot_keeps_them_and_is_still_what_was_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first provider compiles, and this runtime has none: the session is the CPU's, the folder is real."""
    from interlock_agent.host.worker.__main__ import Worker

    slot = tmp_path / "a"
    models.make_slot(slot, "detector", "1.0.0", 1, scale=2.0)
    build_on_cpu(monkeypatch)
    found = []
    for _ in range(2):
        order = {"folder": str(slot), "socket": str(tmp_path / "w.sock"), "options": {**OPTIONS, "role": "own"}}
        found.append(Worker(order).loaded()["engine"])
    assert [one["cached"] for one in found] == [False, True]
    assert found[0]["key"] == found[1]["key"]
    assert [path.name for path in (slot / ".interlock" / "engines").iterdir()] == [found[0]["key"]]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"TensorrtExecutionProvider": {"trt_engine_cache_path": "/tmp"}}, "where engines are kept"),
        ({"CUDAExecutionProvider": {"device_id": "1"}}, "not among providers"),
    ],
)
def test_the_owner_sets_options_of_his_providers_but_not_the_cache(given: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Unit(providers=("TensorrtExecutionProvider",), provider_options=given)
    fine = Unit(providers=("CUDAExecutionProvider",), provider_options={"CUDAExecutionProvider": {"device_id": "1"}})
    assert fine.options()["provider_options"] == {"CUDAExecutionProvider": {"device_id": "1"}}
