"""The ratio to what was recorded of the incumbent, where its twin does not fit beside the candidate.

Two times are compared here, not pairs: the device may have been another one in ways that no fingerprint tells. So each
of the two medians has an interval of its own, and the limit is wider by MARGIN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interlock_agent.core import statistics
from interlock_agent.core.gate.checks import not_applicable
from interlock_shared.documents import CheckResult, Outcome
from interlock_shared.manifest import Tensor

MARGIN = 0.25  # of the limit, for what two times differ in and pairs cancel; medians of recorded blocks differ by 2 %
LOOKS = (12, 24, 48, 96)  # blocks of the candidate after which the ratio is looked at
ERROR_BUDGET = 0.02  # over all looks and both medians together; split evenly
LOOK_CONFIDENCE = 1 - ERROR_BUDGET / (2 * len(LOOKS))
BLOCKS_MAX = 48  # that recorded samples are put together to: what follows at once is not independent
SCALES = ("work", "wall")


@dataclass(frozen=True)
class Recorded:
    """What was measured of the incumbent when it was judged: the mean times of blocks, in nanoseconds, by scale."""

    version: str
    at: str
    samples: int
    size: int  # inferences in a block; the candidate's have as many: where some are slow, means of few are lower
    blocks: Mapping[str, Sequence[float]]


def read(verdict: Mapping[str, Any], samples: Mapping[str, Any]) -> Recorded | None:
    """From a verdict and the raw samples beside it; None where too little was measured for an interval."""
    found = {scale: samples.get("samples", {}).get(f"candidate_{scale}_ns", []) for scale in SCALES}
    size = max(1, math.ceil(len(found["wall"]) / BLOCKS_MAX))
    blocks = {scale: _blocks([float(ns) for ns in measured], size) for scale, measured in found.items()}
    if not all(math.isfinite(_median(blocks[scale]).low) for scale in SCALES):
        return None
    return Recorded(str(verdict["version"]), str(verdict["ended_at"]), len(found["wall"]), size, blocks)


NEEDS = {"memory_peak": "memory_free_bytes", "gpu_memory_peak": "gpu_memory_free_bytes"}  # check -> what must be free


def needs(verdict: Mapping[str, Any]) -> dict[str, float]:
    """The most that its process took when it was judged, by what must be free for it."""
    checks = (check for stage in verdict.get("stages", ()) for check in stage.get("checks", ()))
    return {NEEDS[check["check"]]: check["measured"] or 0 for check in checks if check["check"] in NEEDS}


def fits(verdict: Mapping[str, Any], free: Mapping[str, int]) -> bool:
    """Whether its process is not known to need more than is free now."""
    return all(need <= free[what] for what, need in needs(verdict).items() if what in free)


def items_of(seal: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The golden data of a sealed release, by its segments; empty where it has none."""
    if seal is None or not seal.get("golden"):
        return ()
    name = seal["golden"]["file"]
    return tuple(part["sha256"] for file in seal["files"] if file["name"] == name for part in file["segments"])


def same_work(inputs: Sequence[Tensor], same_items: bool) -> bool:
    """Whether an inference is the same work then and now: on the same golden items, or on items of one shape."""
    return same_items or all(axis >= 0 for tensor in inputs for axis in tensor.shape[1:])


def rows(mine: Mapping[str, Sequence[float]], recorded: Recorded, limit: float) -> list[CheckResult]:
    """Two rows, one a scale, as of a ratio in pairs. Fails when the interval lies above the wider limit; passes when it
    lies below, on the wall when the estimate does; else it is inconclusive."""
    return [_row(scale, mine[scale], recorded, limit) for scale in SCALES]


def no_baseline(why: str) -> list[CheckResult]:
    """Nothing is there to compare with: never a pass."""
    unknown = CheckResult(check="latency_ratio", outcome="inconclusive", reason="no_baseline", detail={"why": why})
    return [not_applicable("self_test", "no_twin"), unknown]


def _row(scale: str, mine: Sequence[float], recorded: Recorded, limit: float) -> CheckResult:
    wide = limit * (1 + MARGIN)
    now, then = _median(mine), _median(recorded.blocks[scale])
    low, high = now.low / then.high, now.high / max(then.low, 1.0)
    estimate = now.estimate / max(then.estimate, 1.0)
    known = math.isfinite(low) and math.isfinite(high)
    below = high if scale == "work" else estimate
    outcome: Outcome = "inconclusive"
    if known:
        outcome = "fail" if low > wide else "pass" if below <= wide else "inconclusive"
    return CheckResult(
        check=f"latency_ratio_{scale}",
        outcome=outcome,
        unit="candidate / incumbent",
        limit=wide,
        measured=estimate,
        low=low if known else None,
        high=high if known else None,
        reason={"pass": "ok", "fail": "too_slow", "inconclusive": "too_noisy"}[outcome],
        detail={
            "baseline": "recorded",
            "recorded_version": recorded.version,
            "recorded_at": recorded.at,
            "recorded_samples": recorded.samples,
            "limit_of_pairs": limit,
            "margin": MARGIN,
            "blocks": len(mine),
            "confidence": 2 * LOOK_CONFIDENCE - 1,
        },
    )


def _median(blocks: Sequence[float]) -> statistics.Interval:
    return statistics.median_interval(blocks, LOOK_CONFIDENCE)


def _blocks(samples: Sequence[float], size: int) -> list[float]:
    """Means of so many neighbours."""
    parts = [samples[first : first + size] for first in range(0, len(samples), size)]
    return [sum(part) / len(part) for part in parts]
