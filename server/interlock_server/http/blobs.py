"""Segments: which are missing, upload, download with ranges."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from interlock_server.http import models
from interlock_server.http.request import actor, answer, body, services
from interlock_server.ports import Receiver
from interlock_shared.errors import Invalid
from interlock_shared.limits import MIB, SEGMENT_MAX_BYTES

CACHE = "public, immutable, max-age=31536000"  # a digest names one content for ever
ETAG: web.ResponseKey[str] = web.ResponseKey("etag", str)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


def _digest(request: web.Request) -> str:
    sha256 = request.match_info["sha256"]
    if not _SHA256.match(sha256):
        raise Invalid("segment: 64 hexadecimal digits are expected", field="sha256")
    return sha256


async def missing(request: web.Request) -> web.Response:
    """Which of the segments are not here"""
    sent = await body(request, models.MissingBody, 8 * MIB)
    return answer({"missing": await services(request).catalogue.missing(sent.sha256)})


async def put(request: web.Request) -> web.Response:
    """Upload a segment in its transport form"""
    sha256, form = _digest(request), request.headers.get("Interlock-Form", "identity")
    size = request.headers.get("Interlock-Size", "")
    if not size.isascii() or not size.isdigit() or len(size) > 12 or int(size) > SEGMENT_MAX_BYTES:
        raise Invalid("segment: Interlock-Size is its uncompressed size in bytes", field="Interlock-Size")
    catalogue = services(request).catalogue
    receiver = await catalogue.receive(sha256, form, int(size))
    if receiver is None:
        return answer({"sha256": sha256, "new": False})
    try:
        await _store(request, receiver)
    finally:
        await asyncio.to_thread(receiver.discard)
    await catalogue.received(actor(request), sha256, form, int(size), receiver.stored)
    return answer({"sha256": sha256, "new": True}, 201)


async def _store(request: web.Request, receiver: Receiver) -> None:
    waiting, length = [], 0
    async for part in request.content.iter_any():
        waiting.append(part)
        length += len(part)
        if length >= MIB:  # a thread for each small part would cost more than the write
            await asyncio.to_thread(receiver.feed, b"".join(waiting))
            waiting, length = [], 0
    await asyncio.to_thread(receiver.feed, b"".join(waiting))
    await asyncio.to_thread(receiver.finish)


async def get(request: web.Request) -> web.StreamResponse:
    """Download a segment in its transport form"""
    sha256, who = _digest(request), actor(request)
    if who.role == "device":
        await services(request).grants.segment(who.name, sha256)
    row, path = await services(request).catalogue.blob(sha256)
    headers = {
        "Content-Type": "application/octet-stream",
        "Interlock-Form": row["form"],
        "Interlock-Size": str(row["size"]),
        "ETag": f'"{sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": CACHE,
    }
    if any(tag.value in {sha256, "*"} for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    response = web.FileResponse(path, headers=headers)
    response[ETAG] = headers["ETag"]  # aiohttp makes one of time and size: `keep_etag` puts ours back
    return response


async def keep_etag(_: web.Request, response: web.StreamResponse) -> None:
    """Signal before the headers leave: the entity tag is the digest."""
    if ETAG in response:
        response.headers["ETag"] = response[ETAG]
