"""Keys that OpenSSL's providers keep, used by the very libcrypto that Python's TLS is linked with.

A provider (OpenSSL 3) makes a key of a TPM or a token look like any other: once it is loaded,
`SSLContext.load_cert_chain` reads the provider's own PEM. `ssl` has no call for loading one, nor for signing with a
key: here are the few functions of libcrypto for that.

https://docs.openssl.org/3.0/man7/provider/, https://docs.openssl.org/3.0/man3/EVP_DigestSignInit/
"""

from __future__ import annotations

import _ssl
import ctypes
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from interlock_agent.keys import PKCS11, TPM2
from interlock_shared.errors import Unreachable

PACKAGES = {TPM2: "tpm2-openssl", PKCS11: "pkcs11-provider"}  # of Debian and Ubuntu

# OpenSSL 3.0 gives a TPM's key to its own ECDSA, which finds no private half in it, unless the TPM's is preferred.
PREFERENCES = {TPM2: b"?tpm2.signature=yes"}
PEM_MAX_BYTES, SIGNATURE_MAX_BYTES = 16384, 512
NOT_LOADED = "could not load the shared library"

_lock = threading.Lock()
_loaded: dict[str, Any] = {}

_P, _S, _I = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_SIZE = ctypes.POINTER(ctypes.c_size_t)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "BIO_free": (_I, (_P,)),
    "BIO_new": (_P, (_P,)),
    "BIO_new_mem_buf": (_P, (_S, _I)),
    "BIO_read": (_I, (_P, _P, _I)),
    "BIO_s_mem": (_P, ()),
    "CRYPTO_free": (None, (_P, _S, _I)),
    "ERR_clear_error": (None, ()),
    "ERR_error_string_n": (None, (ctypes.c_ulong, _P, ctypes.c_size_t)),
    "ERR_get_error": (ctypes.c_ulong, ()),
    "EVP_DigestSign": (_I, (_P, _P, _SIZE, _S, ctypes.c_size_t)),
    "EVP_DigestSignInit_ex": (_I, (_P, _P, _S, _P, _S, _P, _P)),
    "EVP_MD_CTX_free": (None, (_P,)),
    "EVP_MD_CTX_new": (_P, ()),
    "EVP_PKEY_Q_keygen": (_P, (_P, _S, _S)),  # and one more, of its kind
    "EVP_PKEY_free": (None, (_P,)),
    "EVP_set_default_properties": (_I, (_P, _S)),
    "OSSL_PROVIDER_load": (_P, (_P, _S)),
    "PEM_read_bio_PrivateKey": (_P, (_P, _P, _P, _S)),
    "PEM_write_bio_PrivateKey": (_I, (_P, _P, _P, _P, _I, _P, _P)),
    "i2d_PUBKEY": (_I, (_P, _P)),
}


@cache
def _crypto(name: str) -> Callable[..., Any]:
    """A function of libcrypto: names are looked up in `_ssl`'s own file, and in what it is linked with."""
    try:
        function = ctypes.CDLL(getattr(_ssl, "__file__", None))[name]
    except (OSError, AttributeError):
        words = "a key outside a file needs OpenSSL 3, and a Python that is linked with the system's"
        raise Unreachable(f"{ssl.OPENSSL_VERSION} cannot be extended here: {words}", code="no_key_provider") from None
    function.restype, function.argtypes = _SIGNATURES[name]
    return function


def _why() -> str:
    """What OpenSSL has to say; and the queue of errors is empty again, or TLS would take them for its own."""
    said, text = [], ctypes.create_string_buffer(256)
    while number := _crypto("ERR_get_error")():
        _crypto("ERR_error_string_n")(number, text, len(text))
        said.append(text.value.decode("ascii", "replace").split(":", 2)[-1])
    return "; ".join(dict.fromkeys(said)) or "no reason was given"


def provide(provider: str, environment: Mapping[str, str]) -> None:
    """Load a provider, once a process. Blocks. Raises Unreachable: `no_key_provider` where it is not installed,
    `key_away` where what it speaks to does not answer (asked again, it may)."""
    with _lock:
        if provider in _loaded:
            return
        os.environ.update(environment)  # as the provider reads it
        load = _crypto("OSSL_PROVIDER_load")
        load(None, b"default")  # what is loaded by itself is not, once another is named; and it comes first in all else
        if not load(None, provider.encode()):
            why = _why()
            if NOT_LOADED in why:
                words = f"OpenSSL's provider {provider!r} is not installed (Debian, Ubuntu: {PACKAGES[provider]})"
                raise Unreachable(words, code="no_key_provider")
            raise Unreachable(f"the provider {provider!r} does not start: {why}", code="key_away")
        if provider in PREFERENCES:
            _crypto("EVP_set_default_properties")(None, PREFERENCES[provider])
        # TLS asks for its algorithms before a key does: OpenSSL 3.0 remembers who has answered first, and would offer
        # no curves of NIST else.
        _loaded[provider] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _crypto("ERR_clear_error")()


