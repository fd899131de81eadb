"""Status, online keys, trust metadata."""

from __future__ import annotations

from aiohttp import web

from interlock_server.http import models
from interlock_server.http.request import actor, answer, body, broker_url, server_url, services
from interlock_shared.errors import NotFound
from interlock_shared.limits import METADATA_MAX_BYTES


async def status(request: web.Request) -> web.Response:
    """Version, trust and addresses of this server"""
    known = services(request)
    trust = await known.catalogue.trust()
    return answer({"server": known.version, "trust": trust, "broker": broker_url(request), "url": server_url(request)})


async def keys(request: web.Request) -> web.Response:
    """Public parts of the server's online keys"""
    return answer(services(request).catalogue.keys())


async def get_trust(request: web.Request) -> web.Response:
    """Versions of the trusted metadata"""
    trust = await services(request).catalogue.trust()
    if trust is None:
        raise NotFound("no trust metadata was uploaded yet", code="no_trust")
    return answer(trust)


async def post_trust(request: web.Request) -> web.Response:
    """Upload root and targets metadata"""
    sent = await body(request, models.TrustBody, 4 * METADATA_MAX_BYTES)
    return answer(await services(request).catalogue.accept_trust(actor(request), sent.model_dump()))


async def metadata(request: web.Request) -> web.StreamResponse:
    """One TUF metadata file"""
    name = request.match_info["name"]
    path = services(request).catalogue.metadata(name)
    fresh = name == "timestamp.json" or name.startswith("target/")
    cached = "no-cache" if fresh else "public, max-age=3600"
    return web.FileResponse(path, headers={"Content-Type": "application/json", "Cache-Control": cached})
