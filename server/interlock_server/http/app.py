"""The API: every route in one table, every error's status in another, and what is done for each request.

A request is answered in this order: which route, who asks (bearer token of a person or program, client certificate of a
device), may they, then the handler. Errors leave as `{"kind", "code", "message", "details"}`.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web
from pydantic import BaseModel

from interlock_server.core.access import Actor, require
from interlock_server.http import (
    blobs,
    connections,
    devices,
    metrics,
    models,
    openapi,
    releases,
    rollouts,
    tokens,
    trust,
)
from interlock_server.http.request import ACTOR, SERVICES, Services, answer, services
from interlock_shared import errors, topics

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NOBODY, DEVICE = "", "device"  # beside the roles: no credentials are needed; a device's are, or a person's


class Route(NamedTuple):
    """One route: `role` is the least that is needed, `body` the model of what is sent."""

    method: str
    path: str
    handler: Handler
    role: str
    body: type[BaseModel] | None = None
    status: int = 200
    query: tuple[str, ...] = ()
    person: str = "publisher"  # the role that a person needs where a device may too


ROUTES = (
    Route("GET", topics.STATUS, trust.status, NOBODY),
    Route("GET", topics.OPENAPI, openapi.get, NOBODY),
    Route("GET", topics.METRICS, metrics.metrics, "viewer"),
    Route("GET", topics.ONLINE_KEYS, trust.keys, "viewer"),
    Route("POST", topics.ONLINE_KEYS, trust.rotate, "admin", models.RotateBody),
    Route("GET", topics.TRUST, trust.get_trust, "viewer"),
    Route("POST", topics.TRUST, trust.post_trust, "admin", models.TrustBody),
    Route("GET", topics.METADATA.replace("{name}", "{name:.+}"), trust.metadata, NOBODY),
    Route("POST", topics.BLOBS_MISSING, blobs.missing, "publisher", models.MissingBody),
    Route("PUT", topics.BLOB, blobs.put, "publisher", status=201),
    Route("GET", topics.BLOB, blobs.get, DEVICE),
    Route("POST", topics.RELEASES, releases.post, "publisher", models.ReleaseBody, 201),
    Route("GET", topics.RELEASES, releases.index, "viewer", query=("model",)),
    Route("GET", topics.RELEASE, releases.get, "viewer"),
    Route("GET", topics.MANIFEST, releases.manifest, DEVICE, person="viewer"),
    Route("POST", topics.PERMIT, releases.permit, "operator", models.PermitBody),
    Route("GET", topics.PROPOSAL, releases.to_sign, "viewer"),
    Route("DELETE", topics.PROPOSAL, releases.cancel, "publisher"),
    Route("POST", topics.SIGNATURES, releases.sign, "publisher", models.MetadataBody),
    Route("POST", topics.REVOKE, releases.revoke, "publisher", models.MetadataBody),
    Route("POST", topics.WITHDRAW, releases.withdraw, "operator", models.ReasonBody),
    Route("POST", topics.RESTORE, releases.restore, "operator"),
    Route("POST", topics.ROLLOUTS, rollouts.post, "operator", models.RolloutBody, 201),
    Route("GET", topics.ROLLOUTS, rollouts.index, "viewer", query=("limit",)),
    Route("GET", topics.ROLLOUT, rollouts.get, "viewer"),
    Route("POST", topics.ROLLOUT_ABORT, rollouts.abort, "operator"),
    Route("POST", topics.DEVICE_TOKENS, devices.invite, "operator", models.DeviceTokenBody, 201),
    Route("GET", topics.DEVICE_TOKENS, devices.invitations, "viewer"),
    Route("DELETE", topics.DEVICE_TOKENS, devices.uninvite, "operator", query=("id",)),
    Route("POST", topics.ENROL, devices.enrol, NOBODY, models.EnrolBody, 201),
    Route("GET", topics.DEVICES, devices.index, "viewer", query=("label",)),
    Route("GET", topics.DEVICE, devices.get, "viewer"),
    Route("GET", topics.DEVICE_HISTORY, devices.history, "viewer", query=("limit", "before")),
    Route("GET", topics.DEVICE_VERDICTS, devices.verdicts, "viewer", query=("limit",)),
    Route("GET", topics.DEVICE_VERDICT_PLOT, devices.verdict_plot, "viewer"),
    Route("POST", topics.DEVICE_RECONCILE, devices.reconcile, "operator"),
    Route("POST", topics.DEVICE_UNPIN, devices.unpin, "operator", models.UnpinBody),
    Route("GET", topics.DEVICE_DESIRED, devices.desired, DEVICE),
    Route("POST", topics.DEVICE_CERTIFICATE, devices.renew, DEVICE, models.RenewBody, 201),
    Route("POST", topics.DEVICE_APPROVE, devices.approve, "operator", models.DecideBody),
    Route("POST", topics.DEVICE_REFUSE, devices.refuse, "operator", models.DecideBody),
    Route("POST", topics.DEVICE_REVOKE, devices.revoke, "operator", models.RevokeBody),
    Route("GET", topics.EVENTS, devices.events, "viewer", query=("limit", "before", "device", "kind")),
    Route("POST", topics.API_TOKENS, tokens.post, "admin", models.TokenBody, 201),
    Route("GET", topics.API_TOKENS, tokens.index, "admin"),
    Route("DELETE", topics.API_TOKENS, tokens.delete, "admin", query=("id",)),
    Route("GET", topics.AUDIT, tokens.audit, "viewer", query=("limit",)),
)
BY_HANDLER = {route.handler: route for route in ROUTES}

# The first class that fits says the status.
STATUS: tuple[tuple[type[errors.InterlockError], int], ...] = (
    (errors.Invalid, 400),
    (errors.Untrusted, 422),
    (errors.Incompatible, 422),
    (errors.Rejected, 422),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Forbidden, 403),
    (errors.Busy, 503),
    (errors.NoSpace, 507),
    (errors.Unreachable, 502),
    (errors.Later, 503),
    (errors.Never, 422),
    (errors.InterlockError, 400),
)
UNAUTHENTICATED = "unauthenticated"
RETRY_AFTER_S = "5"


def _refusal(error: errors.InterlockError, status: int | None = None) -> web.Response:
    if status is None:
        status = next(status for kind, status in STATUS if isinstance(error, kind))
    response = answer(errors.to_wire(error), status)
    if error.code == UNAUTHENTICATED:
        response.set_status(401)
        response.headers["WWW-Authenticate"] = 'Bearer realm="interlock"'
    if isinstance(error, errors.Later):
        response.headers["Retry-After"] = RETRY_AFTER_S
    return response


def _of_http(error: web.HTTPException) -> web.Response:
    """Aiohttp's own refusals (no such route, too large, …) in our form."""
    codes = {404: "no_route", 405: "method_not_allowed", 413: "too_large"}
    kind = errors.NotFound if error.status == 404 else errors.Invalid
    response = _refusal(kind(error.reason, code=codes.get(error.status, "http")), error.status)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


