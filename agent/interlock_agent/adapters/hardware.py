"""What this device is, and how it is now. Each fact is optional: what cannot be read is left out, never guessed.

On a Jetson the kernel's files speak, on a discrete NVIDIA GPU the driver's library (NVML), and `nvidia-smi` where its
Python bindings are not installed; any other device is its CPU. What changes from minute to minute is no part of the
fingerprint: a verdict holds as long as the fingerprint does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlock_agent.adapters.telemetry import jetson
from interlock_agent.adapters.telemetry.energy import Meter, Rails, Rapl
from interlock_agent.adapters.telemetry.nvml import Nvml
from interlock_agent.adapters.telemetry.sysfs import Tree

VERSIONS_TIMEOUT_S = 30.0

# Run by the worker's Python, which may be another one than ours: its packages' versions, without importing them.
_VERSIONS = """
import importlib.metadata as m, json, platform
found = {"python": platform.python_version()}
for name, packages in {"onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "tensorrt": ("tensorrt",)}.items():
    for package in packages:
        try:
            found.setdefault(name, m.version(package))
        except m.PackageNotFoundError:
            pass
print(json.dumps(found))
"""

# The newest opset of ONNX that its runtime answers for, in the runtime's own words: no function tells it, but the
# refusal of a model (IR 8, opset 1000, an empty graph "g") does.
_OPSET = """
import json, os, re, tempfile
folder = tempfile.TemporaryDirectory()
os.environ["TMPDIR"] = folder.name  # the runtime leaves a file there
import onnxruntime
try:
    onnxruntime.InferenceSession(bytes.fromhex("08084203" "10e807" "3a03" "120167"), providers=["CPUExecutionProvider"])
except Exception as refusal:  # of whatever class: this is a child's program, and what it cannot tell is left out
    said = re.search(r"domain ai[.]onnx is till opset (\\d+)", str(refusal))
    print(json.dumps({"opset": int(said[1])} if said else {}))
"""

# `--query-gpu` of nvidia-smi, which comes with every NVIDIA driver.
_GPU_QUERY = {
    "gpu": "name",
    "compute_capability": "compute_cap",
    "driver": "driver_version",
    "gpu_memory_bytes": "memory.total",  # in MiB
}
_DRIVER = "proc/driver/nvidia/version"

# Small files that say what the device's speed is limited by.
_PACE = (
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",
    "sys/class/thermal/cooling_device[0-9]*/cur_state",
    "sys/devices/gpu.0/devfreq/*/max_freq",
    "sys/class/devfreq/*/max_freq",
    "sys/class/hwmon/hwmon[0-9]*/oc[0-9]*_event_cnt",  # Jetson: throttled for too much current
    "var/lib/nvpmodel/status",
)


async def _output(*command: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    try:
        out, _ = await asyncio.wait_for(process.communicate(), VERSIONS_TIMEOUT_S)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        return ""
    return out.decode(errors="replace") if process.returncode == 0 else ""


async def _told_by(python: str, program: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        return dict(json.loads(await _output(python, "-c", program) or "{}"))
    return {}


def boot() -> str:
    """This boot of the machine, in short; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return ""


class LocalHardware:
    """The Hardware port. `root`: where the kernel's files are; `state`: the folder whose disk is looked at."""

    def __init__(self, state: Path | None = None, root: Path = Path("/"), nvml: Nvml | None = None) -> None:
        self._tree, self._state = Tree(root), state
        self._nvml = nvml or Nvml()
        self._meter = Meter(
            gpu=lambda: self._gpu.energy_j() if self._gpu else None,
            packages=Rapl(self._tree),
            rails=Rails(self._tree, time.monotonic),
        )

    @functools.cached_property
    def _jetson(self) -> dict[str, Any]:
        return jetson.facts(self._tree)

    @functools.cached_property
    def _gpu(self) -> Nvml | None:
        """The discrete GPU; without a driver its library is not even looked for."""
        return self._nvml if self._tree.text(_DRIVER) and not self._jetson.get("gpu_integrated") else None

    async def fingerprint(self, worker_python: str) -> dict[str, Any]:
        """Facts that verdicts and engines depend on."""
        python = worker_python or sys.executable
        facts, versions, opset = await asyncio.gather(
            asyncio.to_thread(self._static), _told_by(python, _VERSIONS), _told_by(python, _OPSET)
        )
        facts |= versions | opset
        if self._gpu is not None and "gpu" not in facts:
            facts |= await self._nvidia_smi()
        return facts

    def _static(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "arch": platform.machine(),
            "os": platform.system().lower(),
            "cpu": self._cpu(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }
        board = self._tree.text("proc/device-tree/model")
        if board:
            facts["board"] = board
        facts |= jetson.facts(self._tree)  # its power mode may be another one by now
        if self._jetson.get("gpu_integrated"):
            facts["gpu_memory_bytes"] = facts["memory_bytes"]
        return facts | (self._gpu.facts() if self._gpu is not None else {})

    def _cpu(self) -> str:
        for line in self._tree.text("proc/cpuinfo").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
        return platform.machine()

    @staticmethod
    async def _nvidia_smi() -> dict[str, Any]:
        query = ",".join(_GPU_QUERY.values())
        said = await _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits")
        values = [part.strip() for part in said.splitlines()[0].split(",")] if said else []
        facts: dict[str, Any] = dict(zip(_GPU_QUERY, values, strict=False))
        memory = str(facts.pop("gpu_memory_bytes", ""))
        if memory.isdigit():
            facts["gpu_memory_bytes"] = int(memory) * 2**20
        return {name: value for name, value in facts.items() if value and not str(value).startswith("[")}  # [N/A]

    async def environment(self) -> dict[str, Any]:
        """Load, free memory, clocks, temperatures, power mode: what is to be had here."""
        return await asyncio.to_thread(self._now)

    def _now(self) -> dict[str, Any]:
        now: dict[str, Any] = {"load": [round(value, 2) for value in os.getloadavg()], **self.free()}
        cpu = "sys/devices/system/cpu/cpu0/cpufreq"
        zones = self._tree.names("sys/class/thermal/thermal_zone*/temp")
        found: dict[str, Any] = {
            "cpu_khz": self._tree.number(f"{cpu}/scaling_cur_freq"),
            "governor": self._tree.text(f"{cpu}/scaling_governor"),
            "celsius": {zone.split("/")[-2]: heat / 1000 for zone in zones if (heat := self._tree.number(zone))},
            "power_mode": jetson.power_mode(self._tree),
            "gpu": self._gpu.now() if self._gpu is not None else {},
            "energy": self._meter.names,
        }
        return now | {name: value for name, value in found.items() if value}

    def pace(self) -> Mapping[str, str]:
        """Governor, clock limit and throttle counts of each CPU; cooling; Jetson's power mode; what limits the GPU."""
        told = {path: text for path in self._pace_files if (text := self._tree.text(path))}
        return told if self._gpu is None else told | self._gpu.pace()

    @functools.cached_property
    def _pace_files(self) -> tuple[str, ...]:
        found = (path for pattern in _PACE for path in self._tree.names(pattern))
        return tuple(path for path in found if self._tree.text(path) and not self._is_fan(path))

    def _is_fan(self, path: str) -> bool:
        """A fan cools as it likes: it slows nothing down."""
        return path.endswith("/cur_state") and "fan" in self._tree.text(path.replace("cur_state", "type")).lower()

    def free(self) -> Mapping[str, int]:
        """Memory available to a new process, on the CPU and on the GPU, and room on the disk."""
        memory = self._tree.field("proc/meminfo", "MemAvailable")
        gpu = memory if self._jetson.get("gpu_integrated") else self._gpu.free_bytes() if self._gpu else None
        told = {"memory_free_bytes": memory, "gpu_memory_free_bytes": gpu, "disk_free_bytes": self._disk()}
        return {name: size for name, size in told.items() if size is not None}

    def _disk(self) -> int | None:
        try:
            return None if self._state is None else shutil.disk_usage(self._state).free
        except OSError:
            return None

    def process(self, pid: int) -> Mapping[str, int]:
        """Memory of a process: its peak, what it holds now, and what it holds on a GPU that has memory of its own."""
        status = f"proc/{pid}/status"
        told = {
            "peak_bytes": self._tree.field(status, "VmHWM"),
            "resident_bytes": self._tree.field(status, "VmRSS"),
            "gpu_bytes": self._gpu.process_bytes(pid) if self._gpu is not None else None,
        }
        return {name: size for name, size in told.items() if size is not None}

    def gpu_faults(self) -> int | None:
        """Critical faults that the driver has told of; None where there is no GPU that does."""
        return self._gpu.faults() if self._gpu is not None else None

    def energy_j(self) -> float | None:
        """GPU and CPU packages, or the rails of a Jetson."""
        return self._meter.read_j()
