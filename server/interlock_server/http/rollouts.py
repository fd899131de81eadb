"""Rollouts: start, look, abort."""

from __future__ import annotations

from aiohttp import web

from interlock_server.http import models
from interlock_server.http.request import actor, answer, body, limit, services
from interlock_shared.limits import DOCUMENT_MAX_BYTES


async def post(request: web.Request) -> web.Response:
    """Start a rollout"""
    sent = await body(request, models.RolloutBody, DOCUMENT_MAX_BYTES)
    to = sent.to.model_dump(exclude_none=True)
    return answer(await services(request).rollouts.start(actor(request), sent.model, sent.version, to), 201)


async def index(request: web.Request) -> web.Response:
    """Rollouts, newest first"""
    return answer({"rollouts": await services(request).rollouts.listing(limit(request))})


async def get(request: web.Request) -> web.Response:
    """One rollout with its assignments"""
    return answer(await services(request).rollouts.get(request.match_info["id"]))


async def abort(request: web.Request) -> web.Response:
    """Abort a rollout"""
    return answer(await services(request).rollouts.abort(actor(request), request.match_info["id"]))
