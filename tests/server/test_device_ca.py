"""The two authorities: what they sign, what they refuse, and that real TLS holds with it."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from interlock_server.adapters.device_ca import CLIENT_NAME, DeviceCA
from interlock_shared.errors import Invalid

YEAR = timedelta(days=365)


def csr(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    """A request with a name that must not matter."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "neighbour")])
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    """PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def now() -> datetime:
    """The clock of this machine, since OpenSSL asks it too."""
    return datetime.now(UTC)


@pytest.fixture
def authorities(tmp_path: Path) -> DeviceCA:
    """Fresh ones."""
    return DeviceCA.open(tmp_path / "keys")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection through memory."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(there, back, server_side=True),
        client.wrap_bio(back, there, server_hostname=host),
    )
    for _ in range(6):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends


def contexts(ca: DeviceCA, hosts: list[str]) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What the server listens with, and a client that knows the server's authority."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*ca.server_files(hosts))
    server.load_verify_locations(cadata=ca.device_ca.decode())
    server.verify_mode = ssl.CERT_OPTIONAL
    return server, ssl.create_default_context(cadata=ca.tls_ca.decode())


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()])
def test_a_device_is_known_by_its_certificate(
    authorities: DeviceCA, tmp_path: Path, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey
) -> None:
    issued = authorities.issue(csr(key), "dev-1", now(), YEAR)
    server, client = contexts(authorities, ["localhost", "127.0.0.1", "::1"])
    (tmp_path / "pair").write_bytes(pem(key) + issued.pem)
    client.load_cert_chain(tmp_path / "pair")
    peer = handshake(server, client, "127.0.0.1")[0].getpeercert()
    assert peer is not None
    assert peer["subject"] == ((("commonName", "dev-1"),),)  # not what the request wished
    assert str(peer["serialNumber"]).lower().lstrip("0") == issued.serial


def test_without_a_certificate_one_is_a_person(authorities: DeviceCA) -> None:
    server, client = contexts(authorities, ["fleet.example"])
    assert not handshake(server, client, "fleet.example")[0].getpeercert()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "other.example")


def test_the_server_s_certificate_makes_no_device_and_no_device_s_a_server(
    authorities: DeviceCA, tmp_path: Path
) -> None:
    server, client = contexts(authorities, ["localhost"])
    client.load_cert_chain(*authorities.server_files(["localhost"]))
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "localhost")
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "pair").write_bytes(pem(key) + authorities.issue(csr(key), "localhost", now(), YEAR).pem)
    false = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    false.load_cert_chain(tmp_path / "pair")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(false, ssl.create_default_context(cadata=authorities.tls_ca.decode()), "localhost")


def test_what_is_no_request_is_refused(authorities: DeviceCA) -> None:
    good = csr(ec.generate_private_key(ec.SECP256R1()))
    other = x509.load_pem_x509_csr(csr(ec.generate_private_key(ec.SECP256R1())))
    foreign = x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER)
    tail = other.signature
    altered = foreign[: -len(tail)] + tail
    for wrong, why in (
        (b"", "not a PEM"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "not a PEM"),
        (good + b"x" * 20_000, "at most"),
        (csr(rsa.generate_private_key(65537, 2048)), "neither P-256 nor Ed25519"),
        (csr(ec.generate_private_key(ec.SECP384R1())), "neither P-256 nor Ed25519"),
        (ssl.DER_cert_to_PEM_cert(altered).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode(), "csr: "),
    ):
        with pytest.raises(Invalid, match=why) as refused:
            authorities.issue(wrong, "dev-1", now(), YEAR)
        assert refused.value.code == "bad_csr"


def test_files_are_kept_and_renewed_in_time(tmp_path: Path) -> None:
    clock = [now()]
    ca = DeviceCA.open(tmp_path, lambda: clock[0])
    first = ca.server_files(["localhost"])[0].read_bytes()
    again = DeviceCA.open(tmp_path, lambda: clock[0])
    assert (again.tls_ca, again.device_ca) == (ca.tls_ca, ca.device_ca)
    assert again.server_files(["localhost"])[0].read_bytes() == first
    clock[0] += timedelta(days=50)
    assert again.server_files(["localhost"])[0].read_bytes() == first
    clock[0] += timedelta(days=15)
    second = again.server_files(["localhost"])[0].read_bytes()
    assert second != first
    assert again.server_files(["localhost", "10.0.0.1"])[0].read_bytes() != second
    (tmp_path / "server.pem").write_bytes(b"torn")
    assert again.server_files(["localhost"])[0].read_bytes() != b"torn"
    (tmp_path / "tls_ca.pem").write_bytes(b"torn")
    with pytest.raises(Invalid, match=r"tls_ca\.pem"):
        DeviceCA.open(tmp_path)


def test_the_list_of_the_revoked(authorities: DeviceCA) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authorities.issue(csr(key), "dev-1", now(), YEAR)
    crl = x509.load_pem_x509_crl(authorities.crl({issued.serial: now()}, now()))
    ca = x509.load_pem_x509_certificate(authorities.device_ca)
    assert crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]  # P-256
    serial = x509.load_pem_x509_certificate(issued.pem).serial_number
    assert crl.get_revoked_certificate_by_serial_number(serial) is not None
    assert crl.get_revoked_certificate_by_serial_number(serial + 1) is None


def test_the_server_as_a_client_of_a_broker(authorities: DeviceCA) -> None:
    server, client = contexts(authorities, ["localhost"])
    client.load_cert_chain(*authorities.client_files())
    peer = handshake(server, client, "localhost")[0].getpeercert()
    assert peer is not None
    assert peer["subject"] == ((("commonName", CLIENT_NAME),),)