@web.middleware
async def answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors become answers; what is nobody's fault is logged, and says nothing about our insides."""
    try:
        return await handler(request)
    except errors.InterlockError as error:
        return _refusal(error)
    except web.HTTPException as error:
        return error if error.status < 400 else _of_http(error)
    except ConnectionError:
        raise  # the client went away
    except Exception as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return _refusal(errors.NoSpace("the server's disk is full"))
        log.exception("%s %s failed", request.method, request.path)
        return _refusal(errors.InterlockError("the server failed; its log says why", code="internal"), 500)


async def _person(request: web.Request, token: str) -> Actor:
    return await services(request).tokens.bearer(token, request.remote or "")


async def _device(request: web.Request, device: str, serial: str) -> Actor:
    services(request).connections.note(device, request)
    await services(request).identities.authenticate(device, serial)
    return Actor(device, DEVICE, request.remote or "")


async def _who(request: web.Request) -> Actor:
    scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return await _person(request, rest.strip())
    known = connections.peer(request)
    if known is not None:
        return await _device(request, *known)
    raise errors.Forbidden("a bearer token or a device's certificate is needed", code=UNAUTHENTICATED)


@web.middleware
async def access(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Who asks, and whether they may."""
    route = BY_HANDLER.get(request.match_info.handler)
    if route is not None and route.role != NOBODY:
        who = await _who(request)
        if who.role != DEVICE:
            require(who, route.person if route.role == DEVICE else route.role)
        elif route.role != DEVICE:
            raise errors.Forbidden("a device may not do this", code="role_needed", needs=route.role)
        request[ACTOR] = who
    return await handler(request)


def make(known: Services) -> web.Application:
    """The application; bodies are read, and limited, by the handlers."""
    app = web.Application(middlewares=[answers, access])
    app[SERVICES] = known
    app[openapi.DOCUMENT] = openapi.document(ROUTES, known.version)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    app.on_response_prepare.append(blobs.keep_etag)
    return app
