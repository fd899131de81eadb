"""The server's online keys: snapshot, timestamp, director. Ed25519, made at the first start, never leaving its folder.

The files are PKCS#8 PEM, readable by the owner alone. A key that cannot be read is an error, never a reason to make a
new one: devices would refuse what it signs.

Rotation: a fresh key lies beside the old one as `ROLE.next.pem`. The old one signs on until metadata that was signed
offline names the fresh one; then the fresh one takes its place, and the old one is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from interlock_shared import durable, trust
from interlock_shared.base import Signed
from interlock_shared.errors import Invalid

log = logging.getLogger(__name__)

NAMES = ("snapshot", "timestamp", "director")


def _load(path: Path) -> CryptoSigner:
    try:
        private = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise Invalid(f"{path}: not an Ed25519 private key; restore it from a backup", code="broken_store")
    return CryptoSigner(private)


def _public(signer: CryptoSigner) -> dict[str, Any]:
    return {"keyid": signer.public_key.keyid, "key": signer.public_key.to_dict()}


class OnlineKeys:
    """The three signers, and the fresh ones that wait for their turn. `open` makes the missing files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.epoch = folder, 1
        self._signers: dict[str, CryptoSigner] = {}
        self._next: dict[str, CryptoSigner] = {}

    @classmethod
    def open(cls, folder: Path) -> OnlineKeys:
        """Keys of that folder. Blocks. Raises OSError, Invalid (`broken_store`)."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = cls(folder)
        for name in NAMES:
            path = keys._path(name)
            if not path.exists():
                durable.replace_file(path, CryptoSigner.generate_ed25519().private_bytes, mode=0o600)
            keys._signers[name] = _load(path)
            if keys._path(f"{name}.next").exists():
                keys._next[name] = _load(keys._path(f"{name}.next"))
        return keys

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pem"

    def candidates(self, role: str) -> list[CryptoSigner]:
        """The signers of a role: the one that is used, and the fresh one where a rotation was begun."""
        return [self._signers[role], *([self._next[role]] if role in self._next else [])]

    def begin(self, roles: Collection[str]) -> None:
        """Make a fresh key for each role, in the place of one that was made and never named. Blocks."""
        for role in roles:
            made = CryptoSigner.generate_ed25519()
            durable.replace_file(self._path(f"{role}.next"), made.private_bytes, mode=0o600)
            self._next[role] = made

    def settle(self, named: Mapping[str, Collection[str]], epoch: int) -> None:
        """What trusted metadata says: the key ids of each role, and the director's epoch. A fresh key that is named
        takes its place; done again after a power cut it does the same. Blocks.
        """
        for role, keyids in named.items():
            fresh = self._next.get(role)
            if not {one.public_key.keyid for one in self.candidates(role)} & set(keyids):
                log.error("keys/%s.pem is not the key that devices trust: put it back, or rotate it", role)
            if fresh is None or fresh.public_key.keyid not in keyids:
                continue
            durable.replace_file(self._path(role), fresh.private_bytes, mode=0o600)
            durable.remove(self._path(f"{role}.next"))
            self._signers[role] = self._next.pop(role)
        self.epoch = epoch  # last: whoever reads the new one signs with the new key

    def seal(self, model: Signed, payload_type: str) -> bytes:
        """A DSSE envelope of the document, signed by the director."""
        return trust.seal(model, payload_type, self._signers["director"])

    def public(self) -> dict[str, Any]:
        """Public parts, as `GET /v1/trust/keys` shows them; `next` where a rotation was begun."""
        keys = {name: _public(signer) for name, signer in self._signers.items()}
        for name, fresh in self._next.items():
            keys[name]["next"] = _public(fresh)
        return {**keys, "director_epoch": self.epoch}
