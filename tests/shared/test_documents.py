"""Manifest, documents, envelopes, canonical JSON: what goes out comes in, and nothing else does."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from securesystemslib.signer import CryptoSigner

from interlock_shared import archive, base, canonical, documents, errors, limits, segments, topics, trust
from interlock_shared import manifest as manifests
from interlock_shared.documents import Ack, Assignment, Desired, Permit, Presence, Reported
from interlock_shared.errors import Forbidden, Incompatible, InterlockError, Invalid, Untrusted
from tests.agent.material import NEW, the_manifest

# --- canonical ------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_canonical_bytes_come_back_and_are_the_same_again(document: dict[str, Any]) -> None:
    data = canonical.encode(document)
    assert canonical.decode(data, limit=len(data), what="d") == document
    assert canonical.encode(canonical.decode(data, limit=len(data), what="d")) == data
    assert canonical.encode(dict(reversed(list(document.items())))) == data


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}',
        b"[]", b"1", b"", b"{", b"\xff", b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_canonical_object_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        canonical.decode(data, limit=1 << 20, what="d")


def test_limits_of_canonical_json() -> None:
    with pytest.raises(Invalid):
        canonical.decode(b'{"a":1}', limit=6, what="d")
    fits = b'{"a":' * (canonical.DEPTH_MAX - 1) + b"{}" + b"}" * (canonical.DEPTH_MAX - 1)
    canonical.decode(fits, limit=1000, what="d")
    assert canonical.decode(b'{"a":"' + b"{[" * 50 + b'"}', limit=1000, what="d"), "braces in a text are none"
    with pytest.raises(Invalid, match="surrogate"):
        canonical.encode({"a": "\ud800"})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical.encode({"a": float("nan")})


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_an_error_of_ours(data: bytes) -> None:
    try:
        assert isinstance(canonical.decode(data, limit=200, what="d"), dict)
    except Invalid:
        pass


# --- manifest -------------------------------------------------------------------------------------------------------

SMALL = st.integers(1, 1000)


@given(
    accuracy=st.none() | st.floats(0, 1),
    seconds=st.floats(0, 86_400),
    labels=st.none() | st.lists(TEXT, max_size=5),
    author=st.none() | TEXT,
    content=st.binary(min_size=1, max_size=50),
)
def test_a_manifest_comes_back(
    accuracy: float | None, seconds: float, labels: list[str] | None, author: str | None, content: bytes
) -> None:
    plain = the_manifest().model_dump(mode="json")["signature"]
    made = the_manifest(
        content=content,
        gates={"accuracy_min": accuracy},
        health={"min_seconds": seconds},
        signature={**plain, "labels": labels},
        provenance={"author": author},
    )
    data = manifests.to_bytes(made)
    assert manifests.parse(data) == made
    assert manifests.to_bytes(manifests.parse(data)) == data


BASE = the_manifest(golden=True).model_dump(mode="json", by_alias=True)


def changed(path: str, value: Any) -> dict[str, Any]:
    document = json.loads(json.dumps(BASE))
    *folders, last = path.split(".")
    place: Any = document
    for part in folders:
        place = place[int(part)] if part.isdigit() else place[part]
    place[int(last) if last.isdigit() else last] = value
    return dict(document)


TENSOR = BASE["signature"]["inputs"][0]
SEGMENT = BASE["files"][0]["segments"][0]
REFUSED: list[tuple[str, Any]] = [
    ("colour", "red"), ("files.0.colour", 1), ("signature.inputs.0.colour", 1), ("gates.colour", 1),
    ("model", "Detector"), ("model", "../x"), ("model", "a" * 65), ("model", ""), ("version", "1.0"),
    ("version", "1.0.0+b"), ("version", "01.0.0"), ("created", "yesterday"), ("schema", "interlock.bundle/2"),
    ("files", []), ("files.0.name", "../model.onnx"), ("files.0.name", ".hidden"), ("files.0.name", "seal.json"),
    ("files.0.name", "a" * 129), ("files.0.size", 1), ("files.0.size", -1), ("files.0.sha256", "A" * 64),
    ("files.0.segments.0.sha256", "0" * 63), ("files.0.segments.0.size", 0),
    ("files.0.segments.0.size", limits.SEGMENT_MAX_BYTES + 1), ("files.1.name", "model.onnx"),
    ("files", [BASE["files"][0]] * (limits.FILES_MAX + 1)),
    ("variants", []), ("variants.0.file", "other.onnx"), ("variants.0.reference", False),
    ("variants.0.runtime", "shell"), ("variants", [BASE["variants"][0]] * 2),
    ("variants.0.requires", [{"fact": "gpu", "op": "~", "value": "x"}]),
    ("signature.inputs", []), ("signature.inputs", [TENSOR] * 2),
    ("signature.inputs", [{**TENSOR, "name": f"t{n}"} for n in range(limits.TENSORS_MAX + 1)]),
    ("signature.inputs.0.dtype", "FP8"), ("signature.inputs.0.shape", [-2]),
    ("signature.inputs.0.shape", [1] * (limits.RANK_MAX + 1)), ("signature.inputs.0.shape", ["N"]),
    ("signature.labels", ["a"] * (limits.LABELS_MAX + 1)),
    ("golden.file", "none.npz"), ("golden.inputs", {}), ("golden.inputs", {"z": "z"}), ("golden.labels", "l"),
    ("golden.label_output", "z"), ("golden.rtol", -1), ("golden.batch", 0), ("golden.expected", {"z": "z"}),
    ("gates", "off"), ("gates.accuracy_min", 2), ("gates.latency_ratio_max", 0), ("gates.accuracy_min", "0.5"),
    ("health.min_seconds", -1), ("health.min_seconds", 86_401), ("health.min_requests", 1_000_001),
    ("health.checks", [{"check": "script_ok"}]), ("provenance.author", "a" * 257), ("min_agent", "soon"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), REFUSED, ids=[f"{row[0]}-{number}" for number, row in enumerate(REFUSED)])
def test_a_manifest_that_is_not_one_is_refused_by_name(path: str, value: Any) -> None:
    with pytest.raises(Invalid) as refused:
        manifests.from_document(changed(path, value))
    assert refused.value.details["field"]


@pytest.mark.parametrize("key", sorted(manifests.COMMAND_KEYS))
@pytest.mark.parametrize("path", ["", "health.", "files.0.", "signature.inputs.0.", "provenance."])
def test_a_command_is_refused_at_any_depth_before_anything_else(key: str, path: str) -> None:
    for spelt in (key, key.upper()):
        document = {**changed(path + spelt, "reboot"), "schema": "another", "min_agent": "99.0.0"}
        with pytest.raises(Invalid) as refused:
            manifests.from_document(document)
        assert (refused.value.code, refused.value.details["field"]) == ("command_in_manifest", path + spelt)


def test_a_tensor_may_be_called_as_a_command_is() -> None:
    made = changed("signature.inputs.0.name", "run") | {"golden": {**BASE["golden"], "inputs": {"run": "cmd"}}}
    assert manifests.from_document(made).signature.inputs[0].name == "run"


@pytest.mark.parametrize("more", [{}, {"schema": "interlock.bundle/9"}, {"new_field": 1}, {"files": "other form"}])
def test_a_newer_agents_manifest_says_so_before_its_fields_are_looked_at(more: dict[str, Any]) -> None:
    with pytest.raises(Incompatible) as refused:
        manifests.from_document({**BASE, "min_agent": "99.0.0", **more})
    assert (refused.value.code, refused.value.details["needs"]) == ("needs_agent", "99.0.0")


def test_bytes_that_are_not_canonical_are_not_a_manifest() -> None:
    data = manifests.to_bytes(the_manifest())
    with pytest.raises(Invalid) as refused:
        manifests.parse(data + b"\n")
    assert refused.value.code == "not_canonical"
    with pytest.raises(Invalid):
        manifests.parse(b" " * (limits.MANIFEST_MAX_BYTES + 1))


def test_a_payload_is_what_runs() -> None:
    made = the_manifest()
    assert the_manifest("9.9.9", content=b"1.1.0").payload_sha256() == made.payload_sha256()
    assert the_manifest(gates="none").payload_sha256() == made.payload_sha256()
    assert the_manifest(content=b"other").payload_sha256() != made.payload_sha256()


# --- envelopes ------------------------------------------------------------------------------------------------------

KEY, FOREIGN = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
WISH = Assignment(version="1.0.0", manifest_sha256=NEW, assignment="w", rollout="r")
TIMES: dict[str, Any] = {"issued_at": "2026-01-01T00:00:00Z", "expires_at": "2026-02-01T00:00:00Z"}
NOW = "2026-01-15T00:00:00Z"


def desired(**more: Any) -> Desired:
    fields: dict[str, Any] = {"device": "d", "epoch": 2, "counter": 7, "units": {"detector": WISH}} | TIMES | more
    return Desired(**fields)


def opened(data: bytes, last: tuple[int, int] = (2, 6), now: str = NOW) -> Desired | None:
    return trust.open_desired(data, [KEY.public_key], device="d", last=last, epoch=2, now=now)


def test_a_desired_document_is_believed_once() -> None:
    data = trust.seal(desired(), trust.DESIRED_TYPE, KEY)
    assert opened(data) == desired()
    assert opened(data, last=(2, 7)) is None
    assert opened(data, last=(2, 7), now="2027-01-01T00:00:00Z") is None, "old, whatever else it is"
    for last in ((2, 8), (3, 1)):
        with pytest.raises(Untrusted) as older:
            opened(data, last=last, now="2027-01-01T00:00:00Z")
        assert older.value.code == "older"
    assert opened(data, last=(1, 2**52)) == desired(), "a new epoch begins again"
    with pytest.raises(Untrusted) as jump:
        opened(trust.seal(desired(counter=2**33), trust.DESIRED_TYPE, KEY), last=(1, 2**33))
    assert jump.value.code == "counter_jump", "from nothing"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (trust.seal(desired(), trust.DESIRED_TYPE, FOREIGN), "bad_signature"),
        (trust.seal(desired(), trust.PERMIT_TYPE, KEY), "wrong_type"),
        (trust.seal(desired(device="e"), trust.DESIRED_TYPE, KEY), "other_device"),
        (trust.seal(desired(epoch=3), trust.DESIRED_TYPE, KEY), "wrong_epoch"),
        (trust.seal(desired(expires_at=NOW), trust.DESIRED_TYPE, KEY), "expired"),
        (trust.seal(desired(counter=2**40), trust.DESIRED_TYPE, KEY), "counter_jump"),
        (trust.seal(desired(min_agent="99.0.0"), trust.DESIRED_TYPE, KEY), "needs_agent"),
        (trust.seal(Ack(device="d", epoch="e", upto=1), trust.DESIRED_TYPE, KEY), "unknown_schema"),
        (b"{}", "invalid"),
        (b'{"payload":1,"payloadType":"x","signatures":[]}', "invalid"),
        (b"x" * (limits.DOCUMENT_MAX_BYTES + 1), "invalid"),
    ],
)
def test_a_document_that_is_not_to_be_believed(data: bytes, code: str) -> None:
    with pytest.raises(InterlockError) as refused:
        opened(data)
    assert refused.value.code == code


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_byte_of_an_envelope_changes_what_is_believed(data: st.DataObject) -> None:
    sealed = bytearray(trust.seal(desired(), trust.DESIRED_TYPE, KEY))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    try:
        assert opened(bytes(sealed)) == desired()  # a byte that says nothing, as a base64 alphabet's or a key id's
    except InterlockError:
        pass


def test_a_permit_is_for_one_release_and_its_devices() -> None:
    permit = Permit(model="detector", version="1.0.0", manifest_sha256=NEW, devices=("d",), **TIMES)
    data = trust.seal(permit, trust.PERMIT_TYPE, KEY)
    ours: dict[str, Any] = {"device": "d", "model": "detector", "version": "1.0.0", "manifest_sha256": NEW, "now": NOW}
    assert trust.open_permit(data, [KEY.public_key], **ours) == permit
    for change, code in [
        ({"device": "e"}, "other_device"), ({"version": "1.0.1"}, "permit_for_other_release"),
        ({"now": "2026-02-01T00:00:00Z"}, "expired"), ({"manifest_sha256": "0" * 64}, "permit_for_other_release"),
    ]:  # fmt: skip
        with pytest.raises((Forbidden, Untrusted)) as refused:
            trust.open_permit(data, [KEY.public_key], **{**ours, **change})
        assert refused.value.code == code
    with pytest.raises(Untrusted) as unknown:
        trust.open_permit(data, [], **ours)
    assert unknown.value.code == "unknown_key"


def test_an_unknown_field_is_refused_where_it_is_signed_and_kept_in_a_report() -> None:
    with pytest.raises(ValidationError):
        Assignment.model_validate({**WISH.model_dump(), "colour": "red"})
    with pytest.raises(Invalid):
        base.validate(Assignment, {**WISH.model_dump(), "colour": "red"}, "wish")
    with pytest.raises(Invalid):
        base.validate(Ack, {"device": "d", "epoch": "e", "upto": 1, "colour": "red"}, "ack")
    assert base.validate(Presence, {"online": True, "colour": "red"}, "presence").model_dump()["colour"] == "red"
    assert Reported.model_config["extra"] == "allow"
    assert documents.Event.model_config["extra"] == "allow"


# --- archive, topics, errors, segments ------------------------------------------------------------------------------


@given(st.from_regex(r"[a-z0-9]([a-z0-9./-]{0,90}[a-z0-9])?", fullmatch=True), st.integers(0, 8**11 - 1))
def test_the_one_header_is_a_plain_tar_header(name: str, size: int) -> None:
    block = archive.header(name, size)
    info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    assert (info.name, info.size, info.mode, info.mtime, info.isreg()) == (name, size, 0o644, 0, True)
    assert (info.uid, info.gid, info.linkname, len(block)) == (0, 0, "", 512)


@given(st.binary(max_size=2000))
def test_any_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(InterlockError):
        archive.Reader(io.BytesIO(data)).head()


@pytest.mark.parametrize("kind", topics.DEVICE_TOPICS)
def test_a_topic_comes_back(kind: str) -> None:
    assert topics.parse_device_topic(topics.device_topic(kind, "press-7")) == ("press-7", kind)


@pytest.mark.parametrize("topic", ["", "interlock/v1/fleet/notice", "interlock/v2/device/d/event", "a/b/c/d/e/f"])
def test_another_topic_is_none(topic: str) -> None:
    assert topics.parse_device_topic(topic) is None


@pytest.mark.parametrize("kind", errors.KINDS.values())
def test_an_error_comes_back_over_the_wire(kind: type[InterlockError]) -> None:
    sent = kind("what happened", code="a_code", field="x")
    back = errors.from_wire(json.loads(json.dumps(errors.to_wire(sent))))
    assert (type(back), back.document()) == (kind, sent.document())


@pytest.mark.parametrize("document", [{}, {"kind": "New"}, {"details": 1}, {"details": {"code": "x", "message": "m"}}])
def test_an_unknown_error_is_terminal(document: dict[str, Any]) -> None:
    assert type(errors.from_wire(document)) is errors.Never


@given(st.integers(0, 10_000), SMALL)
def test_a_file_is_cut_without_gaps(size: int, length: int) -> None:
    pieces = list(segments.cut(size, length))
    assert sum(count for _, count in pieces) == size
    assert [at for at, _ in pieces] == list(range(0, size, length))


def test_a_number_that_json_cannot_hold_is_a_refusal_and_no_fault_of_ours() -> None:
    document = json.loads('{"schema": "interlock.ack/1", "epoch": "x", "upto": 1, "more": 1e999}')
    with pytest.raises(Invalid, match="ack: Out of range"):
        base.validate(Ack, document, "ack")


ENGINE: dict[str, Any] = {"name": "engine", "file": "model.onnx", "compiled_context": True}
BUILT_FOR = {"gpu": "Orin", "driver": "540.3.0", "tensorrt": "10.3.0"}


def variants(**engine: Any) -> list[dict[str, Any]]:
    return [{"name": "fp32", "file": "model.onnx", "reference": True}, {**ENGINE, **engine}]


@pytest.mark.parametrize("lacking", sorted(BUILT_FOR))
def test_a_compiled_form_says_what_it_was_built_for(lacking: str) -> None:
    assert the_manifest(variants=variants(built_for=BUILT_FOR)).variants[1].built_for == BUILT_FOR
    named = {fact: value for fact, value in BUILT_FOR.items() if fact != lacking}
    with pytest.raises(Invalid, match="a compiled form names at least"):
        the_manifest(variants=variants(built_for=named))


def test_an_engine_of_tensorrt_says_what_it_was_built_for() -> None:
    file = {**the_manifest().model_dump(mode="json", by_alias=True)["files"][0], "name": "model.plan"}
    files = [*the_manifest().model_dump(mode="json", by_alias=True)["files"], file]
    plain = {"file": "model.plan", "runtime": "tensorrt", "compiled_context": False}
    built_for = {"gpu": "Orin", "tensorrt": "10.3"}
    made = the_manifest(variants=variants(**plain, built_for=built_for), files=files)
    assert made.variants[1].runtime == "tensorrt"
    for lacking in built_for:
        named = {fact: value for fact, value in built_for.items() if fact != lacking}
        with pytest.raises(Invalid, match="an engine names at least"):
            the_manifest(variants=variants(**plain, built_for=named), files=files)


def test_a_compiled_form_is_never_the_reference() -> None:
    alone = [{**ENGINE, "reference": True, "built_for": BUILT_FOR}]
    with pytest.raises(Invalid, match="cannot be it"):
        the_manifest(variants=alone)
