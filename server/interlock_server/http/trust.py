"""Status, online keys, trust metadata."""

from __future__ import annotations

from aiohttp import web

from interlock_server.http import models
from interlock_server.http.request import actor, answer, body, broker_url, server_url, services
from interlock_shared.errors import NotFound
from interlock_shared.limits import METADATA_MAX_BYTES, MIB


async def status(request: web.Request) -> web.Response:
    """Version, trust, addresses and TLS authority of this server"""
    known = services(request)
    trust = await known.catalogue.trust()
    addresses = {"broker": broker_url(request), "url": server_url(request)}
    return answer({"server": known.version, "trust": trust, "tls_ca": known.tls_ca, **addresses})


async def keys(request: web.Request) -> web.Response:
    """Public parts of the server's online keys, and the authority of its TLS certificate"""
    return answer({**services(request).catalogue.keys(), "tls_ca": services(request).tls_ca})


async def rotate(request: web.Request) -> web.Response:
    """Make fresh online keys, which count once uploaded metadata names them"""
    sent = await body(request, models.RotateBody, MIB)
    return answer(await services(request).catalogue.rotate(actor(request), list(sent.roles)))


async def get_trust(request: web.Request) -> web.Response:
    """Versions of the trusted metadata"""
    trust = await services(request).catalogue.trust()
    if trust is None:
        raise NotFound("no trust metadata was uploaded yet", code="no_trust")
    return answer(trust)


async def post_trust(request: web.Request) -> web.Response:
    """Upload root and targets metadata"""
    sent = await body(request, models.TrustBody, 16 * METADATA_MAX_BYTES)
    return answer(await services(request).catalogue.accept_trust(actor(request), sent.model_dump()))


async def metadata(request: web.Request) -> web.StreamResponse:
    """One TUF metadata file"""
    name = request.match_info["name"]
    path = services(request).catalogue.metadata(name)
    fresh = name == "timestamp.json" or name.startswith("target/")
    cached = "no-cache" if fresh else "public, max-age=3600"
    return web.FileResponse(path, headers={"Content-Type": "application/json", "Cache-Control": cached})
