"""The limits that hold here: the publisher's, the owner's, and the defaults; the stricter wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interlock_shared import canonical
from interlock_shared.gates import Gates, SliceGates
from interlock_shared.manifest import Manifest


@dataclass(frozen=True)
class OwnerLimits:
    """What the device's owner asks for beyond the publisher; the stricter of both wins."""

    accuracy_min: float | None = None
    accuracy_drop_max: float | None = None
    error_max: float | None = None
    error_rise_max: float | None = None
    slice_drop_max: float | None = None
    slice_rise_max: float | None = None
    metrics: tuple[str, ...] = ()  # plug-in metrics that a manifest may name
    latency_ms: Mapping[str, float] = field(default_factory=dict)  # quantile of wall time -> ms
    latency_ratio_max: float | None = None
    throughput_min: Mapping[str, float] = field(default_factory=dict)  # inferences at a time -> inferences a second
    load_s_max: float | None = None
    memory_max_bytes: int | None = None
    gpu_memory_max_bytes: int | None = None
    memory_leak_max_bytes_per_1000: int | None = None
    energy_max_j: float | None = None
    allow_none: bool = False  # whether a manifest may switch its gates off


def _stricter(publisher: float | None, owner: float | None, *, smaller: bool) -> float | None:
    present = [value for value in (publisher, owner) if value is not None]
    if not present:
        return None
    return min(present) if smaller else max(present)


def effective_limits(manifest: Manifest, owner: OwnerLimits) -> dict[str, Any]:
    """The limits that hold here, and under which digest a failure is remembered. `parity` is always on."""
    gates = manifest.gates if isinstance(manifest.gates, Gates) else Gates()
    if manifest.gates == "none" and owner.allow_none:
        return {"gates": "none", "parity": True}
    return {
        "parity": True,
        "accuracy_min": _stricter(gates.accuracy_min, owner.accuracy_min, smaller=False),
        "accuracy_drop_max": _stricter(gates.accuracy_drop_max, owner.accuracy_drop_max, smaller=True),
        "error_max": _stricter(gates.error_max, owner.error_max, smaller=True),
        "error_rise_max": _stricter(gates.error_rise_max, owner.error_rise_max, smaller=True),
        "slices": _slices(manifest, gates, owner),
        "metrics": sorted(owner.metrics),
        "latency_ms": {
            name: _stricter(gates.latency_ms.get(name), owner.latency_ms.get(name), smaller=True)
            for name in sorted({*gates.latency_ms, *owner.latency_ms})
        },
        "latency_ratio_max": _stricter(gates.latency_ratio_max, owner.latency_ratio_max, smaller=True),
        "throughput_min": {
            name: _stricter(gates.throughput_min.get(name), owner.throughput_min.get(name), smaller=False)
            for name in sorted({*gates.throughput_min, *owner.throughput_min}, key=int)
        },
        "load_s_max": _stricter(gates.load_s_max, owner.load_s_max, smaller=True),
        **{
            name: _stricter(getattr(gates, name), getattr(owner, name), smaller=True)
            for name in ("memory_max_bytes", "gpu_memory_max_bytes", "memory_leak_max_bytes_per_1000", "energy_max_j")
        },
    }


def _slices(manifest: Manifest, gates: Gates, owner: OwnerLimits) -> dict[str, dict[str, float | None]]:
    """Of each slice: its own limits, else those of all slices, and the owner's where they are stricter."""
    found = {}
    for name in manifest.golden.slice_names if manifest.golden else ():
        own = gates.slices.get(name, SliceGates())
        drop = gates.slice_drop_max if own.accuracy_drop_max is None else own.accuracy_drop_max
        rise = gates.slice_rise_max if own.error_rise_max is None else own.error_rise_max
        found[name] = {
            "accuracy_min": own.accuracy_min,
            "accuracy_drop_max": _stricter(drop, owner.slice_drop_max, smaller=True),
            "error_max": own.error_max,
            "error_rise_max": _stricter(rise, owner.slice_rise_max, smaller=True),
        }
    return found


def limits_digest(limits: dict[str, Any]) -> str:
    """SHA-256 of the canonical limits."""
    return canonical.sha256(canonical.encode(limits))
