"""A release that a file brought to a device, against what the server wants of it.

What was wanted before the file stands back; what is wanted after it replaces it, and says so (`over`), so that the
device knows that the server knew. Which is which is decided once, when the server first hears of the file:

- what the device knew of when it confirmed the file's release is older, whatever the clocks say;
- of the rest a rollout is older that was started before, by the server's clock against the device's;
- what is started after the server has heard of it is newer.

Where the device says `pin`, nothing is newer until a person has unpinned it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PIN = "pin"


@dataclass(frozen=True)
class Held:
    """A file's release that stands on a device. `older`: the number of the newest rollout that stands back."""

    assignment: str
    version: str
    manifest_sha256: str
    policy: str
    older: int
    unpinned: bool = False

    def blocks(self, order: int, manifest_sha256: str) -> bool:
        """Whether a wish stands back. One for the very same release need not: the device takes it over."""
        if self.unpinned:
            return False
        if self.policy == PIN:
            return True
        return order <= self.older and manifest_sha256 != self.manifest_sha256


def older(at: str, knew: str, wishes: Iterable[tuple[str, int, str]]) -> int:
    """The number of the newest wish that is older than a file's release, which was confirmed at `at` and knew of the
    wish `knew`; 0 without one. `wishes`: id, number, when it was started."""
    known = list(wishes)
    seen = max((number for name, number, _ in known if name == knew), default=0)
    return max((number for _, number, started in known if number <= seen or started <= at), default=0)


def held(report: Mapping[str, Any] | None, kept: Mapping[str, Any]) -> dict[str, Held]:
    """By unit, what stands: the device's newest report with what was decided when it was first heard of."""
    found = {}
    for unit, told in ((report or {}).get("units") or {}).items():
        file, decided = told.get("sideload"), kept.get(unit)
        if not file or not decided or decided["assignment"] != file.get("assignment"):
            continue
        found[unit] = Held(
            assignment=decided["assignment"],
            version=str(file.get("version")),
            manifest_sha256=str(file.get("manifest_sha256")),
            policy=str(file.get("policy")),
            older=int(decided["older"]),
            unpinned=bool(decided["unpinned"]),
        )
    return found
