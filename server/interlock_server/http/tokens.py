"""Bearer tokens and the audit log."""

from __future__ import annotations

from aiohttp import web

from interlock_server.http import models
from interlock_server.http.request import actor, answer, body, limit, services
from interlock_shared.errors import Invalid


async def post(request: web.Request) -> web.Response:
    """Make a bearer token; it is shown once"""
    sent = await body(request, models.TokenBody, 64 * 1024)
    return answer(await services(request).tokens.create(actor(request), sent.name, sent.role), 201)


async def index(request: web.Request) -> web.Response:
    """Bearer tokens, without what is secret"""
    return answer({"tokens": await services(request).tokens.listing()})


async def delete(request: web.Request) -> web.Response:
    """Revoke the bearer token `?id`"""
    identity = request.query.get("id")
    if not identity:
        raise Invalid("id: which token", field="id")
    await services(request).tokens.revoke(actor(request), identity)
    return answer({"id": identity, "revoked": True})


async def audit(request: web.Request) -> web.Response:
    """The audit log, newest first"""
    return answer({"audit": await services(request).tokens.audit(limit(request))})
