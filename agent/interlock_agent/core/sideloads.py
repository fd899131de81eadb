"""A release from a file against what the server wants: whether a file may be installed, and whether it stands.

forbid   no file is installed
once     what a file brought stays until the server wants something newer
pin      it stays until a person unpins it
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interlock_agent.core.records import Installed, UnitRecord
from interlock_shared.documents import Assignment
from interlock_shared.errors import NotFound

FORBID, ONCE, PIN = "forbid", "once", "pin"


def effective(owner: str, server: str) -> str:
    """The policy that holds. `forbid` from either side holds; else the owner's word, then the server's, then `once`."""
    if FORBID in (owner, server):
        return FORBID
    return owner or server or ONCE


def stands(confirmed: Installed | None, wanted: Assignment | None, policy: str) -> bool:
    """Whether the confirmed release came from a file, and stays although the server wants this."""
    held = confirmed.sideload.get("assignment") if confirmed is not None else None
    if not held or confirmed is None or wanted is None:
        return False
    if policy == PIN:
        return not (wanted.over == held and wanted.unpinned)
    return wanted.over != held and wanted.manifest_sha256 != confirmed.manifest_sha256


def unpinned(record: UnitRecord) -> UnitRecord:
    """The record with its release the server's to replace. Raises NotFound (`not_sideloaded`)."""
    if record.confirmed is None or not record.confirmed.sideload:
        raise NotFound(f"{record.unit}: what is confirmed was not brought by a file", code="not_sideloaded")
    return replace(record, confirmed=replace(record.confirmed, sideload={}))


def report(confirmed: Installed | None, policy: str) -> dict[str, Any] | None:
    """What the server is told of a release that a file brought; None where none did."""
    if confirmed is None or not confirmed.sideload:
        return None
    facts = {"version": confirmed.version, "manifest_sha256": confirmed.manifest_sha256}
    return {**confirmed.sideload, **facts, "policy": PIN if policy == PIN else ONCE}
