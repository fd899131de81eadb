"""The gate on a GPU: where it runs, what it measures, what is left of it. Skipped where there is no NVIDIA GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from interlock_agent.adapters.telemetry.nvml import Nvml
from tests.e2e import releases
from tests.e2e.test_dry_run import bundle, packed
from tests.gpu.conftest import CPU, CUDA, TENSORRT, OnGpu
from tests.rig.fleet import until

pytestmark = pytest.mark.gpu

MIB = 1 << 20


def checks(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["check"]: check for stage in verdict["stages"] for check in stage["checks"]}


def test_a_model_is_judged_on_the_gpu_and_beside_its_twin(cuda: OnGpu) -> None:
    code, said = cuda.gate(cuda.good, "--against", cuda.old)
    verdict = said["verdict"]
    found = checks(verdict)
    assert (code, verdict["outcome"]) == (0, "accept"), verdict["message"]
    assert found["providers"]["outcome"] == "pass"
    assert found["latency_ratio_work"]["detail"]["work"] == "wall"
    assert verdict["fingerprint"]["gpu"]
    assert verdict["fingerprint"]["driver"]
    cuda.nothing_is_left()


def test_what_it_holds_on_the_gpu_is_told_or_said_not_to_be(cuda: OnGpu) -> None:
    _, said = cuda.gate(cuda.good)
    row = checks(said["verdict"])["gpu_memory_peak"]
    if row["reason"] in (
        "not_told",
        "integrated",
    ):  # in a container the driver tells no process; a Jetson has one memory
        assert row["outcome"] == "not_applicable"
    else:
        assert row["measured"] > 50 * MIB, "a CUDA context alone is more"


def test_answers_that_are_wrong_on_the_gpu_are_refused(cuda: OnGpu) -> None:
    code, said = cuda.gate(cuda.wrong, "--against", cuda.old)
    assert (code, said["verdict"]["reason"]) == (1, "golden_mismatch")


def test_a_part_that_would_fall_back_to_the_cpu_is_no_success(cuda: OnGpu) -> None:
    """A string is of no use to CUDA: with the fall-back switched off, such a model does not load."""
    folder = releases.write(cuda.folder / "fallback", "1.4.0", 3.0)
    model = onnx.load(str(folder / "model.onnx"))
    graph = model.graph
    graph.node.extend(
        [
            helper.make_node("Cast", [graph.output[0].name], ["text"], to=TensorProto.STRING),
            helper.make_node("Cast", ["text"], ["again"], to=TensorProto.FLOAT),
        ]
    )
    again = helper.make_tensor_value_info("again", TensorProto.FLOAT, ["N", "M"])
    graph.output.append(again)
    onnx.save(model, str(folder / "model.onnx"))
    code, said = cuda.gate(packed(folder))
    assert code == 1
    assert said["verdict"]["reason"] in ("load_failed", "provider_fallback"), said["verdict"]["message"]


def test_the_end_of_the_gate_returns_the_gpus_memory(cuda: OnGpu, nvml: Nvml) -> None:
    before = nvml.free_bytes()
    if before is None:
        pytest.skip("this GPU does not tell its free memory")
    cuda.gate(cuda.good, "--against", cuda.old)
    until(lambda: (nvml.free_bytes() or 0) >= before - 16 * MIB, "the memory to come back")


def test_engines_are_built_under_our_key_and_found_again(tensorrt: OnGpu, tmp_path: Path) -> None:
    from interlock_agent.host.worker.__main__ import Worker
    from tests.host import models

    slot = tmp_path / "a"
    models.make_slot(slot, "detector", "1.0.0", 1, scale=2.0)
    options = {"providers": [TENSORRT, CUDA, CPU], "threads": 1, "role": "own"}
    found = []
    for number in range(2):
        worker = Worker({"folder": str(slot), "socket": str(tmp_path / f"{number}.sock"), "options": dict(options)})
        worker.answer({"probe": {"first": 0, "runs": 1}})
        found.append(worker.loaded()["engine"])
    assert [one["cached"] for one in found] == [False, True]
    (folder,) = (path for path in (slot / ".interlock" / "engines").iterdir() if path.is_dir())
    assert folder.name == found[0]["key"]
    assert list(folder.iterdir()), "the runtime has kept its engine there"


def test_other_weights_under_the_same_names_are_not_the_old_ones(tensorrt: OnGpu) -> None:
    """What ONNX Runtime's own key would serve: the golden outputs say whose weights answered."""
    one, two = (bundle(tensorrt.folder, version, scale) for version, scale in (("1.5.0", 2.0), ("1.6.0", 4.0)))
    for path in (one, two):
        code, said = tensorrt.gate(path)
        assert code == 0, json.dumps(said["verdict"]["message"])


def test_tensorrt_alone_builds_an_engine_and_answers_right(tensorrt_alone: None, tmp_path: Path) -> None:
    from interlock_agent.host.worker.backends.tensorrt import Session
    from tests.host import models

    models.make_model(tmp_path / "model.onnx", 3.0)
    (tmp_path / "engines" / "k").mkdir(parents=True)
    options = {"engines": [str(tmp_path / "engines"), "k"], "tensorrt": {"max_batch": 4}}
    for _ in range(2):  # the second time from what was kept
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        answer = Session(str(tmp_path / "model.onnx"), options).run(["y"], {"x": x})[0]
        assert np.allclose(answer, 3 * x, rtol=1e-3)
