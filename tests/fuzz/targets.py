"""What is fuzzed: for each kind of input a parser as the program uses it, and inputs that it accepts.

An InterlockError is the right answer, and so is an input that was accepted; anything else is a finding. Below a
signature the damaged content is signed again, so that what comes after the signature is reached, too.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zstandard
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from onnx import TensorProto, helper
from securesystemslib.dsse import Envelope
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner

from interlock_agent.core import ledger
from interlock_agent.fetcher.archive import Archive
from interlock_agent.fetcher.assemble import _decompress
from interlock_agent.fetcher.messages import Job
from interlock_agent.fetcher.sideload import believe, permitted
from interlock_agent.fetcher.trust import Trust
from interlock_server.adapters.device_ca import request_key
from interlock_server.core import events, mqtt, mqtt_rules
from interlock_server.http.models import EnrolBody
from interlock_server.publisher import onnx_file
from interlock_shared import archive, canonical, floors, trust
from interlock_shared.base import validate
from interlock_shared.documents import Director
from interlock_shared.errors import InterlockError, Invalid
from interlock_shared.manifest import SegmentRef
from tests.fetcher.repository import DEVICE, NOW, PARTS, Repository, text
from tests.fetcher.simulator import Simulator
from tests.soak import fuzz

Read = Callable[[bytes], object]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where a sync costs nothing
MAX_BYTES = 128 * 1024  # of one input: what is larger is refused by its size, which a table tests


@dataclass(frozen=True)
class Target:
    """`seeds` are accepted by `read`; `textual`: they are JSON."""

    seeds: tuple[bytes, ...]
    read: Read
    textual: bool = True


def believed(target: Target, data: bytes) -> bool:
    """Whether the input was accepted. Raises whatever is no InterlockError: a finding."""
    try:
        target.read(data)
    except InterlockError:
        return False
    return True


# --- documents -------------------------------------------------------------------------------------------------------


def _resealed(payload_type: str, open_it: Callable[[bytes, list[Any]], object]) -> Read:
    signer = CryptoSigner.generate_ed25519()

    def read(data: bytes) -> object:
        envelope = Envelope(data, payload_type, {})
        envelope.sign(signer)
        return open_it(canonical.encode(envelope.to_dict()), [signer.public_key])

    return read


def _payload(envelope: bytes) -> bytes:
    return bytes(Envelope.from_dict(json.loads(envelope)).payload)


def _desired(data: bytes, keys: list[Any]) -> object:
    return trust.open_desired(data, keys, device="d1", last=(1, 3), epoch=1, now="2026-02-01T00:00:00Z")


def _permit(data: bytes, keys: list[Any]) -> object:
    ours: dict[str, Any] = {"device": "d1", "model": "detector", "version": "1.4.0", "manifest_sha256": fuzz.DIGEST}
    return trust.open_permit(data, keys, **ours, now=fuzz.NOW)


def _enrol(data: bytes) -> object:
    document = canonical.decode(data, limit=64 * 1024, what="body")
    sent = validate(EnrolBody, document, "body")
    return request_key(sent.csr.encode())


@cache
def _csr() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d1")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(Ed25519PrivateKey.generate(), None)
    return request.public_bytes(Encoding.PEM)


def _keys(data: bytes) -> object:
    return trust.load_keys(canonical.decode(data, limit=MAX_BYTES, what="keys"))


def _director(data: bytes) -> object:
    document = validate(Director, canonical.decode(data, limit=MAX_BYTES, what="director"), "director")
    return trust.load_keys(document.keys)


# --- metadata --------------------------------------------------------------------------------------------------------


@cache
def _repository() -> Simulator:
    one = Simulator()
    one.delegate("release-a", "a/*")
    one.add("a/model", b"weights", "release-a")
    one.publish(bump=False)
    one.rotate("timestamp")
    one.publish()
    return one


def _walk(name: str, data: bytes) -> object:
    served = _repository()
    given = Simulator.__new__(Simulator)
    given.__dict__.update({**served.__dict__, "files": {**served.files, name: data}, "asked": []})
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        chain = Trust(served.root, Path(folder), given, NOW.timestamp())
        known = {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
        return chain.target("a/model", chain.refresh(known))


def _metadata(name: str) -> Target:
    """The file as it is: whoever stands between."""
    return Target((_repository().files[name],), lambda data: _walk(name, data))


def _stolen(name: str, role: str) -> Target:
    """Its signed part, signed again: whoever has the key."""
    whole = json.loads(_repository().files[name])

    def read(data: bytes) -> object:
        try:
            signed = json.loads(data)
            sealed = encode_canonical(signed)
        except (ValueError, RecursionError, Exception) as bad:  # noqa: BLE001  # cannot be signed: not our parser
            raise Invalid(str(bad)) from None
        signatures = [key.sign(str(sealed).encode()).to_dict() for key in _repository().keys[role]]
        return _walk(name, json.dumps({"signed": signed, "signatures": signatures}).encode())

    return Target((json.dumps(whole["signed"]).encode(),), read)


# --- archives, segments, models --------------------------------------------------------------------------------------

_BUNDLE = Repository()


def _sideload(data: bytes) -> object:
    descriptor = os.memfd_create("bundle")
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with Archive(descriptor) as source, tempfile.TemporaryDirectory(dir=MEMORY) as state:
        job = Job("archive", DEVICE, state, NOW.timestamp(), text(NOW))
        digest = canonical.sha256(source.raw)
        permitted(job, source, digest, believe(job, _BUNDLE.root(), source, digest))
        return [sent.form for sent in source.segments()]


def _segment(data: bytes) -> object:
    plain = _decompress(data, SegmentRef(sha256=canonical.sha256(PARTS[0]), size=len(PARTS[0])))
    if len(plain) > len(PARTS[0]):
        raise AssertionError("more than was declared")
    return plain


def _head(data: bytes) -> object:
    reader = archive.Reader(io.BytesIO(data))
    return [len(sent.data) for sent in reader.segments(reader.head().manifest)]


@cache
def _model() -> bytes:
    shape: list[str | int | None] = ["N", 4]
    one, two = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [one], [two], [weights])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def _onnx(data: bytes) -> object:
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(data)
        file.flush()
        return onnx_file.read(Path(file.name))


_FLOORS = (
    b'{"root":3,"root_sha256":"ab","snapshot":7,"targets":2,"release-a":1,"clock_root":2,'
    b'"delegated":{"release-a":{"targets":2,"keyids":["old"],"threshold":1}}}'
)
_LEDGER = (
    b'{"schema":"interlock.ledger/1","spent":{"try:x":1},"quarantine":[{"key":"k","payload_sha256":"p","reason":"r",'
    b'"version":"1.0.0","at":"t"}],"facts":{"floors":' + _FLOORS + b',"director":{"epoch":1,"keys":{}},'
    b'"desired_at":[1,2],"clock_floor":[0,"2026-01-01T00:00:00.000000Z"],'
    b'"revoked":{"detector":{"aa":{"version":"1.0.0","reason":"r","at":"t"}}}}}'
)


def _floors(data: bytes) -> object:
    """What an agent merges comes from its own files; what it is compared with comes from signed metadata."""
    document = canonical.decode(data, limit=MAX_BYTES, what="floors")
    if not floors.plausible(document):
        raise Invalid("no floors")
    keys = {"release-a": floors.RoleKeys(frozenset({"new"}), 1)}
    newer = floors.relieved({**document, "root": 1}, keys, 9)
    both = floors.merged(document, newer)
    assert floors.plausible(both), "what was merged can be read again"
    return floors.merged(newer, document), floors.recovered(both, ["snapshot"])


def _ledger(data: bytes) -> object:
    """The second file beside the journal: anything may have happened to it."""
    try:
        found = ledger.of_document(canonical.decode(data, limit=MAX_BYTES, what="ledger"))
    except ValueError as bad:
        raise Invalid(str(bad)) from None
    return [ledger.higher(name, value, value) for name, value in found.facts.items()]


def _mqtt(data: bytes) -> object:
    """A packet as the embedded broker gets it, without its length; what it would answer is made, too."""
    kind, flags, body = (data[0] >> 4, data[0] & 0x0F, data[1:]) if data else (0, 0, b"")
    if kind == mqtt.CONNECT:
        try:
            return mqtt.parse_connect(body)
        except mqtt.RefusedConnection as refused:
            raise Invalid(str(refused)) from None
    if kind == mqtt.PUBLISH:
        number, message = mqtt.parse_publish(flags, body)
        hub = mqtt_rules.Hub()
        hub.retain("d1", message)
        assert len(mqtt.publish(message, message.qos, number)) > len(body), "what is passed on has lost something"
        return list(hub.kept(message.topic)), mqtt_rules.may_publish("d1", message.topic)
    if kind == mqtt.SUBSCRIBE:
        hub = mqtt_rules.Hub()
        number, filters = mqtt.parse_subscribe(flags, body)
        return mqtt.suback(number, [hub.subscribe("d1", one, qos) for one, qos in filters]), hub.hearers("d1")
    if kind == mqtt.UNSUBSCRIBE:
        return mqtt.parse_unsubscribe(flags, body)
    if kind == mqtt.PUBACK:
        return mqtt.parse_puback(flags, body)
    mqtt.parse_empty(kind, flags, body)
    return None


_TOPIC = b"interlock/v1/device/d1/"
_MQTT = (
    b"\x10\x00\x04MQTT\x04\x2e\x00\x1e\x00\x02d1\x00\x1f" + _TOPIC + b"presence\x00\x03bye",
    b"\x32\x00\x1c" + _TOPIC + b"event\x00\x01{}",
    b"\x82\x00\x01\x00\x1a" + _TOPIC + b"ack\x01",
    b"\xa2\x00\x02\x00\x1a" + _TOPIC + b"ack",
    b"\x40\x00\x07",
    b"\xc0",
)


def _made() -> dict[str, Target]:
    signer = CryptoSigner.generate_ed25519().public_key
    key = {"keyid": signer.keyid, "key": signer.to_dict()}
    enrol = json.dumps({"token": "ilt_x", "csr": _csr().decode(), "name": "d1", "agent": "0.1.0"}).encode()
    director = json.dumps({"schema": "interlock.director/1", "epoch": 1, "keys": {signer.keyid: key["key"]}}).encode()
    known = {name: Target((make(),), read, name != "bundle") for name, (make, read) in fuzz.PARSERS.items()}
    packed = zstandard.ZstdCompressor().compress(PARTS[0])
    return known | {
        "desired-signed": Target((_payload(fuzz.PARSERS["desired"][0]()),), _resealed(trust.DESIRED_TYPE, _desired)),
        "permit-signed": Target((_payload(fuzz.PARSERS["permit"][0]()),), _resealed(trust.PERMIT_TYPE, _permit)),
        "event-from-device": Target((fuzz.EVENT,), lambda data: events.parse_event("d1", data)),
        "report-from-device": Target(
            (fuzz.REPORTED.replace(b'"outbox_epoch":"e"', b'"outbox_epoch":"01234567"'),),
            lambda data: events.parse_reported("d1", data),
        ),
        "enrolment": Target((enrol,), _enrol),
        "csr": Target((_csr(),), request_key, textual=False),
        "keys": Target((json.dumps({signer.keyid: key["key"]}).encode(),), _keys),
        "director": Target((director,), _director),
        "floors": Target((_FLOORS,), _floors),
        "ledger": Target((_LEDGER,), _ledger),
        "root": _metadata("2.root.json"),
        "timestamp": _metadata("timestamp.json"),
        "snapshot": _metadata("2.snapshot.json"),
        "targets": _metadata("2.targets.json"),
        "delegated": _metadata("2.release-a.json"),
        "root-stolen": _stolen("2.root.json", "root"),
        "timestamp-stolen": _stolen("timestamp.json", "timestamp"),
        "snapshot-stolen": _stolen("2.snapshot.json", "snapshot"),
        "targets-stolen": _stolen("2.targets.json", "targets"),
        "sideload": Target((_BUNDLE.bundle(),), _sideload, textual=False),
        "archive": Target((_BUNDLE.bundle(),), _head, textual=False),
        "segment": Target((packed,), _segment, textual=False),
        "onnx": Target((_model(),), _onnx, textual=False),
        "mqtt": Target(_MQTT, _mqtt, textual=False),
    }


@cache
def targets() -> dict[str, Target]:
    """All of them, by name."""
    return _made()