class Socket(ssl.SSLSocket):
    """TLS with such a key. pkcs11-provider leaves an error behind when it lets go of one, as of the connection before.
    OpenSSL wants its queue of errors empty before it reads or writes, or takes the next wait for a failure."""

    def do_handshake(self, block: bool = False) -> None:
        _crypto("ERR_clear_error")()
        super().do_handshake(block)

    def read(self, *where: Any, **more: Any) -> Any:
        _crypto("ERR_clear_error")()
        return super().read(*where, **more)

    def send(self, data: Any, flags: int = 0) -> int:
        _crypto("ERR_clear_error")()
        return super().send(data, flags)


@contextmanager
def _key(pem: bytes) -> Iterator[int]:
    """The key that a PEM names; opened for one use, so that none is held in a TPM that has room for three."""
    bio = _crypto("BIO_new_mem_buf")(pem, len(pem))
    try:
        key = _crypto("PEM_read_bio_PrivateKey")(bio, None, None, b"")  # b"": nobody is asked for a passphrase
    finally:
        _crypto("BIO_free")(bio)
    if not key:
        raise Unreachable(f"the key cannot be used: {_why()}", code="key_away")
    try:
        yield key
    finally:
        _crypto("EVP_PKEY_free")(key)
        _crypto("ERR_clear_error")()


def generate(provider: str) -> bytes:
    """A fresh P-256 key: the provider's PEM. Raises Unreachable (`key_away`)."""
    of = f"provider={provider}".encode()
    key = _crypto("EVP_PKEY_Q_keygen")(None, of, b"EC", ctypes.c_char_p(b"P-256"))
    if not key:
        raise Unreachable(f"no key can be made: {_why()}", code="key_away")
    bio = _crypto("BIO_new")(_crypto("BIO_s_mem")())
    try:
        text = ctypes.create_string_buffer(PEM_MAX_BYTES)
        written = _crypto("PEM_write_bio_PrivateKey")(bio, key, None, None, 0, None, None)
        size = _crypto("BIO_read")(bio, text, len(text)) if written == 1 else 0
    finally:
        _crypto("BIO_free")(bio)
        _crypto("EVP_PKEY_free")(key)
    if size <= 0:
        raise Unreachable(f"the key that was made cannot be kept: {_why()}", code="key_away")
    return text.raw[:size]


def public_of(pem: bytes) -> bytes:
    """The public half: SubjectPublicKeyInfo, DER. Raises Unreachable (`key_away`)."""
    with _key(pem) as key:
        out = ctypes.c_void_p()
        size = _crypto("i2d_PUBKEY")(key, ctypes.byref(out))
        if size <= 0 or not out.value:
            raise Unreachable(f"the key shows no public half: {_why()}", code="key_away")
        data = ctypes.string_at(out.value, size)
        _crypto("CRYPTO_free")(out, None, 0)
        return data


def sign(pem: bytes, provider: str, digest: str | None, data: bytes) -> bytes:
    """A signature: of ECDSA in DER with a digest (`SHA256`), of Ed25519 without. Raises Unreachable (`key_away`)."""
    with _key(pem) as key:
        context = _crypto("EVP_MD_CTX_new")()
        try:
            named = digest.encode() if digest else None
            of = f"provider={provider}".encode()
            begun = _crypto("EVP_DigestSignInit_ex")(context, None, named, None, of, key, None)
            made, size = ctypes.create_string_buffer(SIGNATURE_MAX_BYTES), ctypes.c_size_t(SIGNATURE_MAX_BYTES)
            if begun != 1 or _crypto("EVP_DigestSign")(context, made, ctypes.byref(size), data, len(data)) != 1:
                raise Unreachable(f"the key does not sign: {_why()}", code="key_away")
            return made.raw[: size.value]
        finally:
            _crypto("EVP_MD_CTX_free")(context)
