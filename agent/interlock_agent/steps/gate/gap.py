"""The gap, from the agent's side: decided and told before the gate, kept to inside it.

Everything that needs no second model loaded comes before; then what serves is unloaded by the host, and the candidate
is judged alone, against what is recorded of the incumbent. Each form of a release that is tried has a gap of its own:
between two the confirmed release serves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interlock_agent.config import Unit
from interlock_agent.core.gate.gap import Plan, expected_s, misfit, reserve_s
from interlock_agent.ports import Clock, Hardware
from interlock_shared.errors import Later
from interlock_shared.manifest import Manifest, Variant

NO_GAP = Plan()


def plan(
    settings: Unit,
    status: Mapping[str, Any] | None,
    hardware: Hardware,
    verdict: Mapping[str, Any] | None,
    manifest: Manifest,
    variants: Sequence[Variant],
    *,
    cramped: bool = False,
) -> Plan:
    """`status`: the host's of this unit; `verdict`: what is recorded of the incumbent; `cramped`: it was tried beside
    what serves, and refused memory. Raises Later where the owner wants what an older host cannot do."""
    if status is None or not status.get("confirmed") or settings.policy == "availability":
        return NO_GAP
    auto = settings.policy == "auto"
    if status.get("gap") is None:
        if auto:
            return NO_GAP
        raise Later("policy = memory: this host is too old for it", code="host_too_old")
    why = "policy"
    if auto:
        if settings.gate.baseline == "twin":
            return NO_GAP
        free = hardware.free()
        largest = max(variants or manifest.variants, key=lambda one: manifest.file(one.file).size)
        why = misfit(verdict, manifest.file(largest.file).size, largest.requires, free)
        why = why or ("it was refused memory beside what serves" if cramped else "")
    if not why:
        return NO_GAP
    return Plan(True, why, expected_s(verdict, settings.gap_max_s), settings.gap_max_s)


def held_by_live(status: Mapping[str, Any] | None, hardware: Hardware) -> dict[str, int]:
    """What will be free besides, when what serves has made room."""
    held = {"memory_free_bytes": 0, "gpu_memory_free_bytes": 0}
    for worker in (status or {}).get("workers", ()):
        if worker["role"] in ("live", "standby"):
            told = hardware.process(int(worker["pid"]))
            held["memory_free_bytes"] += told.get("resident_bytes", 0)
            held["gpu_memory_free_bytes"] += told.get("gpu_bytes", 0)
    return held


@dataclass
class Gap:
    """One that is open, or was; `ends`: when judging has to (CLOCK_BOOTTIME of the agent's clock)."""

    ends: float = math.inf

    def opened(self, status: Mapping[str, Any] | None, clock: Clock, at_most_s: float) -> None:
        """The candidate is loaded: how long may it be judged? For ever, where nothing had to make room."""
        told = (status or {}).get("gap") or {}
        left = float(told["left_s"]) - reserve_s(at_most_s) if "left_s" in told else math.inf
        self.ends = clock.monotonic() + left

    def left_s(self, clock: Clock) -> float:
        """How long it may still be judged."""
        return self.ends - clock.monotonic()
