"""Who this device is: its key, made here and never leaving, and what the enrolment gave.

STATE/identity/device.pem      Ed25519, 0600
STATE/identity/identity.json   device, server, broker, broker password; 0600
STATE/trust/root.json          the embedded root, checked against the hash that the technician was given
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from interlock_shared import __version__, canonical, durable, topics, trust
from interlock_shared.documents import Verdict
from interlock_shared.errors import InterlockError, Invalid, NotFound, Unreachable, Untrusted, from_wire
from interlock_shared.limits import DOCUMENT_MAX_BYTES, METADATA_MAX_BYTES

TIMEOUT_S = 30.0


class Identity:
    """The device's key and the answers of its enrolment. Raises NotFound before the enrolment."""

    def __init__(self, state: Path) -> None:
        try:
            self.facts: dict[str, Any] = json.loads((state / "identity" / "identity.json").read_bytes())
            key = serialization.load_pem_private_key((state / "identity" / "device.pem").read_bytes(), None)
        except FileNotFoundError:
            raise NotFound(
                f"this device is not enrolled: there is no identity in {state}; see interlock-agent enrol --help",
                code="not_enrolled",
            ) from None
        except (OSError, ValueError) as bad:
            raise Invalid(f"the device's identity cannot be read: {bad}", code="bad_identity") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise Invalid("the device's key is not Ed25519", code="bad_identity")
        self._signer = CryptoSigner(key)

    @property
    def device(self) -> str:
        """The device's id."""
        return str(self.facts["device"])

    def sign_verdict(self, verdict: Verdict) -> bytes:
        """A DSSE envelope."""
        return trust.seal(verdict, trust.VERDICT_TYPE, self._signer)


def _key(folder: Path) -> Ed25519PrivateKey:
    """The device's key; made at the first call, so that an enrolment that broke off goes on with the same one."""
    path = folder / "device.pem"
    if path.exists():
        loaded = serialization.load_pem_private_key(path.read_bytes(), None)
        if isinstance(loaded, Ed25519PrivateKey):
            return loaded
        raise Invalid("the device's key is not Ed25519", code="bad_identity")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    durable.replace_file(path, pem)
    return key


def enrol(state: Path, server: str, token: str, root_sha256: str, name: str | None) -> dict[str, Any]:
    """Enrol with a server: the root first, checked; only then the token is sent.

    Raises Untrusted (`root_mismatch`), Unreachable, and what the server refuses with.
    """
    server = server.rstrip("/")
    root = _ask(server + topics.METADATA.replace("{name}", "1.root.json"), None, METADATA_MAX_BYTES)
    digest = hashlib.sha256(root).hexdigest()
    if digest != root_sha256.lower():
        raise Untrusted(f"the server's root is {digest}, {root_sha256} was expected", code="root_mismatch")
    folder = _prepare(state)
    public = CryptoSigner(_key(folder)).public_key
    key = {"keyid": public.keyid, "key": public.to_dict()}
    asked = {"token": token, "key": key, "agent": __version__, "name": name}
    answer = json.loads(_ask(server + topics.ENROL, asked, DOCUMENT_MAX_BYTES))
    facts = {"schema": "interlock.identity/1", **answer, "server": answer.get("server") or server}
    _write(state, root, facts)
    return facts


def enrolled(state: Path) -> dict[str, Any] | None:
    """What an enrolment before gave; None without one. Raises OSError when it cannot be told."""
    try:
        return dict(json.loads((state / "identity" / "identity.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def enrol_offline(state: Path, root: bytes, name: str) -> dict[str, Any]:
    """An identity for a device that will never see its server: a key, a name, the embedded root."""
    canonical.decode(root, limit=METADATA_MAX_BYTES, what="root")
    _key(_prepare(state))
    facts = {"schema": "interlock.identity/1", "device": name}
    _write(state, root, facts)
    return facts


def _prepare(state: Path) -> Path:
    folder = state / "identity"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)
    return folder


def _write(state: Path, root: bytes, facts: dict[str, Any]) -> None:
    (state / "trust").mkdir(parents=True, exist_ok=True, mode=0o700)
    durable.replace_file(state / "trust" / "root.json", root)
    durable.replace_file(state / "identity" / "identity.json", json.dumps(facts, indent=2).encode() + b"\n")


def _ask(url: str, body: dict[str, Any] | None, limit: int) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise Invalid(f"{url}: a server's address begins with http:// or https://", field="server")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  # checked above
    try:
        context = ssl.create_default_context() if url.startswith("https") else None
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:  # noqa: S310  # as above
            return bytes(answer.read(limit))
    except urllib.error.HTTPError as refused:
        raise _refusal(refused, url) from None
    except (OSError, ValueError) as broken:
        raise Unreachable(f"{url}: {broken}") from None


def _refusal(refused: urllib.error.HTTPError, url: str) -> InterlockError:
    with refused:
        body = refused.read(DOCUMENT_MAX_BYTES)
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, dict) and "code" in document:
        return from_wire(document)
    return Unreachable(f"{url}: answered {refused.code}", code="server_refused")
