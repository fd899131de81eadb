"""The server's two certificate authorities, made at the first start; their keys never leave the folder.

    tls_ca.crt     signs the server's own certificate; devices and people trust it because the root metadata names it
    device_ca.crt  signs each device's client certificate (CN = device id), and the server's own as a broker's client

Rules of the file:
- A key that cannot be read is an error, never a reason to make a new one: nobody would trust what it signs.
- An authority signs what it is for and nothing else: the request of a device gives its public key, no name, no wish.
- Everything blocks (disk, signatures): called in a thread.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from securesystemslib.signer import SSlibKey

from interlock_shared import durable
from interlock_shared.errors import Invalid

TLS_CA, DEVICE_CA = "tls_ca", "device_ca"
SERVER, SERVER_CLIENT = "server", "server_client"
CLIENT_NAME = "@server"  # CN of the server as a client of a broker: no device id begins so

CA_LIFETIME = timedelta(days=25 * 365)  # as long as a device may live; it is replaced by way of the root metadata
SERVER_LIFETIME = timedelta(days=90)
STAND_IN_LIFETIME = timedelta(minutes=10)
BROKER_LIFETIME = timedelta(days=397)  # of an external broker's certificate, which a person renews
BACKDATED = timedelta(days=1)  # a peer whose clock is a little behind still believes
CRL_LIFETIME = timedelta(days=30)  # a broker that has an expired list refuses everybody; it is written far more often
CSR_MAX_BYTES = 16 * 1024


@dataclass(frozen=True)
class Issued:
    """A certificate: PEM with its chain, the serial as lower-case hex without leading zeros, the end of its life."""

    pem: bytes
    serial: str
    expires_at: datetime


def utc_now() -> datetime:
    """The clock of this machine."""
    return datetime.now(UTC)


def serial_text(serial: int) -> str:
    """A serial as it is stored, and as the peer's certificate of a connection is compared with it."""
    return format(serial, "x")


