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
    """Make an enrolment token, for one device or for a batch"""
    sent = await body(request, models.DeviceTokenBody, DOCUMENT_MAX_BYTES)
    known = services(request)
    trust = await known.catalogue.trust()
    if trust is None:
        raise Conflict("upload the trust metadata first: a device is told its digest", code="no_trust")
    made = await known.invitations.create(actor(request), sent.labels, sent.device, sent.hours, sent.uses)
    root, url = trust["root_sha256"], server_url(request)
    command = f"interlock-agent enrol --server {url} --token {made['token']} --root-sha256 {root}"
    return answer({**made, "root_sha256": root, "enrol": command}, 201)


async def invitations(request: web.Request) -> web.Response:
    """Enrolment tokens, without what is secret"""
    return answer({"tokens": await services(request).invitations.listing()})


async def uninvite(request: web.Request) -> web.Response:
    """Take an enrolment token back"""
    identity = request.query.get("id", "")
    await services(request).invitations.revoke(actor(request), identity)
    return answer({"revoked": identity})


async def enrol(request: web.Request) -> web.Response:
    """Use an enrolment token; 202: the device waits for approval and asks again"""
    if not request.secure:  # the token would have been read by who listens; and nothing says that we are we
        raise Forbidden(f"devices enrol over TLS: {server_url(request)}", code="tls_needed")
    sent = await body(request, models.EnrolBody, 64 * 1024)
    known = services(request)
    joined = await known.identities.enrol(sent.token, sent.csr, sent.name, sent.agent, request.remote or "")
    addresses = {"broker": broker_url(request), "server": server_url(request)}
    if joined["status"] != "enrolled":
        return answer({**joined, **addresses}, 202)
    known.changed([joined["device"]])
    return answer({**joined, **addresses}, 201)


async def renew(request: web.Request) -> web.Response:
    """A certificate for a fresh key of the device that asks"""
    sent = await body(request, models.RenewBody, 64 * 1024)
    device = _itself(request)
    return answer(await services(request).identities.renew(device, sent.csr, request.remote or ""), 201)


async def approve(request: web.Request) -> web.Response:
    """Let a waiting device in"""
    return await _decide(request, approved=True)


async def refuse(request: web.Request) -> web.Response:
    """Do not let a waiting device in"""
    return await _decide(request, approved=False)


async def _decide(request: web.Request, *, approved: bool) -> web.Response:
    sent = await body(request, models.DecideBody, DOCUMENT_MAX_BYTES)
    decide = services(request).identities.decide
    return answer(await decide(actor(request), request.match_info["id"], sent.keyid, approved=approved))


async def revoke(request: web.Request) -> web.Response:
    """Cut a device off, at once and until it enrols anew"""
    sent = await body(request, models.RevokeBody, DOCUMENT_MAX_BYTES)
    return answer(await services(request).identities.revoke(actor(request), request.match_info["id"], sent.reason))


async def index(request: web.Request) -> web.Response:
    """Devices, by label, and those that wait for approval"""
    known = services(request)
    found = await known.devices.listing(labels(request))
    return answer({"devices": found, "waiting": await known.identities.waiting()})


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


async def reconcile(request: web.Request) -> web.Response:
    """Go on from what a device reports, after the server was restored"""
    device, known = request.match_info["id"], services(request)
    counter = await known.devices.reconcile(actor(request), device, known.catalogue.keys()["director_epoch"])
    known.changed([device])
    return answer({"device": device, "counter": counter})


async def unpin(request: web.Request) -> web.Response:
    """Let what is wanted replace what a file brought"""
    sent = await body(request, models.UnpinBody, DOCUMENT_MAX_BYTES)
    return answer(await services(request).sideloads.unpin(actor(request), request.match_info["id"], sent.model))


async def desired(request: web.Request) -> web.Response:
    """The newest desired document, for the device itself"""
    return answer({"desired": await services(request).devices.desired(_itself(request))})


def _itself(request: web.Request) -> str:
    """The device that the path names, which must be the one that asks. Raises Forbidden (`other_device`)."""
    device, who = request.match_info["id"], actor(request)
    if who.name != device or who.role != "device":
        raise Forbidden(f"{who.name} may not do what is for {device} itself", code="other_device")
    return device


async def events(request: web.Request) -> web.Response:
    """Events of all devices, newest first"""
    where = {name: request.query[name] for name in ("device", "kind") if name in request.query}
    return answer({"events": await services(request).devices.events(limit(request), before(request), **where)})
