"""Backoff with full jitter, and delays spread over a fleet. Chance comes in as an argument."""

from __future__ import annotations

import hashlib

from interlock_shared.limits import BACKOFF_CAP_S, BACKOFF_FIRST_S


def backoff(failures: int, dice: float, *, first: float = BACKOFF_FIRST_S, cap: float = BACKOFF_CAP_S) -> float:
    """Seconds to wait after `failures` in a row (≥ 1): uniform between 0 and a bound that doubles up to `cap`.

    `dice` in [0, 1). "Full jitter": M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015."""
    bound: float = min(cap, first * 2.0 ** min(max(failures, 1) - 1, 32))
    return dice * bound


def spread(device: str, assignment: str, seconds: float) -> float:
    """This device's place inside a spread of `seconds`: the same for the same assignment, even over the fleet."""
    digest = hashlib.sha256(f"{device}/{assignment}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * seconds
