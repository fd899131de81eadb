"""Who this device is: its key, made here and never leaving, its certificate, and what the enrolment gave.

STATE/identity/device.pem      key (P-256 or Ed25519), then certificate with chain; 0600
STATE/identity/identity.json   device, server, broker; 0600
STATE/trust/root.json          the embedded root, checked against the hash that the technician was given
STATE/trust/tls_ca.pem         the authority of the server's certificate, as the newest trusted root names it

Enrolment and renewal speak to the server, so the fetcher's child does them (fetcher/enrolment.py).
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from interlock_agent.fetcher import messages
from interlock_shared import canonical, durable, trust
from interlock_shared.documents import Verdict
from interlock_shared.errors import Invalid, NotFound, Unreachable, from_wire
from interlock_shared.limits import METADATA_MAX_BYTES

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; why: fetcher/credentials.py


class Identity:
    """The device's key, its certificate and the answers of its enrolment. Raises NotFound before the enrolment."""

    def __init__(self, state: Path) -> None:
        self._state = state
        try:
            self.facts: dict[str, Any] = json.loads((state / "identity" / "identity.json").read_bytes())
            self.reload()
        except FileNotFoundError:
            raise NotFound(
                f"this device is not enrolled: there is no identity in {state}; see interlock-agent enrol --help",
                code="not_enrolled",
            ) from None
        except (OSError, ValueError) as bad:
            raise Invalid(f"the device's identity cannot be read: {bad}", code="bad_identity") from None

    def reload(self) -> None:
        """Key and certificate as they are on the disk now. Raises Invalid (`bad_identity`), OSError, ValueError."""
        data = (self._state / "identity" / "device.pem").read_bytes()
        key = serialization.load_pem_private_key(data, None)
        if not isinstance(key, (ec.EllipticCurvePrivateKey, Ed25519PrivateKey)):
            raise Invalid("the device's key is neither P-256 nor Ed25519", code="bad_identity")
        self._signer = CryptoSigner(key)
        self._certificate = x509.load_pem_x509_certificates(data)[0] if b"BEGIN CERTIFICATE" in data else None

    @property
    def device(self) -> str:
        """The device's id."""
        return str(self.facts["device"])

    def embedded_root(self) -> str:
        """The SHA-256 of the root that the enrolment embedded; "" where it cannot be read. Blocks."""
        try:
            return canonical.sha256((self._state / "trust" / "root.json").read_bytes())
        except OSError:
            return ""

    def sign_verdict(self, verdict: Verdict) -> bytes:
        """A DSSE envelope."""
        return trust.seal(verdict, trust.VERDICT_TYPE, self._signer)

    def tls(self) -> ssl.SSLContext:
        """Believes the server that the root names, and shows this device's certificate. Made anew for each connection:
        both may have been replaced. Blocks. Raises OSError."""
        if self._certificate is None:
            raise OSError("the device has no certificate: enrol it with its server")
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.verify_flags |= NO_CHECK_TIME
        made.load_verify_locations(self._state / "trust" / "tls_ca.pem")
        made.load_cert_chain(self._state / "identity" / "device.pem")
        return made

    def lifetime(self) -> tuple[float, float, float] | None:
        """When the certificate begins, is due for renewal (two thirds of its life) and ends; seconds since the epoch.
        None without a certificate."""
        if self._certificate is None:
            return None
        start = self._certificate.not_valid_before_utc.timestamp()
        end = self._certificate.not_valid_after_utc.timestamp()
        return start, start + (end - start) * 2 / 3, end

    @property
    def serial(self) -> str:
        """Of the certificate, as the server lists it."""
        return format(self._certificate.serial_number, "x") if self._certificate else ""


def enrol(state: Path, job: messages.Job) -> dict[str, Any]:
    """One try of an enrolment, by the fetcher's child; `status` is `enrolled` or `waiting`. Raises what
    fetcher/enrolment.py raises, Unreachable (`fetcher_died`)."""
    state.mkdir(parents=True, exist_ok=True)
    line = messages.encode(replace(job, kind="enrol", state_dir=str(state)))
    command = [sys.executable, "-m", "interlock_agent.fetcher"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        if child.stdin is None or child.stdout is None:
            raise AssertionError("started with pipes")
        child.stdin.write(line)
        child.stdin.flush()  # and stays open: its end would be the end of the child
        said = child.stdout.readline()
    if not said:
        raise Unreachable(f"the fetcher ended with {child.returncode}", code="fetcher_died")
    document = json.loads(said)
    if "error" in document:
        raise from_wire(document["error"])
    return dict(document["done"])


def enrolled(state: Path) -> dict[str, Any] | None:
    """What an enrolment before gave; None without one. Raises OSError when it cannot be told."""
    try:
        return dict(json.loads((state / "identity" / "identity.json").read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def enrol_offline(state: Path, root: bytes, name: str) -> dict[str, Any]:
    """An identity for a device that will never see its server: a key, a name, the embedded root."""
    canonical.decode(root, limit=METADATA_MAX_BYTES, what="root")
    folder = state / "identity"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)
    if not (folder / "device.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        durable.replace_file(folder / "device.pem", key.private_bytes(*form))
    facts = {"schema": "interlock.identity/1", "device": name}
    (state / "trust").mkdir(parents=True, exist_ok=True, mode=0o700)
    durable.replace_file(state / "trust" / "root.json", root)
    durable.replace_file(folder / "identity.json", json.dumps(facts, indent=2).encode() + b"\n")
    return facts
