"""Connections of devices: who is at the other end, and how one is cut off while its connection is open."""

from __future__ import annotations

import asyncio
from weakref import WeakSet

from aiohttp import web

from interlock_shared.errors import Forbidden


def peer(request: web.Request) -> tuple[str, str] | None:
    """(device id, serial) of the client certificate; None without one. TLS has checked who has signed it.

    Raises Forbidden (`unauthenticated`) for a certificate that names nobody.
    """
    certificate = request.get_extra_info("peercert")
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    if len(names) != 1:
        raise Forbidden("the client certificate names no device", code="unauthenticated")
    return names[0], str(certificate["serialNumber"]).lower().lstrip("0")


class Connections:
    """Open connections by device. A connection is noted before its certificate is looked up, so that a revocation
    either is seen by that look or finds the connection here."""

    def __init__(self) -> None:
        self._open: dict[str, WeakSet[asyncio.BaseTransport]] = {}

    def note(self, device: str, request: web.Request) -> None:
        """The device asks on this connection."""
        if request.transport is not None:
            self._open.setdefault(device, WeakSet()).add(request.transport)

    async def cut(self, device: str) -> None:
        """End them at once, whatever is on its way."""
        for transport in list(self._open.pop(device, ())):
            if isinstance(transport, asyncio.Transport):
                transport.abort()
