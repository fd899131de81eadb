"""Figures for Prometheus, collected when they are asked for."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from interlock_server.http.request import services

REASONS = frozenset(  # a device must not be able to make up series
    """
    ack_beyond bad_signature counter_jump expired invalid needs_agent not_canonical older other_device unknown_key
    unknown_schema unreachable wrong_epoch wrong_type
    """.split()
)


async def metrics(request: web.Request) -> web.Response:
    """Figures for Prometheus"""
    known, registry = services(request), CollectorRegistry()
    Gauge("interlock_server_info", "Version.", ["version"], registry=registry).labels(known.version).set(1)
    devices = Gauge("interlock_devices", "Enrolled devices.", ["online"], registry=registry)
    found = await known.devices.listing({})
    online = sum(bool(one["online"]) for one in found)
    devices.labels("true").set(online)
    devices.labels("false").set(len(found) - online)
    cloned = Gauge("interlock_devices_cloned", "Devices whose identity is in use twice.", registry=registry)
    cloned.set(sum(one["clone"] is not None for one in found))
    waiting = Gauge("interlock_devices_waiting", "Devices that wait for approval.", registry=registry)
    waiting.set(len(await known.identities.waiting()))
    units = Gauge("interlock_assignments", "Assignments by state.", ["state"], registry=registry)
    for state, number in (await known.rollouts.counts()).items():
        units.labels(state).set(number)
    held = Gauge(
        "interlock_release_devices",
        "Devices that have confirmed, or run, a release that is withdrawn or revoked.",
        ["model", "version", "state"],
        registry=registry,
    )
    for one in await known.catalogue.releases(None):
        if one["ended"] is not None:
            held.labels(one["model"], one["version"], one["state"]).set(one["devices"])
    messages = Counter(
        "interlock_device_messages", "Messages of devices by what became of them.", ["result"], registry=registry
    )
    for result, number in known.figures().items():
        messages.labels(result).inc(number)
    refused = Counter(
        "interlock_device_documents_refused",
        "Documents from the server's side that devices have ignored since their agents' start, by kind and reason.",
        ["document", "reason"],
        registry=registry,
    )
    for device in found:
        for name, number in device["refused"].items():
            document, _, reason = name.partition(":")
            known_document = document if document in ("desired", "ack") else "other"
            refused.labels(known_document, reason if reason in REASONS else "other").inc(number)
    ahead = Gauge("interlock_devices_ahead", "Devices that have accepted more than was sent here.", registry=registry)
    ahead.set(sum(device["ahead"] for device in found))
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
