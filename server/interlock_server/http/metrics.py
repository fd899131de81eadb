"""Figures for Prometheus, collected when they are asked for."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest

from interlock_server.http.request import services


async def metrics(request: web.Request) -> web.Response:
    """Figures for Prometheus"""
    known, registry = services(request), CollectorRegistry()
    Gauge("interlock_server_info", "Version.", ["version"], registry=registry).labels(known.version).set(1)
    devices = Gauge("interlock_devices", "Enrolled devices.", ["online"], registry=registry)
    found = await known.devices.listing({})
    online = sum(bool(one["online"]) for one in found)
    devices.labels("true").set(online)
    devices.labels("false").set(len(found) - online)
    units = Gauge("interlock_assignments", "Assignments by state.", ["state"], registry=registry)
    for state, number in (await known.rollouts.counts()).items():
        units.labels(state).set(number)
    messages = Counter(
        "interlock_device_messages", "Messages of devices by what became of them.", ["result"], registry=registry
    )
    for result, number in known.figures().items():
        messages.labels(result).inc(number)
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
