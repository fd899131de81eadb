"""Whom this device believes on the network, and by what it is known: TLS by the authority that the root names.

STATE/trust/tls_ca.pem       the authority of the server's certificate, as the trusted root metadata says it
STATE/identity/device.pem    key, then certificate with chain: one file, so that one rename replaces both
STATE/identity/device.crt    the certificate again, for people and programs
STATE/identity/renewed.pem   the next pair, until it was used once
STATE/identity/enrolling.pem a key whose enrolment has not been answered

Dates in certificates are judged by the time floor and not by the clock: a device without a battery must get through,
and what has expired below the floor must not.
"""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from interlock_agent.keys import places
from interlock_agent.keys.places import HeldKey
from interlock_shared import durable
from interlock_shared.errors import Invalid, Untrusted
from interlock_shared.topics import ROOT_EXTENSION

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL; `http.Server` compares with the floor instead
P256, ED25519 = "p256", "ed25519"
KEY_TYPES = (P256, ED25519)
PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey | HeldKey


def authority_file(state: Path) -> Path:
    """Where the TLS authority of the trusted root lies."""
    return state / "trust" / "tls_ca.pem"


def pair_file(state: Path) -> Path:
    """Where key and certificate lie."""
    return state / "identity" / "device.pem"


def renewed_file(state: Path) -> Path:
    """Where the next pair lies until it was used."""
    return state / "identity" / "renewed.pem"


def context(authority: str, pair: Path | None) -> ssl.SSLContext:
    """Believes servers with a certificate of that authority (PEM) alone. Blocks.

    Raises Untrusted (`no_tls_ca`), Invalid (`bad_identity`), Unreachable (`key_away`, `no_key_provider`).
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.verify_flags |= NO_CHECK_TIME
    try:
        made.load_verify_locations(cadata=authority)
    except ssl.SSLError:
        raise Untrusted("the root names no TLS authority that can be read", code="no_tls_ca") from None
    if pair is not None:
        try:
            places.load_pair(made, pair)
        except OSError as bad:
            raise Invalid(f"the device's certificate cannot be used: {bad}", code="bad_identity") from None
    return made


def of_device(state: Path, pair: Path | None = None) -> ssl.SSLContext | None:
    """The context of an enrolled device; None for one that knows no server."""
    try:
        authority = authority_file(state).read_text()
    except FileNotFoundError:
        return None
    return context(authority, pair or pair_file(state))


def unverified() -> ssl.SSLContext:
    """Whoever answers: for what is checked by its hash."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def authority_of(root: bytes) -> str:
    """The TLS authority that a root metadata file names. Raises Untrusted (`no_tls_ca`)."""
    try:
        return str(json.loads(root)["signed"][ROOT_EXTENSION]["tls_ca"])
    except (ValueError, KeyError, TypeError):
        raise Untrusted("the root names no TLS authority", code="no_tls_ca") from None


def keep_authority(state: Path, root: bytes) -> None:
    """After a refresh: what the newest trusted root says is what counts from now on."""
    try:
        named = authority_of(root).encode()
    except Untrusted:
        return  # a fleet without a server that is reached by TLS
    path = authority_file(state)
    if not path.exists() or path.read_bytes() != named:
        durable.replace_file(path, named, mode=0o644)


# --- keys and requests -----------------------------------------------------------------------------------------------


def check_place(uri: str, kind: str) -> None:
    """Before anything is asked of anybody. Raises Invalid (`bad_key_uri`)."""
    if places.place(uri) is not None and kind != P256:
        raise Invalid("--key-type is for a key in a file; a TPM's is P-256", field="--key-type", code="bad_key_uri")


def key_at(uri: str, kind: str) -> PrivateKey:
    """The key of an enrolment: fresh, or the one that a token's URI names. Raises Invalid (`bad_key_uri`,
    `bad_key_type`, `open_pin_file`), Unreachable (`key_away`, `no_key_provider`)."""
    where = places.place(uri)
    return new_key(kind) if where is None else places.obtain(where)


def place_of(key: PrivateKey) -> str:
    """Its URI."""
    return key.place.uri if isinstance(key, HeldKey) else places.FILE


def new_key(kind: str) -> PrivateKey:
    """A fresh key in a file. Raises Invalid."""
    if kind == P256:
        return ec.generate_private_key(ec.SECP256R1())
    if kind == ED25519:
        return Ed25519PrivateKey.generate()
    raise Invalid(f"key type {kind!r} is none of {', '.join(KEY_TYPES)}", field="--key-type")


def following(key: PrivateKey) -> PrivateKey:
    """The key after this one, at the same place and of the same kind. Raises what `places.obtain` raises."""
    if isinstance(key, HeldKey):
        return places.following(key)
    return new_key(ED25519 if isinstance(key, Ed25519PrivateKey) else P256)


def load_key(path: Path) -> PrivateKey:
    """The private key that a file has, or names. Raises Invalid (`bad_identity`), FileNotFoundError."""
    data = path.read_bytes()
    held = places.held(data)
    if held is not None:
        return held
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as bad:
        raise Invalid(f"{path}: not a private key: {bad}", code="bad_identity") from None
    if isinstance(key, (ec.EllipticCurvePrivateKey, Ed25519PrivateKey)):
        return key
    raise Invalid(f"{path}: the device's key is neither P-256 nor Ed25519", code="bad_identity")


def pem_of(key: PrivateKey) -> bytes:
    """PKCS#8; of a key that is elsewhere, what names it."""
    if isinstance(key, HeldKey):
        return key.kept()
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request_of(key: PrivateKey, device: str) -> str:
    """A signing request (PEM); the name in it is a hint for people, the server decides. Raises Unreachable where the
    key is elsewhere."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device or "interlock-device")])
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(cast(Any, key), algorithm)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def check_certificate(pem: str, key: PrivateKey, device: str) -> x509.Certificate:
    """That what the server issued is for this key and this device. Raises Untrusted (`bad_certificate`)."""
    try:
        certificate = x509.load_pem_x509_certificates(pem.encode())[0]
        names = [one.value for one in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    except ValueError as bad:
        raise Untrusted(f"the server's answer is no certificate: {bad}", code="bad_certificate") from None
    if certificate.public_key() != key.public_key() or names != [device]:
        raise Untrusted("the server's certificate is for another key or device", code="bad_certificate")
    return certificate


def keep_pair(path: Path, key: PrivateKey, certificate: str) -> None:
    """Key and certificate, at once and durably, for their owner alone."""
    durable.replace_file(path, pem_of(key) + certificate.encode())


def take_over(state: Path) -> None:
    """The next pair was used: it is the device's from now on."""
    durable.rename_folder(renewed_file(state), pair_file(state))
    show_certificate(state)


def show_certificate(state: Path) -> None:
    """The public half of the pair in a file of its own."""
    data = pair_file(state).read_bytes()
    durable.replace_file(state / "identity" / "device.crt", data[data.index(b"-----BEGIN CERTIFICATE") :], mode=0o644)


def prepare(state: Path) -> Path:
    """The folder of the identity, for its owner alone."""
    folder = state / "identity"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chmod(folder, 0o700)
    return folder
