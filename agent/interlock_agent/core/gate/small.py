"""Is it small: peak memory against the limit and what the device has free."""

from __future__ import annotations

from interlock_shared.documents import CheckResult


def memory(peak_bytes: int, limit: int | None, free_bytes: int | None) -> list[CheckResult]:
    """Peak memory of the worker against the limit, else against what the device has free (headroom)."""
    rows = []
    for name, bound in (("memory_peak", limit), ("memory_headroom", free_bytes)):
        fits = bound is None or peak_bytes <= bound
        rows.append(
            CheckResult(
                check=name,
                outcome="not_applicable" if bound is None else "pass" if fits else "fail",
                unit="bytes",
                limit=None if bound is None else float(bound),
                measured=float(peak_bytes),
                reason="no_limit" if bound is None else "ok" if fits else "too_large",
            )
        )
    return rows
