"""Releases: publish, list, manifest, permit."""

from __future__ import annotations

import json

from aiohttp import web

from interlock_server.http import models
from interlock_server.http.request import actor, answer, body, services
from interlock_shared.limits import DOCUMENT_MAX_BYTES, MANIFEST_MAX_BYTES, METADATA_MAX_BYTES


def _named(request: web.Request) -> tuple[str, str]:
    return request.match_info["model"], request.match_info["version"]


async def post(request: web.Request) -> web.Response:
    """Publish a release"""
    most = MANIFEST_MAX_BYTES * 4 // 3 + METADATA_MAX_BYTES + 64 * 1024
    sent = await body(request, models.ReleaseBody, most)
    return answer(await services(request).catalogue.publish(actor(request), sent.manifest, sent.metadata), 201)


async def index(request: web.Request) -> web.Response:
    """Published releases"""
    return answer({"releases": await services(request).catalogue.releases(request.query.get("model"))})


async def get(request: web.Request) -> web.Response:
    """One release"""
    return answer(await services(request).catalogue.release(*_named(request)))


async def manifest(request: web.Request) -> web.Response:
    """A release's manifest, its canonical bytes"""
    data = await services(request).catalogue.manifest(*_named(request))
    return web.Response(body=data, content_type="application/json")


async def permit(request: web.Request) -> web.Response:
    """A signed permit to install the release from a file"""
    sent = await body(request, models.PermitBody, DOCUMENT_MAX_BYTES)
    envelope = await services(request).catalogue.permit(actor(request), *_named(request), sent.devices, sent.days)
    return answer({"permit": json.loads(envelope)})
