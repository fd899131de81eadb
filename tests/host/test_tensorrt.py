"""TensorRT as a backend, on a stand-in for TensorRT and CUDA: what is built, kept, run and refused. On a GPU the same
backend is run by tests/gpu.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlock_agent.host.worker import fatal
from interlock_agent.host.worker.backends import cuda
from interlock_agent.host.worker.errors import BadRequest, LoadError
from tests.host import models, tensorrt_fake

NAME = "interlock_agent.host.worker.backends.tensorrt"
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def cudart() -> tensorrt_fake.Cudart:
    return tensorrt_fake.Cudart()


@pytest.fixture
def backend(cudart: tensorrt_fake.Cudart, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_fake.module())
    monkeypatch.setattr(cuda, "load", lambda: cudart)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    models.make_model(tmp_path / "model.onnx", 3.0)
    (tmp_path / "engines" / "k").mkdir(parents=True)
    said = {"fp16": True, "workspace_mib": 64, "max_batch": 4, "opt_batch": 2}
    return {"engines": [str(tmp_path / "engines"), "k"], "tensorrt": said, "serve": {"file": "model.onnx"}}


def test_an_engine_is_built_from_onnx_and_found_again(backend: Any, options: dict[str, Any], tmp_path: Path) -> None:
    path = str(tmp_path / "model.onnx")
    for _ in range(2):
        session = backend.Session(path, options)
        assert session.run(["y"], {"x": X})[0].tolist() == (3 * X).tolist()
    (config,) = backend.trt.built
    assert (config.flags, config.pool) == (["fp16"], ("workspace", 64 << 20))
    assert config.profile.shapes == {"x": ([1, 4], [2, 4], [4, 4])}
    assert (tmp_path / "engines" / "timing.cache").read_bytes() == b"timed "
    assert [path.name for path in (tmp_path / "engines" / "k").iterdir()] == ["model.plan"]
    assert session.inputs == [{"name": "x", "dtype": "FP32", "shape": [-1, 4]}]
    assert (session.providers, session.runtime, session.on_cpu) == (["TensorRT"], "tensorrt 10.3.0", False)
    assert backend.Session.compiles(options)


def test_an_engine_that_was_built_elsewhere_is_opened_as_it_is(backend: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_text(json.dumps({"factor": 5.0, "profile": None}))
    assert not backend.Session.compiles({"serve": {"file": "model.plan"}})
    session = backend.Session(str(path), {})
    assert session.run(["y"], {"x": X[:1]})[0].tolist() == (5 * X[:1]).tolist()
    path.write_text("of another TensorRT")
    with pytest.raises(LoadError, match="not for this TensorRT"):
        backend.Session(str(path), {})


def test_a_batch_that_it_was_not_built_for_is_the_clients_fault(
    backend: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    session = backend.Session(str(tmp_path / "model.onnx"), options)
    with pytest.raises(BadRequest, match="not built for"):
        session.run(["y"], {"x": np.zeros((5, 4), np.float32)})
    assert session.run(["y"], {"x": X})[0].shape == (2, 4), "and it goes on"


def test_what_is_no_onnx_says_so(backend: Any, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(LoadError, match="this is no ONNX"):
        backend.Session(str(tmp_path / "model.onnx"), options)


def test_another_dynamic_axis_than_the_first_is_refused(
    backend: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.make_model(tmp_path / "model.onnx", 3.0, width="M")  # type: ignore[arg-type]  # a name: dynamic
    with pytest.raises(LoadError, match="only the first axis"):
        backend.Session(str(tmp_path / "model.onnx"), options)


def test_memory_on_the_device_is_kept_and_grows(
    backend: Any, options: dict[str, Any], cudart: tensorrt_fake.Cudart, tmp_path: Path
) -> None:
    session = backend.Session(str(tmp_path / "model.onnx"), {**options, "concurrency": 1})
    for rows in (1, 1, 2, 1):
        session.run(["y"], {"x": X[:rows]})
    assert (len(cudart.memory), cudart.freed) == (2, 2)


def test_a_lost_context_is_told_as_cuda_tells_it(
    backend: Any, options: dict[str, Any], cudart: tensorrt_fake.Cudart, tmp_path: Path
) -> None:
    session = backend.Session(str(tmp_path / "model.onnx"), options)
    cudart.broken = tensorrt_fake.ILLEGAL
    with pytest.raises(cuda.CudaError, match="CUDA failure 700: an illegal memory access") as lost:
        session.run(["y"], {"x": X})
    assert fatal.why(lost.value).startswith("gpu_fault"), "which ends the worker"


def test_without_cuda_it_does_not_load(
    backend: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Any:
        raise OSError("none of libcudart.so can be loaded")

    monkeypatch.setattr(cuda, "load", missing)
    with pytest.raises(LoadError, match="libcudart"):
        backend.Session(str(tmp_path / "model.onnx"), options)
