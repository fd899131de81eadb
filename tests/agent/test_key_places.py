"""Where a device's key may be: what a URI means, what is refused, and what stands in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from interlock_agent.keys import openssl, places
from interlock_shared.errors import Invalid, Unreachable

TOKEN = "pkcs11:token=front%20door;object=edge"


def test_what_a_uri_means() -> None:
    assert [places.place(uri) for uri in ("", "file")] == [None, None]
    plain, told = places.place("tpm:"), places.place("tpm:?tcti=swtpm:host=localhost,port=2321")
    assert plain is not None
    assert told is not None
    assert (plain.provider, plain.environment[0][1], told.shown) == ("tpm2", "device:/dev/tpmrm0", "tpm:")
    assert told.environment == (("TPM2OPENSSL_TCTI", "swtpm:host=localhost,port=2321"),)
    token = places.place(f"{TOKEN}?pin-source=file:/etc/pin&module-path=/usr/lib/a.so")
    assert token is not None
    assert (token.shown, token.pin) == (TOKEN, Path("/etc/pin"))
    assert token.named == f"{TOKEN};type=private?pin-source=file:/etc/pin"
    assert token.environment == (("PKCS11_PROVIDER_MODULE", "/usr/lib/a.so"),)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("yubikey", "a key is in one of"),
        ("hsm:2", "a key is in one of"),
        ("tpm:0x81000001", "made in the TPM"),
        ("tpm:?parent=1", "parent is none of tcti"),
        ("tpm:?tcti=a b", "blanks"),
        ("tpm:?tcti=" + "x" * 1024, "1024 characters"),
        ("pkcs11:token=t?pin-source=file:/p", "names no key"),
        (TOKEN, "pin-source"),
        (f"{TOKEN}?pin-source=secret", "pin-source"),
        (f"{TOKEN};type=public?pin-source=file:/p", "type is none of"),
        (f"{TOKEN}?pin-source=file:/p&x=1", "x is none of"),
    ],
)
def test_what_is_no_place_for_a_key(uri: str, why: str) -> None:
    with pytest.raises(Invalid, match=why) as refused:
        places.place(uri)
    assert (refused.value.code, refused.value.details["field"]) == ("bad_key_uri", "--key")


def test_a_pin_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(Invalid, match="pin-source") as refused:
        places.place(f"{TOKEN}?pin-value=987654")
    assert "987654" not in refused.value.message


def kept(uri: str, curve: ec.EllipticCurve | None = None) -> bytes:
    """What a file would have."""
    where = places.place(uri)
    assert where is not None
    public = ec.generate_private_key(curve or ec.SECP256R1()).public_key()
    pem = b"-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"
    return places.HeldP256(where, pem, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).kept()


def test_the_file_says_where_the_key_is_and_whose() -> None:
    data = kept("tpm:")
    certificate = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    key = places.held(data + certificate)
    assert key is not None
    assert (key.place.uri, key.kept(), isinstance(key, ec.EllipticCurvePrivateKey)) == ("tpm:", data, True)
    assert places.held(b"-----BEGIN PRIVATE KEY-----\n") is None
    for bad in (
        data.replace(b"interlock-key: tpm:", b"interlock-key: moon:"),
        data.replace(b"interlock-key: tpm:", b"interlock-key: file"),
        data.replace(b"interlock-public: ", b"interlock-public: !"),
        data.replace(b"interlock-public: ", b"interlock-public: AAAA"),
        kept("tpm:", ec.SECP384R1()),
    ):
        with pytest.raises(Invalid) as refused:
            places.held(bad)
        assert refused.value.code == "bad_identity"


def test_a_pin_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.touch(mode=0o644)
    where = places.place(f"{TOKEN}?pin-source=file:{pin}")
    assert where is not None
    with pytest.raises(Invalid, match="chmod 600"):
        places.obtain(where)
    pin.unlink()
    with pytest.raises(Unreachable, match="PIN"):
        places.obtain(where)


@pytest.mark.parametrize("provider", openssl.PACKAGES)
def test_a_provider_that_is_not_installed_is_named(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    with pytest.raises(Unreachable, match=openssl.PACKAGES[provider]) as refused:
        openssl.provide(provider, {})
    assert refused.value.code == "no_key_provider"
