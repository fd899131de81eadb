"""What metadata files on disk say; of one that is missing, torn or none, nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuf.api import exceptions
from tuf.api.metadata import Metadata

from interlock_shared.floors import RoleKeys

HISTORY = "root_history"  # every root from the embedded one on, as python-tuf keeps them


def signed_of(path: Path) -> Any:
    """The signed part; None where there is none."""
    try:
        return Metadata.from_file(str(path)).signed
    except (exceptions.RepositoryError, exceptions.StorageError, OSError):
        return None


def versions(snapshot: Path) -> dict[str, int]:
    """The targets roles that a snapshot names; {} where there is none."""
    signed = signed_of(snapshot)
    meta = signed.meta if signed is not None else {}
    return {name.removesuffix(".json"): info.version for name, info in meta.items() if name != "root.json"}


def delegated(folder: Path) -> dict[str, RoleKeys]:
    """What targets say of the roles below them."""
    signed = signed_of(folder / "targets.json")
    roles = (signed.delegations.roles if signed is not None and signed.delegations else None) or {}
    return {name: RoleKeys(frozenset(role.keyids), role.threshold) for name, role in roles.items()}


def chain(walk: Path, since: int, newest: int) -> list[dict[str, RoleKeys]]:
    """What the roots `since` to `newest` say; of one that is not here nothing is known."""
    roots = (signed_of(walk / HISTORY / f"{version}.root.json") for version in range(since, newest + 1))
    return [
        {name: RoleKeys(frozenset(role.keyids), role.threshold) for name, role in root.roles.items()}
        for root in roots
        if root is not None
    ]
