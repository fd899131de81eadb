"""Figures with their runs, as `bench-results/NAME.json` and as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path("bench-results")


@dataclass
class Figure:
    """One figure: the median of its runs, or their sum where each run counts (`total`)."""

    name: str
    unit: str
    runs: list[float]
    target: str = ""
    met: bool | None = None
    value: float = field(init=False)
    total: bool = False

    def __post_init__(self) -> None:
        self.value = sum(self.runs) if self.total else statistics.median(self.runs)

    def at_most(self, limit: float) -> Figure:
        """With a target."""
        self.target, self.met = f"≤ {limit:g}", self.value <= limit
        return self

    def at_least(self, limit: float) -> Figure:
        """With a target."""
        self.target, self.met = f"≥ {limit:g}", self.value >= limit
        return self


def quantile(samples: Sequence[float], q: float) -> float:
    """The sample at that place; the nearest one."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]


def machine() -> dict[str, Any]:
    """What the figures were taken on; nothing that names a person or a place."""
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def commit() -> str:
    """The commit, with a `+` when the tree differs from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def write(name: str, figures: list[Figure], about: str) -> Path:
    """Write the JSON."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    document = {
        "schema": "interlock.bench/1",
        "name": name,
        "about": about,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "figures": [asdict(figure) for figure in figures],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def show(results: dict[str, list[Figure]]) -> None:
    """One table of all."""
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    table = Table("bench", "figure", "value", "unit", "target", "met", "runs")
    for name, figures in results.items():
        for figure in figures:
            met = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[figure.met]
            spread = f"{len(figure.runs)}"
            if len(figure.runs) > 1:
                spread += f" ({min(figure.runs):.4g} … {max(figure.runs):.4g})"
            table.add_row(name, figure.name, f"{figure.value:.4g}", figure.unit, figure.target, met, spread)
    console.print(table)
