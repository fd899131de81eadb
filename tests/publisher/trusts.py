"""Trust without a server: its online keys as it would show them, and people with folders of keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key

from interlock_server.publisher.keys import KeyFolder

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def online(**more: Any) -> dict[str, Any]:
    """What `GET /v1/trust/keys` says, of fresh keys."""
    made = {role: CryptoSigner.generate_ed25519().public_key for role in ("snapshot", "timestamp", "director")}
    shown = {role: {"keyid": key.keyid, "key": key.to_dict()} for role, key in made.items()}
    return {**shown, "director_epoch": 1, **more}


def person(folder: Path, name: str, *roles: str) -> KeyFolder:
    """A person with a key for each role."""
    mine = KeyFolder(folder / name)
    for role in roles:
        mine.create(role, name)
    return mine


def public(*people: KeyFolder) -> dict[str, list[Key]]:
    """Their public keys by role."""
    found: dict[str, list[Key]] = {}
    for one in people:
        for held in one.held():
            found.setdefault(held.role, []).append(held.key)
    return found
