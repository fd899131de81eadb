"""Releases: publish, sign, withdraw, revoke, list, manifest, permit."""

from __future__ import annotations

import json
from datetime import timedelta

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
    return answer(await services(request).publishing.publish(actor(request), sent.manifest, sent.metadata), 201)


async def to_sign(request: web.Request) -> web.Response:
    """What awaits signatures"""
    return answer(await services(request).catalogue.to_sign(*_named(request)))


async def sign(request: web.Request) -> web.Response:
    """Add a signature"""
    sent = await body(request, models.MetadataBody, METADATA_MAX_BYTES + 64 * 1024)
    return answer(await services(request).publishing.sign(actor(request), *_named(request), sent.metadata))


async def cancel(request: web.Request) -> web.Response:
    """Drop what awaits signatures"""
    return answer(await services(request).publishing.cancel(actor(request), *_named(request)))


async def revoke(request: web.Request) -> web.Response:
    """Revoke a release, signed by its role"""
    sent = await body(request, models.MetadataBody, METADATA_MAX_BYTES + 64 * 1024)
    return answer(await services(request).publishing.revoke(actor(request), *_named(request), sent.metadata))


async def withdraw(request: web.Request) -> web.Response:
    """Withdraw a release"""
    sent = await body(request, models.ReasonBody, DOCUMENT_MAX_BYTES)
    known = services(request)
    moved = await known.withdrawals.withdraw(actor(request), *_named(request), sent.reason)
    return answer({**await known.catalogue.release(*_named(request)), "moved": moved})


async def restore(request: web.Request) -> web.Response:
    """Take a withdrawal back"""
    known = services(request)
    await known.withdrawals.restore(actor(request), *_named(request))
    return answer(await known.catalogue.release(*_named(request)))


async def index(request: web.Request) -> web.Response:
    """Releases, and what awaits signatures"""
    return answer({"releases": await services(request).catalogue.releases(request.query.get("model"))})


async def get(request: web.Request) -> web.Response:
    """One release"""
    return answer(await services(request).catalogue.release(*_named(request)))


async def manifest(request: web.Request) -> web.Response:
    """A release's manifest, its canonical bytes"""
    if actor(request).role == "device":
        await services(request).grants.release(actor(request).name, *_named(request))
    data = await services(request).catalogue.manifest(*_named(request))
    return web.Response(body=data, content_type="application/json")


async def permit(request: web.Request) -> web.Response:
    """A signed permit to install the release from a file"""
    sent = await body(request, models.PermitBody, DOCUMENT_MAX_BYTES)
    meant = sent.model_dump(include={"devices", "classes"})
    valid_for = timedelta(seconds=sent.valid_for_s)
    envelope = await services(request).catalogue.permit(actor(request), *_named(request), meant, valid_for)
    return answer({"permit": json.loads(envelope)})