class _Authority:
    """One key with its self-signed certificate."""

    def __init__(self, folder: Path, name: str, title: str, now: datetime) -> None:
        self.key = _key(folder / f"{name}.pem")
        path = folder / f"{name}.crt"
        if not path.exists():
            durable.replace_file(path, _pem(_self_signed(self.key, title, now)))
        self.pem = path.read_bytes()
        # More than one: what is trusted; the first is the one that signs.
        try:
            self.certificate = x509.load_pem_x509_certificates(self.pem)[0]
        except ValueError:
            raise _broken(path, "not a certificate") from None
        if self.certificate.public_key() != self.key.public_key():
            raise _broken(path, "its first certificate is not of the key beside it")

    def sign(
        self,
        public: ec.EllipticCurvePublicKey | Ed25519PublicKey,
        subject: str,
        now: datetime,
        lifetime: timedelta,
        usage: x509.ObjectIdentifier,
        hosts: Sequence[str] = (),
    ) -> x509.Certificate:
        """An end-entity certificate."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(now + lifetime, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(one) for one in hosts]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


class DeviceCA:
    """Both authorities. `open` makes what is missing."""

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        self._folder, self._clock = folder, clock
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = clock()
        self._tls = _Authority(folder, TLS_CA, "Interlock TLS CA", now)
        self._devices = _Authority(folder, DEVICE_CA, "Interlock device CA", now)

    @classmethod
    def open(cls, folder: Path, clock: Callable[[], datetime] = utc_now) -> DeviceCA:
        """The authorities of that folder. Raises OSError, Invalid (`broken_store`)."""
        return cls(folder, clock)

    @property
    def tls_ca(self) -> bytes:
        """PEM of what devices and people trust the server by."""
        return self._tls.pem

    @property
    def device_ca(self) -> bytes:
        """PEM of what the server and brokers trust devices by."""
        return self._devices.pem

    @property
    def device_ca_file(self) -> Path:
        """Where that PEM lies, for a broker's settings."""
        return self._folder / f"{DEVICE_CA}.crt"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the TLS authority's certificate (DER), in hex: what a person compares at first contact."""
        return self._tls.certificate.fingerprint(hashes.SHA256()).hex()

    def public_of(self, csr_pem: bytes) -> dict[str, Any]:
        """The key of a signing request in securesystemslib's form: `{"keyid", "key"}`. Raises Invalid (`bad_csr`)."""
        key = SSlibKey.from_crypto(request_key(csr_pem))
        return {"keyid": key.keyid, "key": key.to_dict()}

    def issue(self, csr_pem: bytes, device: str, now: datetime, lifetime: timedelta) -> Issued:
        """A client certificate of the device for the key in the request, whose possession the request proves.

        Raises Invalid (`bad_csr`): not a request, not signed by its key, a key that is neither P-256 nor Ed25519.
        """
        public = request_key(csr_pem)
        signed = self._devices.sign(public, device, now, lifetime, ExtendedKeyUsageOID.CLIENT_AUTH)
        return Issued(_pem(signed) + self._devices.pem, serial_text(signed.serial_number), signed.not_valid_after_utc)

    def server_files(self, hosts: Sequence[str]) -> tuple[Path, Path]:
        """(certificate with chain, key) of this server under these names and addresses.

        Made again, with a fresh key, when two thirds of its life are over, when the hosts or the authority changed:
        ask now and then, and load what is there.
        """
        wanted = [_host(one) for one in dict.fromkeys(hosts)]
        return self._kept(SERVER, hosts, wanted)

    def stand_in(self, device: str) -> tuple[bytes, str]:
        """(key and certificate as PEM, serial): a few minutes in the device's name, to take over a session of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        signed = self._devices.sign(key.public_key(), device, self._clock(), STAND_IN_LIFETIME, usage)
        return _private(key) + _pem(signed), serial_text(signed.serial_number)

    def broker_pem(self, hosts: Sequence[str], lifetime: timedelta = BROKER_LIFETIME) -> bytes:
        """Key, certificate and chain of an external broker under these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        signed = self._tls.sign(key.public_key(), "interlock-broker", self._clock(), lifetime, usage, list(hosts))
        return _private(key) + _pem(signed) + _pem(self._tls.certificate)

    def client_files(self) -> tuple[Path, Path]:
        """(certificate with chain, key) of this server as the client `@server` of an external broker."""
        return self._kept(SERVER_CLIENT, (), [])

    def client_context(self) -> ssl.SSLContext:
        """TLS of this server as the client of an external broker, which the TLS authority has certified."""
        context = ssl.create_default_context(cadata=self.tls_ca.decode())
        context.load_cert_chain(*self.client_files())
        return context

    def crl(self, revoked: Mapping[str, datetime], now: datetime) -> bytes:
        """PEM of the device authority's revocation list. `revoked`: serial → since when."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._devices.certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(now + CRL_LIFETIME)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._devices.key.public_key()), critical=False
            )
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for serial, since in sorted(revoked.items()):
            one = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(since).build()
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self._devices.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    # --- the server's own ------------------------------------------------------------------------------------------

    def _kept(self, name: str, hosts: Sequence[str], wanted: list[x509.GeneralName]) -> tuple[Path, Path]:
        # Key and certificate in one file, so that one rename replaces both: there is no moment with a foreign pair.
        path, now = self._folder / f"{name}.pem", self._clock()
        authority = self._tls if name == SERVER else self._devices
        if not self._good(path, authority, wanted, now):
            key = ec.generate_private_key(ec.SECP256R1())
            usage = ExtendedKeyUsageOID.SERVER_AUTH if name == SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
            subject = "interlock-server" if name == SERVER else CLIENT_NAME
            signed = authority.sign(key.public_key(), subject, now, SERVER_LIFETIME, usage, list(dict.fromkeys(hosts)))
            durable.replace_file(path, _private(key) + _pem(signed) + _pem(authority.certificate), mode=0o600)
        return path, path

    @staticmethod
    def _good(path: Path, authority: _Authority, wanted: list[x509.GeneralName], now: datetime) -> bool:
        try:
            held = x509.load_pem_x509_certificates(path.read_bytes())[0]
            held.verify_directly_issued_by(authority.certificate)
        except (FileNotFoundError, ValueError, TypeError, InvalidSignature):
            return False
        try:
            names = list(held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            names = []
        return names == wanted and held.not_valid_before_utc <= now < renew_at(held)


def renew_at(certificate: x509.Certificate) -> datetime:
    """When two thirds of a certificate's life are over."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return start + (end - start) * 2 / 3


def request_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey | Ed25519PublicKey:
    """The public key of a signing request. Raises Invalid (`bad_csr`)."""
    if len(csr_pem) > CSR_MAX_BYTES:
        raise Invalid(f"csr: {len(csr_pem)} bytes, at most {CSR_MAX_BYTES} are read", field="csr", code="bad_csr")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        public, proven = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as bad:
        raise Invalid(f"csr: not a PEM signing request: {bad}", field="csr", code="bad_csr") from None
    if not proven:
        raise Invalid("csr: its signature is not of the key in it", field="csr", code="bad_csr")
    if isinstance(public, Ed25519PublicKey):
        return public
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return public
    raise Invalid("csr: the key is neither P-256 nor Ed25519", field="csr", code="bad_csr")


# --- pieces ----------------------------------------------------------------------------------------------------------


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        durable.replace_file(path, _private(ec.generate_private_key(ec.SECP256R1())), mode=0o600)
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _broken(path, "not a private key on an elliptic curve")
    return key


def _broken(path: Path, what: str) -> Invalid:
    return Invalid(f"{path}: {what}; restore it from a backup", code="broken_store")


def _self_signed(key: ec.EllipticCurvePrivateKey, title: str, now: datetime) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(title))
        .issuer_name(_name(title))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
