"""The persisted memory of what failed here, keyed by why it failed.

A payload that crashed will crash again on this GPU and driver, whatever its version number; a payload that was
slower than the incumbent may be right beside another incumbent. So the key holds what the judgement depended on:

- crash, hang, driver fault: (payload, GPU, driver)
- a limit or a comparison:   (payload, fingerprint, digest of the limits, incumbent's payload); in the digest is
  what the owner runs and measures it with, too: on other providers, or by another command, it is another judgement
- a health check in a trial: (payload, fingerprint, check)
- the owner went back:       (payload)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from interlock_agent.core.records import Quarantined

CRASHES = frozenset("worker_died worker_hung load_failed inference_failed out_of_memory out_of_time exhausted".split())
OWNER = frozenset({"rolled_back"})
CHECKS = frozenset({"error_rate", "non_finite", "not_alive"})


@dataclass(frozen=True)
class Surroundings:
    """What a judgement depended on besides the payload."""

    fingerprint_sha256: str
    gpu: str
    driver: str
    limits_sha256: str = ""
    incumbent_payload: str = ""


def surroundings(fingerprint: dict[str, Any], digest: str, limits: str = "", incumbent: str = "") -> Surroundings:
    """From the device's fingerprint and its digest."""
    return Surroundings(
        digest, str(fingerprint.get("gpu", "none")), str(fingerprint.get("driver", "none")), limits, incumbent
    )


def key(reason: str, payload: str, around: Surroundings, *, in_trial: bool = False) -> str:
    """The key under which a failure is remembered."""
    if reason in OWNER:
        return f"owner:{payload}"
    if reason in CRASHES:
        return f"crash:{payload}:{around.gpu}:{around.driver}"
    if in_trial or reason in CHECKS:
        return f"check:{payload}:{around.fingerprint_sha256}:{reason}"
    return f"limit:{payload}:{around.fingerprint_sha256}:{around.limits_sha256}:{around.incumbent_payload}"


def find(entries: Iterable[Quarantined], payload: str, around: Surroundings) -> Quarantined | None:
    """The entry that forbids this payload in these surroundings, if any.

    A failed limit forbids only under the same limits and beside the same incumbent; the others forbid whatever
    these are."""
    limit = key("limit", payload, around)
    crash = key("worker_died", payload, around)
    checks = f"check:{payload}:{around.fingerprint_sha256}:"
    owner = key("rolled_back", payload, around)
    for entry in entries:
        if entry.key in (limit, crash, owner) or entry.key.startswith(checks):
            return entry
    return None
