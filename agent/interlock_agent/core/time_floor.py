"""The time floor as the journal keeps it: below what time this device does not believe its clock. Pure.

`clock_floor` is `[root, "2026-01-31T12:00:00Z"]`: the time, and the root under whose timestamp keys it was said. The
server signs times, so who steals its keys can drive the floor up; a root that takes these keys away takes with them
what they have said (floors.py, 5). The floor that stands is the one that was said since.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlock_agent.core.times import rfc3339, seconds
from interlock_shared.floors import CLOCK_ROOT

CLOCK_FLOOR = "clock_floor"


def era(meta: Mapping[str, Any]) -> int:
    """The root that last took the timestamp's keys away; 0: none did."""
    return int((meta.get("floors") or {}).get(CLOCK_ROOT, 0))


def fact(meta: Mapping[str, Any], floor: float) -> dict[str, Any]:
    """What is to be journaled of a floor (seconds since the epoch)."""
    return {CLOCK_FLOOR: [era(meta), rfc3339(floor)]}


def told(meta: Mapping[str, Any]) -> str | None:
    """The floor that stands (RFC 3339); None: there is none."""
    root, text = meta.get(CLOCK_FLOOR) or (0, None)
    return text if root >= era(meta) else None


def of(meta: Mapping[str, Any]) -> float:
    """The same in seconds since the epoch; 0: there is none."""
    return seconds(told(meta) or "1970-01-01T00:00:00Z")
