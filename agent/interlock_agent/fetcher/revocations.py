"""Which of the releases that a device holds are revoked, by the metadata that it trusts.

A release is revoked where its role's metadata has a record of it. A target that is merely not there counts only where
the release came over the server's metadata, whose versions never fall: a file may be newer than what is known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock_shared import revocation
from interlock_shared.errors import InterlockError
from interlock_shared.topics import release_role, target_name

if TYPE_CHECKING:
    from interlock_agent.fetcher.trust import Trust

GONE = "its signers have taken it back"


def look(
    chain: Trust, installed: Mapping[str, Iterable[Iterable[Any]]], known: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """({unit: {manifest digest: facts}} of what is revoked, the new floors). Where a role cannot be had, or its records
    cannot be read, the others are looked at: one role's keys hold up nobody else's news."""
    found: dict[str, Any] = {}
    for unit, releases in installed.items():
        try:
            signed, known = chain.role(unit, known)
            for version, digest, online in releases:
                facts = of_signed(signed, unit, version, digest, online=bool(online)) if signed else None
                if facts is not None:
                    found.setdefault(unit, {})[digest] = facts
        except InterlockError:
            continue
    return found, known


def of_signed(
    signed: Mapping[str, Any], model: str, version: str, manifest_sha256: str, *, online: bool
) -> dict[str, str] | None:
    """`version`, `reason`, `at` of a revoked release; None: it is not. Raises Invalid."""
    record = revocation.records(signed).get(version)
    if record is not None and record.manifest_sha256 == manifest_sha256:
        return {"version": version, "reason": record.reason, "at": record.at}
    target = signed["targets"].get(target_name(model, version)) or {}
    if online and target.get("hashes", {}).get("sha256") != manifest_sha256:
        return {"version": version, "reason": GONE, "at": ""}
    return None


def recorded(folder: Path, model: str, version: str, manifest_sha256: str) -> bool:
    """Whether the metadata that is trusted online has a record of the release."""
    try:
        signed = json.loads((folder / f"{release_role(model)}.json").read_bytes())["signed"]
        return of_signed(signed, model, version, manifest_sha256, online=False) is not None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InterlockError):
        return False
