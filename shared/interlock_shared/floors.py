"""Floors: the versions below which a device's trust never ends again, whatever its files say. Pure.

    {"root": 3, "root_sha256": "…", "timestamp": 9, "snapshot": 9, "targets": 2, "release-detector": 4,
     "delegated": {"release-detector": {"targets": 2, "keyids": ["…"], "threshold": 1}}, "clock_root": 3}

1. A role that ends below its floor is refused.
2. Of the newest root the content is remembered, too: two roots of one version cannot both be genuine.
3. A thief who had a role's keys may have signed version 2^31. A newer root that takes a threshold of these keys away
   takes the floor away with them (fast-forward recovery, TUF 1.0.x §5.3.11), and nothing else does. The snapshot role
   vouches for the versions of all targets roles: with its keys go their floors, too.
4. The keys of a delegated role stand in `targets`. So it is remembered with which keys, and by which version of
   targets, a delegated role was believed; newer targets that take a threshold of them away take its floor away.
5. What the online keys have said of the time is forgotten with the timestamp's keys: `clock_root` is the root that
   last took them away.
6. Several fetchers may end in any order: of two sets of floors that of the newer root holds, of equal ones the higher,
   but for a delegated role that newer targets have given other keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from interlock_shared.errors import Untrusted

ROOT_DIGEST = "root_sha256"
DELEGATED = "delegated"
CLOCK_ROOT = "clock_root"
TOP_ROLES = ("root", "timestamp", "snapshot", "targets")
RESERVED = frozenset({ROOT_DIGEST, DELEGATED, CLOCK_ROOT})  # what stands beside the versions: no role's floor

Floors = dict[str, Any]


class RoleKeys(NamedTuple):
    """Who may sign for a role, as one root says."""

    keyids: frozenset[str]
    threshold: int


def taken_away(before: RoleKeys, after: RoleKeys | None) -> bool:
    """Whether so many keys have gone that those that are left cannot have signed what the former ones did."""
    return len(before.keyids - (after.keyids if after else frozenset())) >= before.threshold


def replaced(chain: Sequence[Mapping[str, RoleKeys]]) -> set[str]:
    """The roles of which some root in the chain (oldest first) took away a threshold of keys."""
    return {
        role
        for before, after in pairwise(chain)
        for role, keys in before.items()
        if role != "root" and taken_away(keys, after.get(role))
    }


def recovered(floors: Mapping[str, Any], roles: Iterable[str]) -> Floors:
    """The floors that stand after the keys of these roles were replaced (3)."""
    gone = set(roles)
    if "snapshot" in gone:
        gone |= {role for role in floors if role not in ("root", "timestamp", *RESERVED)}
    return {role: floor for role, floor in floors.items() if role not in gone}


def relieved(floors: Mapping[str, Any], delegations: Mapping[str, RoleKeys], targets: int) -> Floors:
    """The floors under that version of targets, and what it delegates (4): 0 for a role that was given other keys."""
    standing, entries = dict(floors), dict(floors.get(DELEGATED) or {})
    for role in entries.keys() & delegations.keys():  # one that is delegated no more is remembered: it may come back
        if taken_away(_keys(entries[role]), delegations[role]):
            standing[role] = 0
        entries[role] = entry(delegations[role], targets)
    return {**standing, **({DELEGATED: entries} if entries else {})}


def entry(keys: RoleKeys, targets: int) -> dict[str, Any]:
    """With which keys a delegated role is believed, and by which version of targets."""
    return {"targets": targets, "keyids": sorted(keys.keyids), "threshold": keys.threshold}


def _keys(known: Mapping[str, Any]) -> RoleKeys:
    return RoleKeys(frozenset(known["keyids"]), int(known["threshold"]))


def check(floors: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Steps 1 and 2. Raises Untrusted (`below_floor`, `other_root`)."""
    for role in found.keys() - RESERVED:
        if found[role] < int(floors.get(role, 0)):
            raise Untrusted(
                f"metadata: {role} {found[role]} is below the floor {floors[role]}", code="below_floor", role=role
            )
    same = found.get("root") == floors.get("root")
    if same and found.get(ROOT_DIGEST) and floors.get(ROOT_DIGEST, found[ROOT_DIGEST]) != found[ROOT_DIGEST]:
        raise Untrusted(f"metadata: there are two roots of version {found['root']}", code="other_root", role="root")


def merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> Floors:
    """The floors after one more refresh (6)."""
    ours, theirs = int(known.get("root", 0)), int(new.get("root", 0))
    if theirs != ours:
        return dict(new if theirs > ours else known)
    both = {**known, **new}
    for role in known.keys() & new.keys() - {ROOT_DIGEST, DELEGATED}:
        both[role] = max(int(known[role]), int(new[role]))
    entries = {**(known.get(DELEGATED) or {}), **(new.get(DELEGATED) or {})}
    for role in (known.get(DELEGATED) or {}).keys() & (new.get(DELEGATED) or {}).keys():
        older, newer = sorted((known, new), key=lambda one: int(one[DELEGATED][role]["targets"]))
        entries[role] = newer[DELEGATED][role]
        if taken_away(_keys(older[DELEGATED][role]), _keys(entries[role])):
            both[role] = int(newer.get(role, 0))
    return {**both, **({DELEGATED: entries} if entries else {})}


def plausible(value: Any) -> bool:
    """Whether what was read from a file has the shape of floors."""
    if not isinstance(value, dict) or not isinstance(value.get(ROOT_DIGEST, ""), str):
        return False
    entries = value.get(DELEGATED, {})
    return (
        all(_number(version) for role, version in value.items() if role not in (ROOT_DIGEST, DELEGATED))
        and isinstance(entries, dict)
        and all(map(_is_entry, entries.values()))
    )


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_entry(known: Any) -> bool:
    if not isinstance(known, dict) or not _number(known.get("targets")) or not _number(known.get("threshold")):
        return False
    keyids = known.get("keyids")
    return isinstance(keyids, list) and all(isinstance(keyid, str) for keyid in keyids)
