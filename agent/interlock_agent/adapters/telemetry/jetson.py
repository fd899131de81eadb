"""What a Jetson says of itself in /proc, /sys and /etc; empty on any other device.

`jetson-stats` would add nothing to these files, needs a service of its own, and breaks at each L4T release: it is not
asked. The GPU's memory is the CPU's there, and NVML knows little: it is asked only where the device tree has no GPU.
"""

from __future__ import annotations

import json
import re
from typing import Any

from interlock_agent.adapters.telemetry.sysfs import Tree

# GPU in the device tree → what people call it, compute capability (NVIDIA's table of CUDA GPUs).
CHIPS = {
    "gm20b": ("Tegra X1", "5.3"),
    "gp10b": ("Tegra X2", "6.2"),
    "gv11b": ("Xavier", "7.2"),
    "ga10b": ("Orin", "8.7"),
}
_COMPATIBLE = ("proc/device-tree/g*/compatible", "proc/device-tree/bus@0/g*/compatible")


def facts(tree: Tree) -> dict[str, Any]:
    """Board, L4T, JetPack, CUDA, power mode, GPU, as far as they are told."""
    release = tree.text("etc/nv_tegra_release")
    chip = _chip(tree)
    if not release and not chip:
        return {}
    found: dict[str, Any] = {"l4t": _l4t(release), "jetpack": _jetpack(tree), "power_mode": power_mode(tree)}
    found["cuda"] = _cuda(tree)
    if chip:
        name, capability = CHIPS[chip]
        found |= {"gpu": f"{name} ({chip})", "compute_capability": capability, "gpu_integrated": True}
        found["driver"] = f"L4T {found['l4t']}" if found["l4t"] else ""  # they come together
    return {name: value for name, value in found.items() if value}


def power_mode(tree: Tree) -> str:
    """Name of nvpmodel's mode, else its number."""
    said = re.search(r"pmode:(\d+)", tree.text("var/lib/nvpmodel/status"))
    if said is None:
        return ""
    number = str(int(said[1]))
    named = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", tree.text("etc/nvpmodel.conf"))
    return str(dict(named).get(number, number))


def _chip(tree: Tree) -> str:
    for pattern in _COMPATIBLE:
        for path in tree.names(pattern):
            for word in tree.text(path).split("\0"):
                chip = re.split("[,-]", word)[-1]
                if word.startswith("nvidia,") and chip in CHIPS:
                    return chip
    return ""


def _l4t(release: str) -> str:
    """`# R36 (release), REVISION: 4.3, …` is 36.4.3."""
    said = re.match(r"#\s*R(\d+).*?REVISION:\s*([\d.]+)", release)
    return f"{said[1]}.{said[2]}" if said else ""


def _jetpack(tree: Tree) -> str:
    """Version of Debian's package that stands for all of JetPack; often it is not installed."""
    said = re.search(
        r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)", tree.text("var/lib/dpkg/status"), re.MULTILINE
    )
    return said[1] if said else ""


def _cuda(tree: Tree) -> str:
    try:
        return str(json.loads(tree.text("usr/local/cuda/version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return ""
