"""TLS of a broker that asks each client for a certificate, for brokers that tests run by themselves."""

from __future__ import annotations

import ssl
from pathlib import Path


def tls_context(chain: Path, key: Path, device_ca: bytes) -> ssl.SSLContext:
    """The broker's side of TLS: its own certificate, and nobody without one of the device CA. Blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(chain, key)
    context.load_verify_locations(cadata=device_ca.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION  # each connection shows its certificate
    context.num_tickets = 0
    return context
