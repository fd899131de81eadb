"""What a device tells of itself, from folders that look like a Jetson's, a server's with a GPU, and a bare machine's.

No GPU and no Jetson was there to write these from: they hold what NVIDIA's and the kernel's documents say.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interlock_agent.adapters.hardware import LocalHardware
from interlock_agent.adapters.telemetry.energy import Meter, Rails, Rapl
from interlock_agent.adapters.telemetry.nvml import Nvml
from interlock_agent.adapters.telemetry.sysfs import Tree
from interlock_agent.core import contract as contracts
from interlock_shared.manifest import Requirement
from tests.fakes.nvml import FakeNvml, NVMLError, NVMLLibraryMismatchError, l4

MEMINFO = "MemTotal:  16000000 kB\nMemFree: 100 kB\nMemAvailable:   8000000 kB\n"
ORIN = {
    "proc/meminfo": MEMINFO,
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
    "proc/device-tree/bus@0/gpu@17000000/compatible": "nvidia,ga10b\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": "< PARAM TYPE=FILE >\n< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n",
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
    "var/lib/dpkg/status": "Package: nvidia-jetpack\nStatus: ok\nVersion: 6.2+b77\n\nPackage: z\nVersion: 1\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
    "sys/class/hwmon/hwmon2/oc1_event_cnt": "0\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "1\n",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device1/cur_state": "0\n",
    "sys/class/thermal/thermal_zone0/temp": "48500\n",
    "sys/class/hwmon/hwmon1/name": "ina3221\n",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon1/in1_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr1_input": "2000\n",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon1/in2_input": "5000\n",
    "sys/class/hwmon/hwmon1/curr2_input": "1000\n",
}
SERVER = {
    "proc/meminfo": MEMINFO,
    "proc/cpuinfo": "model name\t: Xeon\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15\n",
    "proc/11/status": "Name:\tpython\nVmHWM:\t    2000 kB\nVmRSS:\t    1500 kB\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "900\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "1000\n",
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "500\n",
    "sys/class/powercap/intel-rapl:1/name": "psys\n",
    "sys/class/powercap/intel-rapl:1/energy_uj": "77\n",
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def device(folder: Path, files: dict[str, str], library: FakeNvml | None = None) -> LocalHardware:
    def load() -> Any:
        if library is None:
            raise ImportError("pynvml")
        return library

    return LocalHardware(folder, tree(folder, files), Nvml(load))


async def test_a_jetson_tells_what_it_is(tmp_path: Path) -> None:
    library = l4()
    facts = await device(tmp_path, ORIN, library).fingerprint(sys.executable)
    wanted = {
        "board": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "l4t": "36.4.3",
        "jetpack": "6.2+b77",
        "cuda": "12.6.68",
        "power_mode": "15W",
        "gpu": "Orin (ga10b)",
        "compute_capability": "8.7",
        "driver": "L4T 36.4.3",
        "gpu_integrated": True,
        "gpu_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    assert {name: facts.get(name) for name in wanted} == wanted
    assert library.calls == [], "the device tree knows the GPU: NVML is not asked"
    asked = [
        Requirement(fact="l4t", op=">=", value="36.4"),
        Requirement(fact="compute_capability", op=">=", value="8.0"),
    ]
    assert contracts.unmet(asked, facts) == []


@pytest.mark.parametrize(
    ("changes", "gone", "facts"),
    [
        ({}, ["etc/nvpmodel.conf"], {"power_mode": "2"}),
        ({"var/lib/nvpmodel/status": "pmode:0000"}, [], {"power_mode": "MAXN"}),
        ({}, ["var/lib/nvpmodel/status", "usr/local/cuda/version.json"], {"power_mode": None, "cuda": None}),
        ({"usr/local/cuda/version.json": "{"}, [], {"cuda": None}),
        ({}, ["var/lib/dpkg/status"], {"jetpack": None}),
        ({"etc/nv_tegra_release": "mended by hand"}, [], {"l4t": None, "driver": None, "gpu": "Orin (ga10b)"}),
        ({"proc/device-tree/bus@0/gpu@17000000/compatible": "nvidia,other"}, [], {"gpu": None, "l4t": "36.4.3"}),
    ],
)
async def test_what_a_jetson_does_not_tell_is_left_out(
    tmp_path: Path, changes: dict[str, str], gone: list[str], facts: dict[str, str | None]
) -> None:
    files = {name: text for name, text in {**ORIN, **changes}.items() if name not in gone}
    found = await device(tmp_path, files).fingerprint("/no/python")
    assert {name: found.get(name) for name in facts} == facts
    assert "opset" not in found


async def test_an_older_jetson_has_its_gpu_at_another_place(tmp_path: Path) -> None:
    files = {"proc/device-tree/gv11b/compatible": "nvidia,gv11b\0nvidia,tegra194-gv11b\0", "proc/meminfo": MEMINFO}
    found = await device(tmp_path, files).fingerprint("/no/python")
    assert (found["gpu"], found["compute_capability"]) == ("Xavier (gv11b)", "7.2")
    assert "driver" not in found


async def test_a_discrete_gpu_is_asked_through_nvml(tmp_path: Path) -> None:
    library = l4()
    hardware = device(tmp_path, SERVER, library)
    facts = await hardware.fingerprint(sys.executable)
    assert {name: facts[name] for name in ("cpu", "gpu", "compute_capability", "driver", "cuda")} == {
        "cpu": "Xeon", "gpu": "NVIDIA L4", "compute_capability": "8.9", "driver": "550.54.15", "cuda": "12.4",
    }  # fmt: skip
    assert facts["gpu_memory_bytes"] == 24 * 2**30
    assert not {"gpus", "gpu_integrated", "board"} & set(facts)
    assert hardware.free()["gpu_memory_free_bytes"] == 20 * 2**30
    assert (await hardware.environment())["gpu"] == {
        "performance_state": 8, "clocks_event_reasons": "0x1", "watts": 16.5, "busy_percent": 3, "celsius": 41,
        "sm_mhz": 210, "memory_mhz": 405,
    }  # fmt: skip
    assert [call for call in library.calls if call[0] == "nvmlInit"] == [("nvmlInit",)], "one session"


async def test_the_runtime_itself_tells_its_opset(tmp_path: Path) -> None:
    facts = await device(tmp_path, {}).fingerprint(sys.executable)
    assert isinstance(facts["opset"], int)
    assert facts["opset"] >= 23
    assert not {"gpu", "driver", "gpu_memory_bytes", "l4t", "power_mode"} & set(facts)


async def test_several_gpus_are_counted(tmp_path: Path) -> None:
    assert (await device(tmp_path, SERVER, l4(nvmlDeviceGetCount=4)).fingerprint("/no/python"))["gpus"] == 4


TROUBLE: dict[str, Any] = {
    "no bindings": None,
    "no library": FakeNvml(nvmlInit=NVMLError("Library Not Found")),
    "no GPU": FakeNvml(nvmlDeviceGetHandleByIndex=NVMLError("Not Found")),
    "nothing supported": FakeNvml(),
    "older than its bindings": FakeNvml(
        nvmlDeviceGetComputeRunningProcesses=NVMLLibraryMismatchError("…"), nvmlDeviceGetMemoryInfo=NVMLError("lost")
    ),
}


@pytest.mark.parametrize("trouble", TROUBLE)
async def test_a_gpu_that_tells_nothing_is_no_error(tmp_path: Path, trouble: str) -> None:
    files = {name: text for name, text in SERVER.items() if "powercap" not in name}
    hardware = device(tmp_path, files, TROUBLE[trouble])
    facts = await hardware.fingerprint("/no/python")
    assert not {"gpu", "driver", "cuda", "gpu_memory_bytes"} & set(facts)
    environment = await hardware.environment()
    assert not {"gpu", "energy"} & set(environment)
    assert not [name for name in hardware.pace() if name.startswith("gpu")]
    assert dict(hardware.process(11)) == {"peak_bytes": 2000 * 1024, "resident_bytes": 1500 * 1024}
    assert hardware.energy_j() is None
    assert "gpu_memory_free_bytes" not in hardware.free()


async def test_without_bindings_nvidia_smi_tells_the_most_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 8.9, 550.54.15, 23034'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    found = await device(tmp_path, SERVER).fingerprint("/no/python")
    wanted = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "driver": "550.54.15", "gpu_memory_bytes": 23034 << 20}
    assert {name: found.get(name) for name in wanted} == wanted
    tool.write_text("#!/bin/sh\necho 'Orin (nvgpu), [N/A], 540.4.0, [N/A]'\n")
    found = await device(tmp_path, SERVER).fingerprint("/no/python")
    assert (found["gpu"], found.get("gpu_memory_bytes"), found.get("compute_capability")) == (
        "Orin (nvgpu)", None, None,
    )  # fmt: skip


def test_free_memory_and_disk(tmp_path: Path) -> None:
    free = device(tmp_path, ORIN).free()
    assert free["memory_free_bytes"] == free["gpu_memory_free_bytes"] == 8_000_000 * 1024
    assert free["disk_free_bytes"] > 0
    assert dict(LocalHardware(tmp_path / "gone", tmp_path / "gone").free()) == {}


def test_memory_of_a_process(tmp_path: Path) -> None:
    hardware = device(tmp_path, SERVER, l4())
    assert hardware.process(11) == {"peak_bytes": 2000 << 10, "resident_bytes": 1500 << 10, "gpu_bytes": 300 << 20}
    assert hardware.process(12) == {}, "the GPU does not tell, and there is no such process"
    assert hardware.process(13) == {}


# --- pace -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("nvmlDeviceGetCurrentClocksEventReasons", 0x1 | 0x40, True),  # slowed by heat
        ("nvmlDeviceGetCurrentClocksEventReasons", 0x80, True),  # by the supply
        ("nvmlDeviceGetCurrentClocksEventReasons", 0x4, False),  # at its power cap, as small boards are at work
        ("nvmlDeviceGetCurrentClocksEventReasons", 0x0, False),  # no longer idle
        ("nvmlDeviceGetViolationStatus", SimpleNamespace(violationTime=5), True),
        ("nvmlDeviceGetEnforcedPowerLimit", 60_000, True),
        ("nvmlDeviceGetApplicationsClock", 1_000, True),
        ("nvmlDeviceGetMaxClockInfo", 1_000, True),
        ("nvmlDeviceGetClockInfo", 2_040, False),
        ("nvmlDeviceGetPerformanceState", 0, False),
        ("nvmlDeviceGetPowerUsage", 71_000, False),
        ("nvmlDeviceGetTemperature", 80, False),
    ],
)
def test_what_changes_a_gpus_pace(tmp_path: Path, name: str, value: Any, other: bool) -> None:
    library = l4()
    hardware = device(tmp_path, SERVER, library)
    before = hardware.pace()
    assert hardware.pace() == before
    assert before["gpu_power_limit_mw"] == "72000"
    library.answers[name] = value
    assert (hardware.pace() != before) is other


def test_faults_of_a_gpu_are_counted_from_when_it_is_first_asked() -> None:
    waiting: list[object] = []

    def wait(events: object, milliseconds: int) -> object:
        assert (events, milliseconds) == ("events", 0)
        if not waiting:
            raise NVMLError("Timeout")
        return waiting.pop()

    told = {"nvmlDeviceGetSupportedEventTypes": 0x1F, "nvmlEventSetCreate": "events", "nvmlDeviceRegisterEvents": None}
    fake = l4(**told, nvmlEventSetWait_v2=wait)
    gpu = Nvml(lambda: fake)
    assert gpu.faults() == 0
    waiting += [SimpleNamespace(eventType=8, eventData=79)] * 2
    assert gpu.faults() == 2
    assert gpu.faults() == 2
    assert ("nvmlDeviceRegisterEvents", "gpu-0", 8, "events") in fake.calls
    assert [call[0] for call in fake.calls].count("nvmlEventSetCreate") == 1


@pytest.mark.parametrize(
    "lacks",
    [
        {},
        {"nvmlDeviceGetSupportedEventTypes": 0x1},
        {"nvmlDeviceGetSupportedEventTypes": 0x8},
        {"nvmlDeviceGetSupportedEventTypes": 0x8, "nvmlEventSetCreate": "events"},
    ],
)
def test_a_gpu_that_does_not_tell_of_faults_has_not_none_of_them(lacks: dict[str, Any]) -> None:
    assert Nvml(lambda: l4(**lacks)).faults() is None
    assert Nvml(lambda: FakeNvml(nvmlInit=NVMLError("no driver"))).faults() is None


def test_an_older_driver_calls_its_reasons_otherwise(tmp_path: Path) -> None:
    library = l4(nvmlDeviceGetCurrentClocksThrottleReasons=0x20)
    del library.answers["nvmlDeviceGetCurrentClocksEventReasons"]
    assert device(tmp_path, SERVER, library).pace()["gpu_slowed"] == str(0x20)


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("var/lib/nvpmodel/status", True),
        ("sys/class/hwmon/hwmon2/oc1_event_cnt", True),
        ("sys/class/devfreq/17000000.gpu/max_freq", True),
        ("sys/class/thermal/cooling_device1/cur_state", True),
        ("sys/class/thermal/cooling_device0/cur_state", False),  # a fan
        ("sys/class/thermal/thermal_zone0/temp", False),
    ],
)
def test_what_changes_a_jetsons_pace(tmp_path: Path, file: str, other: bool) -> None:
    hardware = device(tmp_path, ORIN)
    before = hardware.pace()
    (tmp_path / file).write_text("7\n")
    assert (hardware.pace() != before) is other


async def test_the_environment_of_a_jetson(tmp_path: Path) -> None:
    now = await device(tmp_path, ORIN).environment()
    assert now["celsius"] == {"thermal_zone0": 48.5}
    assert now["power_mode"] == "15W"
    assert now["energy"] == ["rails"]


# --- energy -----------------------------------------------------------------------------------------------------------


def test_energy_of_gpu_and_packages_is_one_sum(tmp_path: Path) -> None:
    library = l4()
    hardware = device(tmp_path, SERVER, library)
    first = hardware.energy_j()
    assert first is not None
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.write_text("990\n")
    library.answers["nvmlDeviceGetTotalEnergyConsumption"] = 7_500
    assert hardware.energy_j() == pytest.approx(first + 2.5 + 90e-6)
    counter.write_text("40\n")  # around: 10 to the end, and 40
    assert hardware.energy_j() == pytest.approx(first + 2.5 + 140e-6)
    del library.answers["nvmlDeviceGetTotalEnergyConsumption"]
    assert hardware.energy_j() is None, "a part of the sum is no sum"


def test_packages_that_only_root_may_read_are_not_told(tmp_path: Path) -> None:
    files = {name: text for name, text in SERVER.items() if not name.endswith("energy_uj")}
    assert Rapl(Tree(tree(tmp_path, files)))() is None
    assert Meter(packages=Rapl(Tree(tmp_path))).read_j() is None


def test_power_of_the_rails_is_summed_up_over_time(tmp_path: Path) -> None:
    now = [100.0]
    rails = Rails(Tree(tree(tmp_path, ORIN)), lambda: now[0])
    assert rails.watts() == 10.0, "the board's input alone: the other rail is behind it"
    assert rails() == 0.0
    now[0] += 2.0
    assert rails() == pytest.approx(20.0)
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").write_text("4000\n")
    now[0] += 1.0
    assert rails() == pytest.approx(20.0 + 15.0), "between 10 and 20 W"
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    assert rails() is None


def test_without_a_rail_of_the_whole_board_all_are_added(tmp_path: Path) -> None:
    files = {name: text.replace("VDD_IN", "VDD_GPU_SOC") for name, text in ORIN.items()}
    files["sys/class/hwmon/hwmon1/in3_label"] = "NC\n"
    files["sys/class/hwmon/hwmon1/in3_input"] = files["sys/class/hwmon/hwmon1/curr3_input"] = "9999\n"
    files["sys/class/hwmon/hwmon1/in7_label"] = "sum of shunt voltages\n"
    assert Rails(Tree(tree(tmp_path, files)), lambda: 0.0).watts() == 15.0
    other = {name.replace("hwmon1", "hwmon9"): text for name, text in files.items()} | {
        "sys/class/hwmon/hwmon9/name": "nct6775\n"
    }
    assert Rails(Tree(tree(tmp_path / "other", other)), lambda: 0.0).watts() is None
