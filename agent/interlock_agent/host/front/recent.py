"""How long applications waited in the last seconds: what the gate looks at, so as not to be felt."""

from __future__ import annotations

from collections import deque
from typing import Any

WINDOW_S = 5.0
SAMPLES_MAX = 2048  # a bound on memory and on the sort; of a faster model the newest


class Recent:
    """Latencies of inference requests, from their arrival to the worker's answer."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)

    def add(self, now: float, seconds: float) -> None:
        """One answer."""
        self._samples.append((now, seconds))

    def figures(self, now: float) -> dict[str, Any]:
        """Number of answers in the window; their median, 0.95 and 0.99 quantile in milliseconds."""
        while self._samples and self._samples[0][0] < now - WINDOW_S:
            self._samples.popleft()
        ordered = sorted(seconds for _, seconds in self._samples)
        count = len(ordered)
        if not count:
            return {"count": 0, "p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0}
        quantiles = {q: ordered[min(count - 1, count * q // 100)] for q in (50, 95, 99)}
        return {"count": count, **{f"p{q}_ms": round(seconds * 1000, 4) for q, seconds in quantiles.items()}}
