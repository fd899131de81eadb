"""What this device is, and how it is now. Each fact is optional: what cannot be read is left out, never guessed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

# `--query-gpu` of nvidia-smi, which comes with every NVIDIA driver (not on Jetson, where the tree in /proc speaks).
_GPU_QUERY = {
    "gpu": "name",
    "compute_capability": "compute_cap",
    "driver": "driver_version",
    "gpu_memory": "memory.total",
}


# Small files that say what the device's speed is limited by.
_PACE = (
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",
    "sys/class/thermal/cooling_device[0-9]*/cur_state",
    "sys/devices/gpu.0/devfreq/*/max_freq",
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


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _cpu() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


class LocalHardware:
    """The Hardware port."""

    async def fingerprint(self, worker_python: str) -> dict[str, Any]:
        """Facts that verdicts and engines depend on."""
        facts = await asyncio.to_thread(self._static)
        with contextlib.suppress(ValueError):
            facts.update(json.loads(await _output(worker_python or sys.executable, "-c", _VERSIONS) or "{}"))
        query = ",".join(_GPU_QUERY.values())
        gpu = await _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits")
        if gpu:
            facts.update(zip(_GPU_QUERY, (part.strip() for part in gpu.splitlines()[0].split(",")), strict=False))
        return facts

    @staticmethod
    def _static() -> dict[str, Any]:
        facts: dict[str, Any] = {
            "arch": platform.machine(),
            "os": platform.system().lower(),
            "cpu": _cpu(),
            "cpus": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }
        board, l4t = _read("/proc/device-tree/model"), _read("/etc/nv_tegra_release")
        if board:
            facts["board"] = board
        if l4t:
            facts["l4t"] = l4t.splitlines()[0]
        return facts

    async def environment(self) -> dict[str, Any]:
        """Load, clocks, temperatures, power mode: what is to be had here."""
        return await asyncio.to_thread(self._now)

    def _now(self) -> dict[str, Any]:
        now: dict[str, Any] = {"load": [round(value, 2) for value in os.getloadavg()]}
        free = self.free_memory()
        if free is not None:
            now["memory_free_bytes"] = free
        clock = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
        if clock.isdigit():
            now["cpu_khz"] = int(clock)
        governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        if governor:
            now["governor"] = governor
        zones = sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))
        heat = {
            zone.parent.name: int(text) / 1000 for zone in zones if (text := _read(str(zone))).lstrip("-").isdigit()
        }
        if heat:
            now["celsius"] = heat
        return now

    def pace(self) -> Mapping[str, str]:
        """Governor, clock limit and throttle counts of each CPU; cooling; Jetson's power mode."""
        return {path: text for path in self._pace_files if (text := _read(path))}

    @functools.cached_property
    def _pace_files(self) -> tuple[str, ...]:
        found = (str(path) for pattern in _PACE for path in Path("/").glob(pattern))
        return tuple(path for path in sorted(found) if _read(path))

    def free_memory(self) -> int | None:
        """Bytes available to a new process."""
        for line in _read("/proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
