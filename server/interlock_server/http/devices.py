"""Devices: enrolment, views, the poll that backs up MQTT."""

from __future__ import annotations

from aiohttp import web

from interlock_server.http import models
from interlock_server.http.request import (
    actor,
    answer,
    before,
    body,
    broker_url,
    labels,
    limit,
    server_url,
    services,
)
from interlock_shared import plot
from interlock_shared.errors import Conflict, Forbidden, NotFound
from interlock_shared.limits import DOCUMENT_MAX_BYTES


async def invite(request: web.Request) -> web.Response:
    """Make a one-time enrolment token"""
    sent = await body(request, models.DeviceTokenBody, DOCUMENT_MAX_BYTES)
    known = services(request)
    trust = await known.catalogue.trust()
    if trust is None:
        raise Conflict("upload the trust metadata first: a device is told its digest", code="no_trust")
    token, expires = await known.devices.invite(actor(request), sent.labels, sent.device, sent.hours)
    root, url = trust["root_sha256"], server_url(request)
    command = f"interlock-agent enrol --server {url} --token {token} --root-sha256 {root}"
    return answer({"token": token, "expires_at": expires, "root_sha256": root, "enrol": command}, 201)


async def enrol(request: web.Request) -> web.Response:
    """Use up an enrolment token"""
    sent = await body(request, models.EnrolBody, 64 * 1024)
    address = request.remote or ""
    joined = await services(request).devices.enrol(sent.token, sent.key.model_dump(), sent.name, sent.agent, address)
    document = {
        "device": joined["device"],
        "broker": broker_url(request),
        "broker_username": joined["device"],
        "broker_password": joined["password"],
        "server": server_url(request),
        "labels": joined["labels"],
    }
    services(request).changed([joined["device"]])
    return answer(document, 201)


async def index(request: web.Request) -> web.Response:
    """Devices, by label"""
    return answer({"devices": await services(request).devices.listing(labels(request))})


async def get(request: web.Request) -> web.Response:
    """All that is known of a device"""
    return answer(await services(request).devices.detail(request.match_info["id"]))


async def history(request: web.Request) -> web.Response:
    """A device's events, newest first"""
    found = await services(request).devices.history(request.match_info["id"], limit(request), before(request))
    return answer({"events": found})


async def verdicts(request: web.Request) -> web.Response:
    """A device's verdicts, newest first"""
    return answer({"verdicts": await services(request).devices.verdicts(request.match_info["id"], limit(request))})


async def verdict_plot(request: web.Request) -> web.Response:
    """The latencies of a verdict as a picture; `number` is its `id`"""
    number = request.match_info["number"]
    if not number.isascii() or not number.isdigit() or len(number) > 15:
        raise NotFound(f"there is no verdict {number[:40]!r}", code="no_verdict")
    document = await services(request).devices.verdict(request.match_info["id"], int(number))
    # A picture that is opened by itself must not be more than a picture.
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return web.Response(text=plot.svg(document), content_type="image/svg+xml", charset="utf-8", headers=headers)


async def desired(request: web.Request) -> web.Response:
    """The newest desired document, for the device itself"""
    device = request.match_info["id"]
    if actor(request).name != device:
        raise Forbidden(f"{actor(request).name} may not read what is for {device}", code="other_device")
    return answer({"desired": await services(request).devices.desired(device)})


async def events(request: web.Request) -> web.Response:
    """Events of all devices, newest first"""
    where = {name: request.query[name] for name in ("device", "kind") if name in request.query}
    return answer({"events": await services(request).devices.events(limit(request), before(request), **where)})
