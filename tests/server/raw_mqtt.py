"""MQTT by hand: packets as the standard has them, and some as it does not, over a connection with a certificate."""

from __future__ import annotations

import asyncio
import ssl
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from interlock_server.adapters.device_ca import DeviceCA

CONNECTED = b"\x20\x00\x00"


def text(value: str | bytes) -> bytes:
    """A length and that many bytes."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def packet(first: int, body: bytes) -> bytes:
    """With its length before it."""
    out, left = bytearray((first,)), len(body)
    while True:
        left, digit = divmod(left, 128)
        out.append(digit | (0x80 if left else 0))
        if not left:
            return bytes(out) + body


def connect(
    username: str | None = None,
    password: str | None = None,
    *,
    level: int = 4,
    keepalive: int = 0,
    will: str | None = None,
    client_id: str = "some-id",
) -> bytes:
    """A CONNECT; a will is of QoS 1 and retained."""
    flags = 0x02 | (0x2C if will is not None else 0)
    flags |= (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    body = text("MQTT") + struct.pack("!BBH", level, flags, keepalive) + text(client_id)
    if will is not None:
        body += text(will) + text("bye")
    for part in (username, password):
        body += b"" if part is None else text(part)
    return packet(0x10, body)


def publish(
    topic: str | bytes, payload: bytes = b"{}", *, qos: int = 1, retain: bool = False, number: int = 1
) -> bytes:
    """A PUBLISH."""
    head = text(topic) + (struct.pack("!H", number) if qos else b"")
    return packet(0x30 | qos << 1 | retain, head + payload)


def subscribe(*filters: str, number: int = 1, qos: int = 1) -> bytes:
    """A SUBSCRIBE."""
    return packet(0x82, struct.pack("!H", number) + b"".join(text(one) + bytes((qos,)) for one in filters))


@dataclass
class Peer:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, *packets: bytes) -> None:
        """Send them."""
        self.writer.write(b"".join(packets))

    async def hear(self, seconds: float = 10.0) -> bytes:
        """The next packet without its length, b"" at the end of the connection."""
        async with asyncio.timeout(seconds):
            try:
                first = await self.reader.readexactly(1)
                size = shift = 0
                while True:
                    digit = (await self.reader.readexactly(1))[0]
                    size |= (digit & 0x7F) << shift
                    shift += 7
                    if not digit & 0x80:
                        break
                return first + await self.reader.readexactly(size)
            except (asyncio.IncompleteReadError, OSError):
                return b""

    async def over(self) -> None:
        """Wait for the end of the connection."""
        while await self.hear():
            pass

    def close(self) -> None:
        """Break off."""
        self.writer.transport.abort()


class Card:
    """A device's key and certificate, as files."""

    def __init__(
        self,
        ca: DeviceCA,
        folder: Path,
        name: str,
        now: datetime | None = None,
        lifetime: timedelta = timedelta(days=30),
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a-wish")])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        pem = request.public_bytes(serialization.Encoding.PEM)
        issued = ca.issue(pem, name, now or datetime.now(UTC), lifetime)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.name, self.serial = name, issued.serial
        self.file = folder / f"{name.replace('/', '_')}-{issued.serial[:8]}.pem"
        self.file.write_bytes(private + issued.pem)

    def context(self, tls_ca: bytes) -> ssl.SSLContext:
        """What this device connects with."""
        made = ssl.create_default_context(cadata=tls_ca.decode())
        made.load_cert_chain(self.file)
        return made


async def dial(port: int, context: ssl.SSLContext | None) -> Peer:
    """A connection to localhost."""
    return Peer(*await asyncio.open_connection("localhost", port, ssl=context))
