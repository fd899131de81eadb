"""What the tests on a GPU need: an NVIDIA GPU, and ONNX Runtime with CUDA here (`make test EXTRA=gpu`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock_agent.adapters.telemetry.nvml import Nvml
from tests.e2e.test_dry_run import Bench
from tests.e2e.world import temporary

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


def missing(provider: str) -> str:
    """Why a provider cannot be used here; empty where it can."""
    if not Path("/proc/driver/nvidia/version").exists() and not Path("/etc/nv_tegra_release").exists():
        return "this machine has no NVIDIA GPU (no driver is loaded)"
    if importlib.util.find_spec("onnxruntime") is None:
        return "this environment has no ONNX Runtime: make test EXTRA=gpu"
    import onnxruntime

    return "" if provider in onnxruntime.get_available_providers() else f"ONNX Runtime here has no {provider}"


class OnGpu(Bench):
    """A bench whose models run on providers of a GPU."""

    def __init__(self, folder: Path, *providers: str) -> None:
        super().__init__(folder)
        listed = ", ".join(f'"{provider}"' for provider in providers)
        plain = self.config.read_text()
        self.config.write_text(plain.replace("[defaults.gate]", f"[defaults]\nproviders = [{listed}]\n[defaults.gate]"))


@pytest.fixture(scope="module")
def cuda() -> Iterator[OnGpu]:
    why = missing(CUDA)
    if why:
        pytest.skip(why)
    with temporary() as folder:
        yield OnGpu(folder, CUDA, CPU)


@pytest.fixture(scope="module")
def tensorrt() -> Iterator[OnGpu]:
    why = missing(TENSORRT)
    if why:
        pytest.skip(why)
    with temporary() as folder:
        yield OnGpu(folder, TENSORRT, CUDA, CPU)


@pytest.fixture(scope="module")
def nvml() -> Nvml:
    why = missing(CUDA)
    if why:
        pytest.skip(why)
    return Nvml()


@pytest.fixture
def tensorrt_alone() -> None:
    """TensorRT's own Python package, with CUDA's runtime beside it."""
    if not Path("/proc/driver/nvidia/version").exists() and not Path("/etc/nv_tegra_release").exists():
        pytest.skip("this machine has no NVIDIA GPU (no driver is loaded)")
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("this environment has no package tensorrt")
