"""Discrete NVIDIA GPUs, through the driver's own library (NVML) and its Python bindings, the package nvidia-ml-py.

One session, opened when it is first needed and kept until the process ends: asking then takes less than a millisecond.
The bindings are imported only where the driver is loaded, since they take 18 MB. What the GPU does not tell is left
out; so is everything where the bindings are not installed. It is the first GPU that is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Bits of the clocks' event reasons (nvml.h, nvmlClocksEventReasons) that come from heat or from the board's supply. Not
# among them: idle and the clocks that somebody has set, which come and go with the load, and the power cap, at which a
# small board stands whenever it works.
SLOWED = 0x8 | 0x20 | 0x40 | 0x80 | 0x200 | 0x400
XID_EVENT = 0x8  # nvmlEventTypeXidCriticalError
FAULTS_AT_ONCE = 1000  # that are fetched: a GPU that faults without end is found out all the same
THERMAL = 1  # NVML_PERF_POLICY_THERMAL


def bindings() -> Any:
    """The module. Raises ImportError."""
    import pynvml

    return pynvml


class Nvml:
    """The first GPU. `load` gives the bindings; a test gives its own."""

    def __init__(self, load: Callable[[], Any] = bindings) -> None:
        self._load = load
        self._library: Any = None
        self._gpu: Any = None
        self._tried = False
        self._refusals: tuple[type[Exception], ...] = ()
        self._events: Any = None  # where the driver puts faults
        self._faults = 0

    def _open(self) -> bool:
        if not self._tried:
            self._tried = True
            try:
                library = self._load()
            except ImportError:
                return False
            try:
                library.nvmlInit()
                self._gpu = library.nvmlDeviceGetHandleByIndex(0)
            except library.NVMLError:  # the driver's library is not there, no GPU, or no right to it
                return False
            self._library = library
            self._refusals = (library.NVMLError, getattr(library, "NVMLLibraryMismatchError", library.NVMLError))
        return self._library is not None

    def _ask(self, name: str, *arguments: Any, gpu: bool = True) -> Any:
        """The answer of one function; None where the GPU, the driver or the bindings do not have it."""
        if not self._open():
            return None
        function = getattr(self._library, name, None)
        try:
            return None if function is None else function(*((self._gpu,) if gpu else ()), *arguments)
        except self._refusals:
            return None

    def faults(self) -> int | None:
        """Critical faults (Xid) of the GPU since this was first asked; None where the driver does not tell of them. The
        driver keeps them until they are fetched: this does not wait."""
        if self._events is None:
            told = self._ask("nvmlDeviceGetSupportedEventTypes")
            made = self._ask("nvmlEventSetCreate", gpu=False) if told is not None and told & XID_EVENT else None
            if made is None or not self._registered(made):
                return None
            self._events = made
        for _ in range(FAULTS_AT_ONCE):
            event = self._ask("nvmlEventSetWait_v2", self._events, 0, gpu=False)
            if event is None:  # none waits: it says so by an error, a timeout
                break
            self._faults += 1
        return self._faults

    def _registered(self, events: Any) -> bool:
        try:
            self._library.nvmlDeviceRegisterEvents(self._gpu, XID_EVENT, events)
        except self._refusals:
            return False
        return True

    def facts(self) -> dict[str, Any]:
        """For the fingerprint."""
        found: dict[str, Any] = {
            "gpu": self._ask("nvmlDeviceGetName"),
            "driver": self._ask("nvmlSystemGetDriverVersion", gpu=False),
        }
        capability, cuda = self._ask("nvmlDeviceGetCudaComputeCapability"), self._cuda()
        memory, count = self._ask("nvmlDeviceGetMemoryInfo"), self._ask("nvmlDeviceGetCount", gpu=False)
        if capability is not None:
            found["compute_capability"] = ".".join(str(part) for part in capability)
        if cuda:
            found["cuda"] = cuda
        if memory is not None:
            found["gpu_memory_bytes"] = int(memory.total)
        if count is not None and count > 1:
            found["gpus"] = int(count)
        return {name: value for name, value in found.items() if value}

    def _cuda(self) -> str:
        """The newest CUDA that the driver takes: 12040 is 12.4."""
        number = self._ask("nvmlSystemGetCudaDriverVersion_v2", gpu=False)
        return f"{number // 1000}.{number % 1000 // 10}" if number else ""

    def free_bytes(self) -> int | None:
        """Free memory of the GPU."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.free)

    def process_bytes(self, pid: int) -> int | None:
        """Memory that a process holds on the GPU; None where it is not listed (in a container pids may differ)."""
        lists = (
            self._ask(name)
            for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        )
        mine = [one.usedGpuMemory for found in lists for one in found or () if one.pid == pid]
        held = [int(size) for size in mine if size is not None]
        return max(held, default=None)  # in both lists it is the same memory

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def pace(self) -> dict[str, str]:
        """Slowed by heat or supply, for how long in all; power limit; the clocks that somebody has set."""
        reasons = self._reasons()
        heat = self._ask("nvmlDeviceGetViolationStatus", THERMAL)
        told = {
            "gpu_slowed": None if reasons is None else reasons & SLOWED,
            "gpu_slowed_by_heat_ns": None if heat is None else heat.violationTime,
            "gpu_power_limit_mw": self._ask("nvmlDeviceGetEnforcedPowerLimit"),
        }
        for name, clock in (("sm", "NVML_CLOCK_SM"), ("memory", "NVML_CLOCK_MEM")):
            number = getattr(self._library, clock, None)
            if number is not None:
                told[f"gpu_{name}_mhz_max"] = self._ask("nvmlDeviceGetMaxClockInfo", number)
                told[f"gpu_{name}_mhz_set"] = self._ask("nvmlDeviceGetApplicationsClock", number)
        return {name: str(value) for name, value in told.items() if value is not None}

    def _reasons(self) -> int | None:
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            reasons = self._ask(name)
            if reasons is not None:
                return int(reasons)
        return None

    def now(self) -> dict[str, Any]:
        """Temperature, clocks, power, utilisation, performance state, why the clocks are not higher."""
        told: dict[str, Any] = {"performance_state": self._ask("nvmlDeviceGetPerformanceState")}
        reasons, milliwatts = self._reasons(), self._ask("nvmlDeviceGetPowerUsage")
        busy = self._ask("nvmlDeviceGetUtilizationRates")
        told["clocks_event_reasons"] = None if reasons is None else hex(reasons)
        told["watts"] = None if milliwatts is None else milliwatts / 1000
        told["busy_percent"] = None if busy is None else int(busy.gpu)
        told["celsius"] = self._ask("nvmlDeviceGetTemperature", getattr(self._library, "NVML_TEMPERATURE_GPU", 0))
        told["sm_mhz"] = self._ask("nvmlDeviceGetClockInfo", getattr(self._library, "NVML_CLOCK_SM", 1))
        told["memory_mhz"] = self._ask("nvmlDeviceGetClockInfo", getattr(self._library, "NVML_CLOCK_MEM", 2))
        return {name: value for name, value in told.items() if value is not None}
