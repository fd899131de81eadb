"""Floors: the versions below which a device's trust never ends again, whatever its files say. Pure.

    {"root": 3, "root_sha256": "…", "timestamp": 9, "snapshot": 9, "targets": 2, "release-detector": 4}

1. A role that ends below its floor is refused.
2. Of the newest root the content is remembered, too: two roots of one version cannot both be genuine.
3. A thief who had a role's keys may have signed version 2^31. A newer root that takes a threshold of these keys away
   takes the floor away with them (fast-forward recovery, TUF 1.0.x §5.3.11), and nothing else does. The snapshot role
   vouches for the versions of all targets roles: with its keys go their floors, too.
4. Several fetchers may end in any order: of two sets of floors that of the newer root holds, of equal ones the higher.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from interlock_shared.errors import Untrusted

ROOT_DIGEST = "root_sha256"
TOP_ROLES = ("root", "timestamp", "snapshot", "targets")

Floors = dict[str, Any]


class RoleKeys(NamedTuple):
    """Who may sign for a role, as one root says."""

    keyids: frozenset[str]
    threshold: int


def replaced(chain: Sequence[Mapping[str, RoleKeys]]) -> set[str]:
    """The roles of which some root in the chain (oldest first) took away a threshold of keys."""
    found = set()
    for before, after in pairwise(chain):
        for role, keys in before.items():
            kept = after[role].keyids if role in after else frozenset()
            if role != "root" and len(keys.keyids - kept) >= keys.threshold:
                found.add(role)
    return found


def recovered(floors: Mapping[str, Any], roles: Iterable[str]) -> Floors:
    """The floors that stand after the keys of these roles were replaced (3)."""
    gone = set(roles)
    if "snapshot" in gone:
        gone |= {role for role in floors if role not in ("root", ROOT_DIGEST, "timestamp")}
    return {role: floor for role, floor in floors.items() if role not in gone}


def check(floors: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Steps 1 and 2. Raises Untrusted (`below_floor`, `other_root`)."""
    for role, version in found.items():
        if role != ROOT_DIGEST and version < int(floors.get(role, 0)):
            raise Untrusted(
                f"metadata: {role} {version} is below the floor {floors[role]}", code="below_floor", role=role
            )
    same = found.get("root") == floors.get("root")
    if same and found.get(ROOT_DIGEST) and floors.get(ROOT_DIGEST, found[ROOT_DIGEST]) != found[ROOT_DIGEST]:
        raise Untrusted(f"metadata: there are two roots of version {found['root']}", code="other_root", role="root")


def merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> Floors:
    """The floors after one more refresh (4)."""
    ours, theirs = int(known.get("root", 0)), int(new.get("root", 0))
    if theirs != ours:
        return dict(new if theirs > ours else known)
    both = {**known, **new}
    for role in known.keys() & new.keys() - {ROOT_DIGEST}:
        both[role] = max(int(known[role]), int(new[role]))
    return both
