"""The gate is a guest: when applications on the device feel it, it steps back.

A controller of the pauses between blocks: they double while the live models' p99 is above what the owner allows of the
p99 without a gate, and halve while it is below. What it is without a gate was seen before it began, and is seen again
after each of the longest pauses: what others do to the applications meanwhile, waiting does not undo.
A gate takes seconds and a p99 as long to show what it does, so that pairs are measured in nicer processes from the
beginning where anybody is served. Pure: figures in, a pause out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REQUESTS_MIN = 50  # answers in a window; of fewer a p99 says nothing
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 5.5  # what the front remembers, and a little: then nothing of the gate is in the p99
NICE = 10  # about a tenth of the processor time of a process that is not
MARGIN = 0.9  # of what is allowed beyond 1: stepping back begins before the limit is passed


@dataclass
class Guest:
    """`before`: unit → p99 (ms) before the gate; empty where there is no traffic to disturb. `without`: as it was seen
    since, half of it new each time, since one p99 is a noisy figure."""

    slowdown_max: float = 1.25
    before: Mapping[str, float] = field(default_factory=dict)
    pause_s: float = 0.0
    yielded_s: float = 0.0
    looks: int = 0
    slowdown_worst: float = 0.0
    nice_blocks: int = 0
    nice_worst: int = 0
    without: dict[str, float] = field(default_factory=dict)
    _counted: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.without = dict(self.before)

    @property
    def nice(self) -> int:
        """How much nicer the next pair is to be."""
        return NICE if self.before else 0

    def was_nice(self, nice: int) -> None:
        """Take down what held in a block."""
        self.nice_blocks += nice > 0
        self.nice_worst = max(self.nice_worst, nice)

    @staticmethod
    def p99s(units: list[dict[str, Any]]) -> dict[str, float]:
        """p99 of every unit with traffic, from the host's status."""
        found = {}
        for unit in units:
            recent = (unit.get("counters") or {}).get("recent") or {}
            if int(recent.get("count", 0)) >= REQUESTS_MIN and float(recent["p99_ms"]) > 0:
                found[str(unit["unit"])] = float(recent["p99_ms"])
        return found

    def _moved(self, units: list[dict[str, Any]]) -> bool:
        """Whether anybody was answered since the last look; figures that stand still are old ones."""
        counted = {str(unit["unit"]): int((unit.get("counters") or {}).get("requests", 0)) for unit in units}
        moved = any(counted.get(name, 0) != self._counted.get(name, 0) for name in self.before)
        self._counted = counted
        return moved

    def turn(self, units: list[dict[str, Any]]) -> float:
        """Look at the host's status; the pause to take now, in seconds."""
        now = self.p99s(units)
        if not self.before or not self._moved(units):
            self.pause_s = 0.0
            return 0.0
        if self.pause_s >= PAUSE_MAX_S:
            self.without = {name: (p99 + now.get(name, p99)) / 2 for name, p99 in self.without.items()}
        slowdown = max((now[name] / p99 for name, p99 in self.without.items() if name in now), default=0.0)
        self.looks += 1
        self.slowdown_worst = max(self.slowdown_worst, slowdown)
        if slowdown > 1 + MARGIN * (self.slowdown_max - 1):
            self.pause_s = min(PAUSE_MAX_S, max(PAUSE_MIN_S, 2 * self.pause_s))
        else:
            self.pause_s = self.pause_s / 2 if self.pause_s > PAUSE_MIN_S else 0.0
        self.yielded_s += self.pause_s
        return self.pause_s

    def document(self) -> dict[str, Any]:
        """For the verdict: what the live models felt, and what stepping back cost."""
        return {
            "p99_before_ms": dict(self.before),
            "p99_without_ms": {name: round(p99, 4) for name, p99 in self.without.items()},
            "slowdown_max": self.slowdown_max,
            "slowdown_worst": round(self.slowdown_worst, 4),
            "yielded_s": round(self.yielded_s, 3),
            "looks": self.looks,
            "nice": self.nice_worst,
            "nice_blocks": self.nice_blocks,
        }
