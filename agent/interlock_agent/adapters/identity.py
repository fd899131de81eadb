"""Who this device is: its key, made here and never leaving, its certificate, and what the enrolment gave.

STATE/identity/device.pem      key (P-256 or Ed25519; or where it is: keys/places.py), then certificate with chain; 0600
STATE/identity/identity.json   device, server, broker; 0600
STATE/trust/root.json          the embedded root, checked against the hash that the technician was given
STATE/trust/tls_ca.pem         the authority of the server's certificate, as the newest trusted root names it

Enrolment and renewal speak to the server, so the fetcher's child does them (fetcher/enrolment.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner

from interlock_agent.fetcher import messages
from interlock_agent.keys import places
from interlock_agent.keys.places import HeldKey
from interlock_shared import canonical, durable, trust
from interlock_shared.documents import Verdict
from interlock_shared.errors import InterlockError, Invalid, Later, NotFound, Unreachable, from_wire
from interlock_shared.limits import METADATA_MAX_BYTES

log = logging.getLogger("interlock.identity")

ANSWER_S = 60.0  # for a TPM that is busy
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; why: fetcher/credentials.py


class Identity:
    """The device's key, its certificate and the answers of its enrolment. Raises NotFound before the enrolment."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.key_trouble = ""  # of a key in a TPM or a token, as of its last use
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
        held = places.held(data)
        key = held or serialization.load_pem_private_key(data, None)
        if not isinstance(key, (ec.EllipticCurvePrivateKey, Ed25519PrivateKey, HeldKey)):
            raise Invalid("the device's key is neither P-256 nor Ed25519", code="bad_identity")
        self._signer = CryptoSigner(cast(Any, key))
        self.key, self.is_held = held.place.shown if held else places.FILE, held is not None
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

    async def sign_verdict(self, verdict: Verdict) -> bytes:
        """A DSSE envelope. Raises Later where the key is elsewhere, and does not answer: no fault of what is judged."""
        try:
            with self._used():
                return await asyncio.to_thread(trust.seal, verdict, trust.VERDICT_TYPE, self._signer)
        except Unreachable as bad:
            raise Later(bad.message, code=bad.code) from None

    async def answers(self) -> bool:
        """Whether the key signs, in this process."""
        try:
            with self._used():
                await asyncio.to_thread(self._signer.sign, b"interlock")
        except InterlockError:
            return False
        return True

    async def answers_others(self) -> bool:
        """Whether the key signs in a process that begins now."""
        command = (sys.executable, "-m", "interlock_agent.keys", str(self._state / "identity" / "device.pem"))
        child = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        try:
            return await asyncio.wait_for(child.wait(), ANSWER_S) == 0
        except (asyncio.TimeoutError, TimeoutError):  # two before Python 3.11
            return False
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    @contextmanager
    def _used(self) -> Iterator[None]:
        try:
            yield
        except InterlockError as bad:
            if bad.message != self.key_trouble:
                log.warning("the device's key: %s", bad.message)
            self.key_trouble = bad.message
            raise
        self.key_trouble = ""

    def note(self) -> str:
        """What a person should know of the key; empty when all is well."""
        return f"the device's key: {self.key_trouble}; what serves goes on" if self.key_trouble else ""

    def tls(self) -> ssl.SSLContext:
        """Believes the server that the root names, and shows this device's certificate. Made anew for each connection:
        both may have been replaced. Blocks. Raises OSError, and Unreachable as above."""
        if self._certificate is None:
            raise OSError("the device has no certificate: enrol it with its server")
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.verify_flags |= NO_CHECK_TIME
        made.load_verify_locations(self._state / "trust" / "tls_ca.pem")
        with self._used():
            places.load_pair(made, self._state / "identity" / "device.pem")
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


def enrol_offline(state: Path, root: bytes, name: str, uri: str = places.FILE) -> dict[str, Any]:
    """An identity for a device that will never see its server: a key, a name, the embedded root. Raises Invalid, and
    what `places.obtain` raises."""
    canonical.decode(root, limit=METADATA_MAX_BYTES, what="root")
    where, folder = places.place(uri), state / "identity"
    made = places.obtain(where).kept() if where else None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)
    if made or not (folder / "device.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        durable.replace_file(folder / "device.pem", made or key.private_bytes(*form))
    facts = {"schema": "interlock.identity/1", "device": name, "key": uri}
    (state / "trust").mkdir(parents=True, exist_ok=True, mode=0o700)
    durable.replace_file(state / "trust" / "root.json", root)
    durable.replace_file(folder / "identity.json", json.dumps(facts, indent=2).encode() + b"\n")
    return facts
