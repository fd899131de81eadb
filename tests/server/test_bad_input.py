"""Every document that a running server is sent, damaged in every plain way: by HTTP a typed error that names the field,
by MQTT a refusal that is counted; and nothing of it is left."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner

from interlock_server.core import events
from interlock_server.http.app import ROUTES
from interlock_shared import manifest as manifests
from interlock_shared import topics
from interlock_shared.limits import DOCUMENT_MAX_BYTES
from tests.rig.damages import Damage, Json, encoded, misshapen, of_signatures, unreadable
from tests.server.fleet_fixture import Fleet, the_manifest

BODIES = {route.path: route.body for route in ROUTES if route.body is not None}
KEYID = "0" * 64
GOOD: dict[str, Json] = {
    topics.ONLINE_KEYS: {"roles": ["snapshot"]},
    topics.BLOBS_MISSING: {"sha256": [KEYID]},
    topics.PERMIT: {"devices": ["edge-1"], "classes": [{"arch": "x86_64"}], "valid_for_s": 60},
    topics.SIGNATURES: {"metadata": {"signed": {}, "signatures": []}},
    topics.REVOKE: {"metadata": {"signed": {}, "signatures": []}},
    topics.WITHDRAW: {"reason": "it is slow"},
    topics.ROLLOUTS: {"model": "detector", "version": "1.0.0", "to": {"device": "edge-1"}},
    topics.DEVICE_TOKENS: {"labels": {"site": "x"}, "device": "edge-9", "hours": 1.0, "uses": 1},
    topics.ENROL: {"token": "t", "csr": "c", "name": "edge-9", "agent": "0.1.0"},
    topics.DEVICE_UNPIN: {"model": "detector"},
    topics.DEVICE_CERTIFICATE: {"csr": "c"},
    topics.DEVICE_APPROVE: {"keyid": KEYID},
    topics.DEVICE_REFUSE: {"keyid": KEYID},
    topics.DEVICE_REVOKE: {"reason": "gone"},
    topics.API_TOKENS: {"name": "somebody", "role": "viewer"},
}


async def state(fleet: Fleet) -> tuple[Any, ...]:
    """What bad input must not change: what the server says, and which files it has."""
    paths = (topics.RELEASES, topics.ROLLOUTS, topics.API_TOKENS, topics.DEVICE_TOKENS, topics.TRUST, topics.DEVICES)
    files = sorted(str(path) for path in fleet.folder.rglob("*") if "server.db" not in path.name)
    return (*[await fleet.admin.get(path) for path in paths], files)


async def refused(fleet: Fleet, path: str, damage: Damage, data: bytes, **more: Any) -> None:
    status, document = await fleet.admin.ask("POST", path, data=data, **more)
    assert status in (400, 409, 413, 422), (path, damage.words, status, document)
    assert set(document) == {"kind", "code", "message", "details"}, (path, damage.words)
    assert document["message"], (path, damage.words)
    if damage.field:
        assert document["details"].get("field", "").startswith(damage.field), (path, damage.words, document)


def filled(path: str) -> str:
    return path.replace("{model}", "detector").replace("{version}", "1.0.0").replace("{id}", "edge-1")


async def test_every_body(fleet: Fleet) -> None:
    good = {**GOOD, topics.TRUST: fleet.offline.trust(fleet.online), topics.RELEASES: {"manifest": "", "metadata": {}}}
    assert good.keys() == BODIES.keys(), "a new route has a row here"
    device = await fleet.enrol("edge-1")
    before = await state(fleet)
    for path, body in good.items():
        BODIES[path].model_validate(body)  # otherwise the rows would show nothing
        fields = BODIES[path].model_fields
        needed = [name for name, field in fields.items() if field.is_required()]
        more = {"ssl": device.tls(), "headers": {"Authorization": ""}} if path == topics.DEVICE_CERTIFICATE else {}
        for damage in (*unreadable(body), *misshapen(body, needed)):
            await refused(fleet, filled(path), damage, damage.data, **more)
    assert await state(fleet) == before


NEEDED = ("model", "version", "signature", "variants", "files")
DIRECTOR = ("epoch", "keys")


def signed_again(signed: Any, key: CryptoSigner) -> Json | None:
    """By who has the key; None: of what cannot be signed at all."""
    try:
        return {"signed": signed, "signatures": [key.sign(str(encode_canonical(signed)).encode()).to_dict()]}
    except Exception:  # noqa: BLE001  # numbers with a part, say: securesystemslib has its own name for that
        return None


def metadata(good: Json, key: CryptoSigner) -> Iterator[Damage]:
    """TUF metadata whose signed part is damaged and signed again, or whose signatures are. It names the role."""
    yield from of_signatures(good)
    for damage in misshapen(good, ("signed", "signatures"), closed=False):
        yield Damage(damage.words, damage.data)
    needed = ("_type", "expires", "spec_version", "version")
    for damage in misshapen(good["signed"], needed, closed=False):
        made = signed_again(json.loads(damage.data), key) if b"9" * 5000 not in damage.data else None
        yield Damage(damage.words, encoded(made) if made else within(good, "signed", damage.data))


def within(body: Json, field: str, data: bytes) -> bytes:
    """The body with these bytes for that field, whether they are JSON or not."""
    return encoded({**body, field: "HERE"}).replace(b'"HERE"', data)


async def test_what_lies_inside_a_body(fleet: Fleet) -> None:
    """Manifest, metadata of each offline role, director: also where whoever damaged it had the key."""
    await fleet.publish("1.0.0")
    before, whole, trust = await state(fleet), the_manifest("1.1.0"), fleet.offline.trust(fleet.online)
    release = fleet.offline.next_release(whole)
    document = json.loads(manifests.to_bytes(whole))
    for damage in (*unreadable(document), *misshapen(document, NEEDED)):
        body = {**release, "manifest": base64.b64encode(damage.data).decode()}
        await refused(fleet, topics.RELEASES, damage, encoded(body))
    for damage in metadata(release["metadata"], fleet.offline.release_key):
        await refused(fleet, topics.RELEASES, damage, within(release, "metadata", damage.data))
    roles = (("root", fleet.offline.root_key), ("targets", fleet.offline.targets_key))
    for role, key in roles:
        for damage in metadata(trust[role], key):
            await refused(fleet, topics.TRUST, damage, within(trust, role, damage.data))
    for damage in misshapen(trust["director"], DIRECTOR):
        await refused(fleet, topics.TRUST, damage, within(trust, "director", damage.data))
    assert await state(fleet) == before
    await fleet.publish("1.1.0")


EVENT = ("device", "epoch", "number", "at", "kind")
REPORTED = ("device", "number", "outbox_epoch", "outbox_floor", "agent", "units", "fingerprint")


async def test_every_message_of_a_device(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    large = b'{"x":"' + b"x" * (DOCUMENT_MAX_BYTES - 7) + b'"}'
    sent = 0
    async with device.online() as link:
        presence = encoded({"schema": "interlock.presence/1", "online": True})
        for kind, data, needed, parse in (
            ("event", device.event("accepted", 1, reason="", data={}), EVENT, partial(events.parse_event, "edge-1")),
            ("reported", device.reported(1), REPORTED, partial(events.parse_reported, "edge-1")),
            ("presence", presence, ("online",), events.parse_presence),
        ):
            parse(data)
            good = json.loads(data)
            damages = [*unreadable(good), *misshapen(good, needed, closed=False)]
            for damage in damages:
                await link.send(kind, damage.data)
            sent += len(damages)
            await link.send(kind, large)  # it is not even looked at
        await link.send("event", device.event("accepted", 1))
        await link.acked(1)
    detail = await fleet.admin.get("/v1/devices/edge-1")
    assert detail["refused_messages"] == sent
    assert len((await fleet.admin.get("/v1/events"))["events"]) == 1, "the good one"
