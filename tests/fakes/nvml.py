"""NVML's Python bindings without a GPU: answers from a table, and refuses what is not in it as the real ones do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """As of the bindings."""


class NVMLLibraryMismatchError(Exception):
    """As of the bindings: no kind of the other."""


class FakeNvml:
    """The module `pynvml`. `answers`: function → what it gives, an error to raise, or a function of its arguments."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVMLError, NVMLLibraryMismatchError = NVMLError, NVMLLibraryMismatchError

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"nvmlInit": None, "nvmlDeviceGetHandleByIndex": "gpu-0", **answers}
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            if name not in self.answers:
                raise NVMLError("Not Supported")
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return call


def l4(**changed: Any) -> FakeNvml:
    """One NVIDIA L4 with a process on it (pid 11: compute and graphics) and one that does not tell (pid 12)."""
    processes = [SimpleNamespace(pid=11, usedGpuMemory=300 * 2**20), SimpleNamespace(pid=12, usedGpuMemory=None)]
    usual: dict[str, Any] = {
        "nvmlSystemGetDriverVersion": "550.54.15",
        "nvmlSystemGetCudaDriverVersion_v2": 12040,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetName": "NVIDIA L4",
        "nvmlDeviceGetCudaComputeCapability": (8, 9),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * 2**30, free=20 * 2**30, used=4 * 2**30),
        "nvmlDeviceGetComputeRunningProcesses": processes,
        "nvmlDeviceGetGraphicsRunningProcesses": processes[:1],
        "nvmlDeviceGetTotalEnergyConsumption": 5_000,
        "nvmlDeviceGetCurrentClocksEventReasons": 0x1,
        "nvmlDeviceGetViolationStatus": SimpleNamespace(referenceTime=9, violationTime=0),
        "nvmlDeviceGetEnforcedPowerLimit": 72_000,
        "nvmlDeviceGetMaxClockInfo": lambda gpu, clock: {1: 2040, 2: 6251}[clock],
        "nvmlDeviceGetApplicationsClock": lambda gpu, clock: {1: 2040, 2: 6251}[clock],
        "nvmlDeviceGetClockInfo": lambda gpu, clock: {1: 210, 2: 405}[clock],
        "nvmlDeviceGetPerformanceState": 8,
        "nvmlDeviceGetPowerUsage": 16_500,
        "nvmlDeviceGetTemperature": 41,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=3, memory=0),
    }
    return FakeNvml(**(usual | changed))
