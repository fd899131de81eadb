"""A key is a URI, opened by securesystemslib's signers.

    file:PATH                a PKCS#8 PEM file, encrypted or not; relative to the folder of keys
    hsm:[ID][?label=LABEL]   PKCS#11: a YubiKey, an HSM, SoftHSM; $PYKCS11LIB names the module (extra `hsm`)
    gcpkms:… awskms:… azurekms:…   the KMS of a cloud, by its own library and credentials (extras of securesystemslib)

Rules of the file: a private key in a file is readable by its owner alone, or it is refused; nothing here prints one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import BasicConstraints, ExtensionNotFound, load_pem_x509_certificates
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import AWSSigner, AzureSigner, CryptoSigner, GCPSigner, HSMSigner, Key, Signer

from interlock_server.publisher.passphrases import Passphrases
from interlock_shared import durable
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound, Unreachable

FILE, HSM = "file", HSMSigner.SCHEME
CLOUDS: dict[str, Any] = {
    GCPSigner.SCHEME: GCPSigner.import_,
    AWSSigner.SCHEME: AWSSigner.import_,
    AzureSigner.SCHEME: AzureSigner.import_,
}
SCHEMES = (FILE, HSM, *CLOUDS)


@dataclass(frozen=True)
class Place:
    """Where relative paths start, and who says passphrases."""

    folder: Path
    secrets: Passphrases


def _path(uri: str, place: Place) -> Path:
    return place.folder / uri.partition(":")[2]


def scheme_of(uri: str) -> str:
    """Raises Invalid (`bad_key_uri`)."""
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise Invalid(f"{uri!r} is no key: one of {', '.join(f'{one}:' for one in SCHEMES)} is", code="bad_key_uri")
    return scheme


def load(uri: str, public: Key, place: Place) -> Signer:
    """The signer behind a URI. Raises NotFound (`no_key`), Forbidden (`key_readable_by_others`, `no_passphrase`,
    `wrong_passphrase`), Invalid (`bad_key`), Unreachable (`key_unreachable`: a token that is not plugged in, a cloud).
    """
    if scheme_of(uri) == FILE:
        signer = of_file(_path(uri, place), place.secrets)
        if signer.public_key.keyval != public.keyval:
            raise Invalid(f"{uri}: it is another key than the one that keys.toml names", code="bad_key")
        return signer
    try:
        inner = Signer.from_priv_key_uri(uri, public, lambda _: place.secrets.pin(uri))
    except UnsupportedLibraryError as bad:
        raise _unsupported(uri, bad) from None
    except Exception as bad:  # noqa: BLE001 - securesystemslib lets the errors of each library through
        raise Unreachable(f"{uri}: {bad}", code="key_unreachable") from None
    return _Told(uri, inner)


def of_uri(uri: str, place: Place) -> Signer:
    """The signer of a key that nothing has named before: a URI, or the name of a file. Raises as `load`."""
    known = uri if uri.partition(":")[0] in SCHEMES else f"{FILE}:{uri}"
    return load(*public_of(known, place), place)


class _Told(Signer):
    """A signer outside this process, whose errors are told as ours."""

    def __init__(self, uri: str, inner: Signer) -> None:
        self._uri, self._inner = uri, inner

    @property
    def public_key(self) -> Key:
        return self._inner.public_key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> Signer:
        return Signer.from_priv_key_uri(priv_key_uri, public_key, secrets_handler)

    def sign(self, payload: bytes) -> Any:
        try:
            return self._inner.sign(payload)
        except UnsupportedLibraryError as bad:
            raise _unsupported(self._uri, bad) from None
        except (Forbidden, Invalid):
            raise  # a PIN that could not be asked for
        except Exception as bad:  # noqa: BLE001 - see `load`
            words = str(bad) or type(bad).__name__
            raise Unreachable(f"{self._uri}: it did not sign: {words}", code="key_unreachable") from None


def _unsupported(uri: str, bad: Exception) -> Invalid:
    extra = "'interlock-server[hsm]'" if uri.startswith(HSM) else "what the cloud's signer of securesystemslib needs"
    return Invalid(f"{uri}: {bad}: pip install {extra}", code="no_key_library")


def check_private(uri: str, place: Place) -> None:
    """That the file of a key is there, and private. Raises NotFound, Forbidden (`key_readable_by_others`)."""
    if scheme_of(uri) == FILE:
        _private_file(_path(uri, place))


def _private_file(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise Forbidden(f"{path}: others can read this key: chmod 600 it", code="key_readable_by_others")
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no key {path}", code="no_key") from None
    except OSError as bad:
        raise Forbidden(f"{path}: {bad.strerror}", code="no_key") from None


def of_file(path: Path, secrets: Passphrases) -> CryptoSigner:
    """The key in a file. Raises as `load`."""
    data = _private_file(path)
    private = _decrypted(path, data, secrets)
    if not isinstance(private, (Ed25519PrivateKey, EllipticCurvePrivateKey)):
        raise Invalid(f"{path}: neither an Ed25519 nor an ECDSA key", code="bad_key")
    return CryptoSigner(private)


def _decrypted(path: Path, data: bytes, secrets: Passphrases) -> Any:
    if b"ENCRYPTED" not in data[:200]:
        try:
            return load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise Invalid(f"{path}: not a private key", code="bad_key") from None
    for secret in secrets.guesses(str(path)):
        with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
            private = load_pem_private_key(data, secret.encode())
            secrets.opened(secret)
            return private
    raise Forbidden(f"{path}: the passphrase does not open it", code="wrong_passphrase")


def create(path: Path, secrets: Passphrases) -> CryptoSigner:
    """A new Ed25519 key in its file, mode 0600. Raises Conflict (`key_exists`), Forbidden, Invalid."""
    private = Ed25519PrivateKey.generate()
    passphrase = secrets.new()
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        words = f"{path} is there already; a key is never overwritten (`interlock keys adopt` takes it over)"
        raise Conflict(words, code="key_exists") from None
    except OSError as bad:
        raise Forbidden(f"{path}: {bad.strerror}", code="cannot_write") from None
    with os.fdopen(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    durable.fsync_folder(path.parent)
    return CryptoSigner(private)


def check_authorities(pem: bytes) -> int:
    """How many certificates these are: each of an authority. A device that was told anything else would
    believe no server any more. Raises ValueError.
    """
    found = load_pem_x509_certificates(pem)
    for one in found:
        name = one.subject.rfc4514_string()
        try:
            authority = one.extensions.get_extension_for_class(BasicConstraints).value.ca
        except ExtensionNotFound:
            authority = False
        if not authority:
            raise ValueError(f"{name} is no certificate of an authority")
    return len(found)


def public_of(uri: str, place: Place) -> tuple[str, Key]:
    """The full URI and the public part of a key that is there already. Raises as `load`."""
    scheme, rest = scheme_of(uri), uri.partition(":")[2]
    if scheme == FILE:
        return uri, of_file(_path(uri, place), place.secrets).public_key
    try:
        if scheme == HSM:
            number, _, query = rest.partition("?")
            label = dict(parse_qsl(query)).get("label")
            return HSMSigner.import_(int(number) if number else None, label, lambda _: place.secrets.pin(uri))
        if scheme == AzureSigner.SCHEME:
            host, _, path = rest.removeprefix("//").partition("/")
            return AzureSigner.import_(host.partition(".")[0], path.removeprefix("keys/").partition("/")[0])
        found: tuple[str, Key] = CLOUDS[scheme](rest)
        return found
    except UnsupportedLibraryError as bad:
        raise _unsupported(uri, bad) from None
    except (Forbidden, Invalid):
        raise
    except Exception as bad:  # noqa: BLE001 - see `load`
        raise Unreachable(f"{uri}: {str(bad) or type(bad).__name__}", code="key_unreachable") from None
