"""A fleet whose releases need two signers: two key folders, each with a release key of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Targets

from interlock_server.publisher import ceremony, keys
from interlock_server.publisher.keys import KeyFolder
from interlock_shared import canonical, topics


@dataclass(frozen=True)
class Signers:
    """`first` has all keys of the fleet, `second` and `third` (a stranger) a release key alone."""

    first: KeyFolder
    second: KeyFolder
    third: KeyFolder
    keys: tuple[Signer, ...]  # the release keys, in that order

    @property
    def keyids(self) -> tuple[str, ...]:
        """Of the release keys."""
        return tuple(str(one.public_key.keyid) for one in self.keys)


def two_signers(where: Path, online: Mapping[str, Any], model: str, now: datetime) -> tuple[Signers, dict[str, Any]]:
    """The folders, and what is posted to `/v1/trust`: the model's role has two keys, and needs both."""
    folders = [KeyFolder(where / name) for name in ("first", "second", "third")]
    upload = ceremony.first_trust(folders[0], online, [model], now)
    role = topics.release_role(model)
    for other in folders[1:]:
        other.create(role)
        other.write(keys.ROOT_FILE, folders[0].root())
    made = Signers(folders[0], folders[1], folders[2], tuple(one.signer(role) for one in folders))
    targets = Metadata[Targets].from_dict(upload["targets"])
    targets.signed.add_key(made.keys[1].public_key, role)
    assert targets.signed.delegations
    assert targets.signed.delegations.roles
    targets.signed.delegations.roles[role].threshold = 2
    targets.sign(made.first.signer("targets"))
    empty = Metadata[Targets].from_dict(upload["delegated"][role])
    empty.sign(made.keys[0])
    empty.sign(made.keys[1], append=True)
    upload |= {"targets": targets.to_dict(), "delegated": {role: empty.to_dict()}}
    made.first.write(keys.PENDING_FILE, canonical.encode(upload))
    return made, upload


def replaced(made: Signers, upload: dict[str, Any], model: str) -> dict[str, Any]:
    """What is posted to let the third's key take the second's place."""
    role = topics.release_role(model)
    targets = Metadata[Targets].from_dict(upload["targets"])
    targets.signed.revoke_key(made.keyids[1], role)
    targets.signed.add_key(made.keys[2].public_key, role)
    targets.signed.version += 1
    targets.sign(made.first.signer("targets"))
    empty = Metadata[Targets].from_dict(upload["delegated"][role])
    empty.signed.version += 1
    empty.sign(made.keys[0])
    empty.sign(made.keys[2], append=True)
    return {**upload, "targets": targets.to_dict(), "delegated": {role: empty.to_dict()}}
