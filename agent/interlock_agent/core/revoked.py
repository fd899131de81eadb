"""Releases of this device that their signers have taken back. What is known of one is never forgotten: neither the
network nor the clock is asked again, and no older metadata takes it away.

Unit → digest of the manifest → `version`, `reason`, `at`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlock_agent.core.records import GOES_BACK, UnitRecord

REVOKED = "revoked"  # the fact in the journal; the reason that units tell; the check that raises the alarm
Known = dict[str, dict[str, dict[str, str]]]


def merged(one: Mapping[str, Any], two: Mapping[str, Any]) -> Known:
    """All of both."""
    return {unit: {**one.get(unit, {}), **two.get(unit, {})} for unit in sorted({*one, *two})}


def of(meta: Mapping[str, Any], unit: str, manifest_sha256: str) -> dict[str, str] | None:
    """What is known of one release; None: it is not revoked."""
    found = ((meta.get(REVOKED) or {}).get(unit) or {}).get(manifest_sha256)
    return dict(found) if found is not None else None


def installed(record: UnitRecord) -> list[tuple[str, str, bool]]:
    """(version, manifest digest, brought by the server's wish) of what a unit holds, or is about to."""
    held = [one for one in (record.confirmed, record.previous) if one is not None]
    found = [(one.version, one.manifest_sha256, bool(one.assignment)) for one in held]
    if record.attempt is not None and record.attempt.wish.origin not in GOES_BACK:
        wish = record.attempt.wish
        found.append((wish.version, wish.manifest_sha256, False))  # the metadata here may not have heard of it yet
    return found


def known(meta: Mapping[str, Any], unit: str) -> list[dict[str, str]]:
    """`version`, `reason`, `at` of the unit's revoked releases, oldest first."""
    found = (meta.get(REVOKED) or {}).get(unit) or {}
    return sorted((dict(one) for one in found.values()), key=lambda one: one.get("at", ""))


def refused(meta: Mapping[str, Any], unit: str) -> list[str]:
    """Names of the unit's revoked releases, as the host says them."""
    known = (meta.get(REVOKED) or {}).get(unit) or {}
    return sorted({f"{unit}/{one['version']}" for one in known.values()})
