"""Hostile bytes for every parser that reads what comes from outside: valid documents, damaged by one seed.

An InterlockError is the right answer, and so is a document that was accepted; anything else is a finding.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from securesystemslib.signer import CryptoSigner

from interlock_server.publisher import archives
from interlock_shared import archive, canonical, manifest, trust
from interlock_shared.base import validate
from interlock_shared.documents import Ack, Desired, Event, Permit, Reported
from interlock_shared.errors import InterlockError
from interlock_shared.segments import IDENTITY, Transport

NOW, LATER = "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"
DIGEST = "a" * 64


@cache
def _manifest() -> bytes:
    content = b"x" * 700
    tensor = {"name": "x", "dtype": "FP32", "shape": [-1, 4]}
    segment = {"sha256": canonical.sha256(content), "size": len(content)}
    file = {"name": "model.onnx", "size": len(content), "sha256": canonical.sha256(content), "segments": [segment]}
    document = {
        "schema": manifest.SCHEMA,
        "model": "detector",
        "version": "1.4.0",
        "signature": {"inputs": [tensor], "outputs": [tensor], "labels": ["cat", "dog"]},
        "variants": [{"name": "fp32", "file": "model.onnx", "reference": True}],
        "files": [file],
    }
    return manifest.to_bytes(manifest.from_document(document))


@cache
def _bundle() -> bytes:
    made = manifest.parse(_manifest())
    names = ("1.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json", "1.release-detector.json")
    head = archive.Head(_manifest(), made, dict.fromkeys(names, b"{}"), b"{}", b"{}")
    content = b"x" * 700
    out = io.BytesIO()
    archives.write(out, head, [Transport(canonical.sha256(content), len(content), IDENTITY, content)])
    return out.getvalue()


@cache
def _signer() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()


@cache
def _desired() -> bytes:
    wish = {"version": "1.4.0", "manifest_sha256": DIGEST, "assignment": "r1-d1", "rollout": "r1"}
    fields = {"device": "d1", "epoch": 1, "counter": 7, "issued_at": NOW, "expires_at": LATER}
    desired = validate(Desired, {"schema": "interlock.desired/1", **fields, "units": {"detector": wish}}, "desired")
    return trust.seal(desired, trust.DESIRED_TYPE, _signer())


@cache
def _permit() -> bytes:
    fields = {"model": "detector", "version": "1.4.0", "manifest_sha256": DIGEST, "devices": ["d1"]}
    document = {"schema": "interlock.permit/1", **fields, "issued_at": NOW, "expires_at": LATER}
    return trust.seal(validate(Permit, document, "permit"), trust.PERMIT_TYPE, _signer())


EVENT = canonical.encode(
    {
        "schema": "interlock.event/1",
        "device": "d1",
        "epoch": "0123456789abcdef",
        "number": 3,
        "at": NOW,
        "kind": "staged",
    }
)
REPORTED = canonical.encode(
    {"schema": "interlock.reported/1", "device": "d1", "number": 1, "outbox_epoch": "e", "outbox_floor": 1}
    | {"agent": "0.1.0", "host": None, "desired": [1, 7], "fingerprint": {}, "fingerprint_sha256": "", "units": {}}
)


def _ack() -> bytes:
    return trust.seal(Ack(device="d1", epoch="0123456789abcdef", upto=9), trust.ACK_TYPE, _signer())


def _read_bundle(data: bytes) -> None:
    reader = archive.Reader(io.BytesIO(data))
    for _ in reader.segments(reader.head().manifest):
        pass


def _keys() -> list[Any]:
    public = _signer().public_key
    return trust.load_keys({public.keyid: public.to_dict()})


def _document(kind: Any) -> Callable[[bytes], object]:
    return lambda data: validate(kind, canonical.decode(data, limit=1 << 20, what="document"), "document")


PARSERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
    "manifest": (_manifest, manifest.parse),
    "bundle": (_bundle, _read_bundle),
    "desired": (
        _desired,
        lambda data: trust.open_desired(data, _keys(), device="d1", last=(0, 0), epoch=1, now="2026-02-01T00:00:00Z"),
    ),
    "permit": (
        _permit,
        lambda data: trust.open_permit(
            data, _keys(), device="d1", model="detector", version="1.4.0", manifest_sha256=DIGEST, now=NOW
        ),
    ),
    "event": (lambda: EVENT, _document(Event)),
    "ack": (_ack, lambda data: trust.open_ack(data, _keys(), device="d1")),
    "reported": (lambda: REPORTED, _document(Reported)),
}

WORDS: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    "",
    "\ud800",
    "../../x",
    "a" * 5000,
    [],
    {},
    [[[]]],
    {"exec": "rm"},
    "NaN",
)


def _damage_bytes(data: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(damaged)) if damaged else 0
        deed = chance.randrange(4)
        if deed == 0 and damaged:
            damaged[at] ^= 1 << chance.randrange(8)
        elif deed == 1:
            damaged[at:at] = chance.randbytes(chance.randint(1, 20))
        elif deed == 2:
            del damaged[at : at + chance.randint(1, 600)]
        else:
            damaged[at : at + 12] = chance.choice((b"\xff" * 12, b"7" * 11 + b"\0", b"\0" * 12, b'{"a":' * 40))
    return bytes(damaged)


def _damage_document(data: bytes, chance: random.Random) -> bytes:
    document = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(document)
    for _ in range(chance.randint(1, 3)):
        node, key = chance.choice(places)
        if chance.random() < 0.2 and isinstance(node, dict):
            node[f"{key}x"] = chance.choice(WORDS)
        else:
            node[key] = chance.choice(WORDS)
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def attack(name: str, seed: int) -> bool:
    """Whether the damaged input was accepted. Raises whatever is no InterlockError: a finding."""
    chance = random.Random(f"{name}/{seed}")
    made, read = PARSERS[name]
    whole = made()
    textual = name != "bundle" and chance.random() < 0.6
    data = _damage_document(whole, chance) if textual else _damage_bytes(whole, chance)
    try:
        read(data)
    except InterlockError:
        return False
    return True
