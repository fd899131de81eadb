"""A broker's connection, read packet by packet: bounded in size and in silence. And whose it is: its certificate."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from interlock_server.core import mqtt
from interlock_shared.errors import Invalid

CONNECT_S = 10.0  # a connection that has not said who it is by then is closed
PIECE_BYTES = 64 * 1024  # read at once, so that a slow link that still moves is no silence


def certificate(writer: asyncio.StreamWriter) -> tuple[str, str, float]:
    """(common name, serial, end of its life as seconds since 1970) of the peer. Raises Invalid."""
    found: Any = writer.get_extra_info("ssl_object").getpeercert() or {}  # empty where none was shown
    names = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    if len(names) != 1:
        raise Invalid("shows no certificate with exactly one common name")
    return names[0], format(int(found["serialNumber"], 16), "x"), float(ssl.cert_time_to_seconds(found["notAfter"]))


async def read_connect(reader: asyncio.StreamReader) -> mqtt.Connect:
    """The first packet, whatever a stranger sends. Raises what `read_packet` does, and RefusedConnection."""
    _, flags, body = await read_packet(reader, CONNECT_S, mqtt.CONNECT_MAX_BYTES, only=mqtt.CONNECT)
    if flags:
        raise Invalid("CONNECT: reserved bits")
    return mqtt.parse_connect(body)


async def read_packet(
    reader: asyncio.StreamReader, silence: float, limit: int, only: int | None = None
) -> tuple[int, int, bytes]:
    """(type, flags, body). Raises Invalid, TimeoutError, OSError, IncompleteReadError."""
    async with asyncio.timeout(silence):
        first = (await reader.readexactly(1))[0]
        if only is not None and first >> 4 != only:
            raise Invalid(f"the first packet is of type {first >> 4}")
        size = shift = 0
        while True:
            digit = (await reader.readexactly(1))[0]
            size |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                break
            if shift > 21:
                raise Invalid("malformed length")
    if size > limit:
        raise Invalid(f"a packet of {size} bytes, at most {limit} are read")
    pieces = []
    while size:
        async with asyncio.timeout(silence):
            pieces.append(await reader.readexactly(min(size, PIECE_BYTES)))
        size -= len(pieces[-1])
    return first >> 4, first & 0x0F, b"".join(pieces)
