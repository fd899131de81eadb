"""Where the device's private key is kept.

    file                                          in STATE/identity, PKCS#8, 0600
    tpm:[?tcti=CONF]                              in the TPM; the file has it wrapped, of use to that very TPM alone
    pkcs11:token=…;object=…?pin-source=file:/…    in a PKCS#11 token (RFC 7512), made there by its owner

A key that is not in the file is an OpenSSL provider's (keys/openssl.py). In its place stands the provider's PEM, after
two lines of ours, which readers of PEM skip:

    interlock-key: tpm:
    interlock-public: MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE…
    -----BEGIN TSS2 PRIVATE KEY-----

So one file says all about the key, one rename replaces it, and who the device is can be told while the TPM is away. A
process whose key is in a file loads nothing of this.
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from interlock_agent.keys import PKCS11, TPM2
from interlock_shared.errors import InterlockError, Invalid, Unreachable

FILE = "file"
URI_MAX = 1024  # characters
TPM_DEVICE = (
    "device:/dev/tpmrm0"  # always said: left alone, tpm2-tss ends at a port of this machine that anybody may open
)
FORMS = "file, tpm: or pkcs11:token=…;object=…?pin-source=file:/…"
OURS = re.compile(rb"^interlock-key: (\S+)\ninterlock-public: (\S+)\n(?=-----BEGIN )")
NAMED = ("token", "object", "id", "serial", "model", "manufacturer", "slot-id")


@dataclass(frozen=True)
class Place:
    """A URI that was understood. `shown`: without what only this machine needs to know; `named`: what the provider is
    told; `environment`: how it finds the device."""

    uri: str
    shown: str
    provider: str
    named: str
    environment: tuple[tuple[str, str], ...] = ()
    pin: Path | None = None


def place(uri: str) -> Place | None:
    """What a URI means; None: a file. Raises Invalid (`bad_key_uri`)."""
    if uri in ("", FILE):
        return None
    scheme, _, rest = uri.partition(":")
    if len(uri) > URI_MAX or not re.fullmatch(r"[\x21-\x7e]+", uri):
        raise _bad(uri[:80], f"it has blanks, or more than {URI_MAX} characters")
    path, _, query = rest.partition("?")
    asked = _pairs(uri, query, "&", ("tcti",) if scheme == "tpm" else ("pin-source", "module-path"))
    if scheme == "tpm":
        if path:
            raise _bad(uri, "nothing stands between tpm: and ?tcti=…: the key is made in the TPM")
        return Place(uri, "tpm:", TPM2, "", (("TPM2OPENSSL_TCTI", asked.get("tcti", TPM_DEVICE)),))
    if scheme != "pkcs11":
        raise _bad(uri, f"a key is in one of {FORMS}")
    if not {"object", "id"} & _pairs(uri, path, ";", NAMED).keys():
        raise _bad(uri, "it names no key: object=… or id=…")
    source = asked.get("pin-source", "")
    if not source.removeprefix("file:").startswith("/"):
        raise _bad(uri, "a service cannot be asked for a PIN: pin-source=file:/… names a file that has it")
    found = (("PKCS11_PROVIDER_MODULE", asked["module-path"]),) if "module-path" in asked else ()
    pin = Path(source.removeprefix("file:"))
    named = f"pkcs11:{path};type=private?pin-source=file:{pin}"  # the public half has the same name, and came first
    return Place(uri, f"pkcs11:{path}", PKCS11, named, found, pin)


def _pairs(uri: str, text: str, between: str, known: tuple[str, ...]) -> dict[str, str]:
    pairs = {name: value for name, _, value in (one.partition("=") for one in text.split(between) if one)}
    for name in pairs:
        if name == "pin-value":
            raise _bad("pkcs11:…", "a PIN on a command line is seen by everybody: pin-source=file:/…")
        if name not in known:
            raise _bad(uri, f"{name} is none of {', '.join(known)}")
    return {name: unquote(value) for name, value in pairs.items()}


def _bad(uri: str, why: str) -> Invalid:
    return Invalid(f"{uri}: {why}", field="--key", code="bad_key_uri")


class HeldKey:
    """A private key that stays where it is; `cryptography` and what builds on it take it for one of theirs."""

    digest: str | None = None

    def __init__(self, where: Place, pem: bytes, public: bytes) -> None:
        self.place, self.pem, self._public, self._der = where, pem, load_der_public_key(public), public

    def public_key(self) -> object:
        """Known without asking for it."""
        return self._public

    def sign(self, data: bytes, algorithm: object = None) -> bytes:
        """With SHA-256 (P-256), or Ed25519. Blocks. Raises Unreachable (`key_away`, `no_key_provider`)."""
        del algorithm
        from interlock_agent.keys import openssl

        try:
            self.provide()
            return openssl.sign(self.pem, self.place.provider, self.digest, data)
        except Unreachable as bad:
            raise _away(self.place, bad) from None

    def provide(self) -> None:
        """Its provider is loaded into this process. Blocks. Raises Unreachable (`no_key_provider`, `key_away`)."""
        from interlock_agent.keys import openssl  # ctypes, and what it loads, only where a key needs it

        openssl.provide(self.place.provider, dict(self.place.environment))

    def kept(self) -> bytes:
        """As it stands in a file."""
        public = base64.b64encode(self._der)
        return b"interlock-key: " + self.place.uri.encode() + b"\ninterlock-public: " + public + b"\n" + self.pem


@ec.EllipticCurvePrivateKey.register
class HeldP256(HeldKey):
    """Of ECDSA on P-256."""

    digest, curve, key_size = "SHA256", ec.SECP256R1(), 256


@Ed25519PrivateKey.register
class HeldEd25519(HeldKey):
    """Of Ed25519."""


def held(data: bytes) -> HeldKey | None:
    """The key that a PEM file names; None: the key itself is in it. Asks nobody. Raises Invalid (`bad_identity`)."""
    match = OURS.match(data)
    if match is None:
        return None
    try:
        where = place(match[1].decode())
        public = base64.b64decode(match[2], validate=True)
        end = data.index(b"-----BEGIN CERTIFICATE") if b"-----BEGIN CERTIFICATE" in data else len(data)
        if where is None:
            raise ValueError("it says that the key is here, and it is not")
        return _of(where, data[match.end() : end], public)
    except (InterlockError, ValueError, binascii.Error) as bad:
        raise Invalid(f"the device's key: {bad}", code="bad_identity") from None


def load_pair(context: ssl.SSLContext, pair: Path) -> None:
    """Show the certificate in a PEM file, by the key that the file has, or names. Blocks. Raises OSError (ssl.SSLError
    is one), Invalid (`bad_identity`), Unreachable (`key_away`, `no_key_provider`)."""
    key = held(pair.read_bytes())
    if key is None:
        context.load_cert_chain(pair)
        return
    from interlock_agent.keys import openssl

    try:
        key.provide()
        context.load_cert_chain(pair)
        context.sslsocket_class = openssl.Socket
    except Unreachable as bad:
        raise _away(key.place, bad) from None
    except OSError as bad:  # ssl.SSLError; or whatever the provider's own files gave, as Python puts it
        raise Unreachable(f"{key.place.shown} the key cannot be used: {bad}", code="key_away") from None


def obtain(where: Place) -> HeldKey:
    """A key at its place: a fresh one in a TPM, the one that is named in a token. It has signed once.

    Blocks. Raises Unreachable (`no_key_provider`, `key_away`), Invalid (`bad_key_type`, `open_pin_file`)."""
    from interlock_agent.keys import openssl

    _closed(where)
    try:
        openssl.provide(where.provider, dict(where.environment))
        pem = openssl.generate(where.provider) if where.provider == TPM2 else _named(where.named)
        key = _of(where, pem, openssl.public_of(pem))
    except Unreachable as bad:
        raise _away(where, bad) from None
    key.sign(b"interlock")  # what cannot be used is told now, before anything is kept
    return key


def following(key: HeldKey) -> HeldKey:
    """The next key: fresh in a TPM; in a token it is its owner who makes keys, and the same stays."""
    return obtain(key.place)


def _of(where: Place, pem: bytes, public: bytes) -> HeldKey:
    loaded = load_der_public_key(public)
    if isinstance(loaded, Ed25519PublicKey):
        return HeldEd25519(where, pem, public)
    if isinstance(loaded, ec.EllipticCurvePublicKey) and isinstance(loaded.curve, ec.SECP256R1):
        return HeldP256(where, pem, public)
    raise Invalid(f"{where.shown}: the key there is neither P-256 nor Ed25519", code="bad_key_type")


def _closed(where: Place) -> None:
    if where.pin is None:
        return
    try:
        mode = where.pin.stat().st_mode
    except OSError as bad:
        raise Unreachable(f"{where.shown}: the file with the PIN: {bad.strerror}", code="key_away") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Invalid(f"{where.pin}: others can read this PIN (chmod 600)", code="open_pin_file")


def _away(where: Place, bad: Unreachable) -> Unreachable:
    return Unreachable(f"{where.shown} {bad.message}", code=bad.code)


def _named(uri: str) -> bytes:
    """The PEM of pkcs11-provider: SEQUENCE { VisibleString what, UTF8String URI }, DER."""
    content = _tlv(0x1A, b"PKCS#11 Provider URI v1.0") + _tlv(0x0C, uri.encode())
    lines = base64.encodebytes(_tlv(0x30, content))
    return b"-----BEGIN PKCS#11 PROVIDER URI-----\n" + lines + b"-----END PKCS#11 PROVIDER URI-----\n"


def _tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    long = [] if size < 0x80 else [0x81] if size < 0x100 else [0x82, size >> 8]
    return bytes([tag, *long, size & 0xFF]) + value
