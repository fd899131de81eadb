"""The server's online keys: snapshot, timestamp, director. Ed25519, made at the first start, never leaving its folder.

The files are PKCS#8 PEM, readable by the owner alone. A key that cannot be read is an error, never a reason to make a
new one: devices would refuse what it signs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from interlock_server.core.releases import DIRECTOR_EPOCH
from interlock_shared import durable, trust
from interlock_shared.base import Signed

NAMES = ("snapshot", "timestamp", "director")


class OnlineKeys:
    """The three signers. `open` makes the missing files."""

    def __init__(self, signers: dict[str, CryptoSigner]) -> None:
        self._signers = signers

    @classmethod
    def open(cls, folder: Path) -> OnlineKeys:
        """Keys of that folder. Blocks. Raises OSError, ValueError on a broken file."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        signers = {}
        for name in NAMES:
            path = folder / f"{name}.pem"
            if not path.exists():
                durable.replace_file(path, CryptoSigner.generate_ed25519().private_bytes, mode=0o600)
            private = load_pem_private_key(path.read_bytes(), None)
            if not isinstance(private, Ed25519PrivateKey):
                raise ValueError(f"{path}: not an Ed25519 key")
            signers[name] = CryptoSigner(private)
        return cls(signers)

    def signers(self) -> dict[str, CryptoSigner]:
        """The signers by name."""
        return dict(self._signers)

    def seal(self, model: Signed, payload_type: str) -> bytes:
        """A DSSE envelope of the document, signed by the director."""
        return trust.seal(model, payload_type, self._signers["director"])

    def public(self) -> dict[str, Any]:
        """Public parts, as `GET /v1/trust/keys` shows them."""
        keys = {
            name: {"keyid": signer.public_key.keyid, "key": signer.public_key.to_dict()}
            for name, signer in self._signers.items()
        }
        return {**keys, "director_epoch": DIRECTOR_EPOCH}
