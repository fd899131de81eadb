"""May this document be believed? Numbered steps, and the code carries the numbers.

Documents that are not TUF's own are DSSE envelopes (https://github.com/secure-systems-lab/dsse):

 1. The envelope is small enough and is one JSON object.
 2. It carries the payload type that was asked for.
 3. One of the given keys has signed it.
 4. The payload is JSON, canonical, and not too deep.
 5. Its schema and `min_agent` are ones this agent speaks.
 6. It has the fields of its model, and no other.
 7. It is meant for this device.
 8. It has not expired (checked when adopting, never when resuming or reverting).
 9. It is newer than what was accepted before (desired: by epoch, then counter).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import BaseModel
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import Key, Signer, SSlibKey

from interlock_shared import canonical, classes
from interlock_shared.base import check_speakable, validate
from interlock_shared.documents import (
    ACK_SCHEMA,
    DESIRED_SCHEMA,
    PERMIT_SCHEMA,
    VERDICT_SCHEMA,
    Ack,
    Desired,
    Permit,
    Verdict,
)
from interlock_shared.errors import Forbidden, Invalid, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES

ACK_TYPE = "application/vnd.interlock.ack+json"
DESIRED_TYPE = "application/vnd.interlock.desired+json"
PERMIT_TYPE = "application/vnd.interlock.permit+json"
VERDICT_TYPE = "application/vnd.interlock.verdict+json"

COUNTER_JUMP_MAX = 2**32  # a counter that jumps further was made up to strand the device

M = TypeVar("M", bound=BaseModel)


def seal(model: BaseModel, payload_type: str, signer: Signer) -> bytes:
    """A DSSE envelope of the model's canonical bytes, as JSON bytes."""
    envelope = Envelope(canonical.encode(model.model_dump(mode="json", by_alias=True)), payload_type, {})
    envelope.sign(signer)
    return canonical.encode(envelope.to_dict())


_ENVELOPE = {"payload", "payloadType", "signatures"}


def load_keys(keys: Mapping[str, Mapping[str, Any]]) -> list[Key]:
    """Public keys from securesystemslib's dictionaries, `{keyid: {...}}`. Raises Invalid."""
    try:
        return [SSlibKey.from_dict(keyid, json.loads(json.dumps(key))) for keyid, key in keys.items()]
    except (KeyError, TypeError, ValueError, AttributeError) as bad:
        raise Invalid(f"public key: {bad}", field="keys") from None


def different(keys: Iterable[Key]) -> int:
    """How many keys these are, whatever their ids and their spelling: one key under two ids is one person."""
    return len({_canonical_id(key) for key in keys})


def _canonical_id(key: Key) -> str:
    public = str(key.keyval.get("public"))
    try:
        if key.keytype == "ed25519":
            return bytes.fromhex(public).hex()
        return SSlibKey.from_crypto(load_pem_public_key(public.encode())).keyid
    except (ValueError, UnsupportedAlgorithm):
        return public  # of a kind that verifies nothing here


def open_envelope(data: bytes, payload_type: str, schema: str, kind: type[M], keys: list[Key], what: str) -> M:
    """Steps 1 to 6. Raises Invalid, Untrusted, Incompatible."""
    document = canonical.decode(data, limit=DOCUMENT_MAX_BYTES, what=what)  # 1
    for field in sorted(document.keys() - _ENVELOPE):  # nobody has signed it
        named = ascii(field[:64])[1:-1]  # as others can write it
        raise Invalid(f"{what}: {named} is no part of an envelope", field=named)
    try:
        envelope = Envelope.from_dict(document)
    except (KeyError, TypeError, ValueError, AttributeError) as bad:
        raise Invalid(f"{what}: not a DSSE envelope: {bad}", field=what) from None
    if envelope.payload_type != payload_type:  # 2
        raise Untrusted(
            f"{what}: payload type {envelope.payload_type!r}, {payload_type!r} is expected", code="wrong_type"
        )
    if not keys:
        raise Untrusted(f"{what}: no key is known that could have signed it", code="unknown_key")
    try:
        envelope.verify(keys, 1)  # 3
    except VerificationError as bad:
        raise Untrusted(f"{what}: {bad}", code="bad_signature") from None
    payload = canonical.decode(envelope.payload, limit=DOCUMENT_MAX_BYTES, what=what)  # 4
    if canonical.encode(payload) != envelope.payload:
        raise Invalid(f"{what}: not canonical JSON", code="not_canonical", field=what)
    check_speakable(payload, schema, what)  # 5
    return validate(kind, payload, what)  # 6


def open_desired(
    data: bytes, keys: list[Key], *, device: str, last: tuple[int, int], epoch: int, now: str
) -> Desired | None:
    """Steps 1 to 9. None: the newest accepted document once more, which is a no-op. `last` is its (epoch, counter),
    `epoch` the director's of the trusted metadata, `now` the time floor (RFC 3339 UTC).

    Raises Invalid, Untrusted (`older`: a replay, or an order that was turned round), Incompatible, Forbidden
    (`other_device`).
    """
    desired = open_envelope(data, DESIRED_TYPE, DESIRED_SCHEMA, Desired, keys, "desired")
    if desired.device != device:  # 7
        raise Forbidden(f"desired: is for {desired.device}, this is {device}", code="other_device")
    if desired.epoch != epoch:
        raise Untrusted(f"desired: director epoch {desired.epoch}, {epoch} is trusted", code="wrong_epoch")
    if (desired.epoch, desired.counter) == last:  # 9, before 8: an old document that expired is still only old
        return None
    if (desired.epoch, desired.counter) < last:
        raise Untrusted(f"desired: {desired.counter} of epoch {desired.epoch}, {last[1]} was accepted", code="older")
    before = last[1] if desired.epoch == last[0] else 0  # an epoch begins again
    if desired.counter - before > COUNTER_JUMP_MAX:
        raise Untrusted(f"desired: the counter jumps from {before} to {desired.counter}", code="counter_jump")
    if desired.expires_at <= now:  # 8
        raise Untrusted(f"desired: expired at {desired.expires_at}, it is {now}", code="expired")
    return desired


def open_ack(data: bytes, keys: list[Key], *, device: str) -> Ack:
    """Steps 1 to 7. A replay needs no step: it names what was forgotten before.

    Raises Invalid, Untrusted, Incompatible, Forbidden (`other_device`).
    """
    ack = open_envelope(data, ACK_TYPE, ACK_SCHEMA, Ack, keys, "ack")
    if ack.device != device:  # 7
        raise Forbidden(f"ack: is for {ack.device}, this is {device}", code="other_device")
    return ack


def open_permit(
    data: bytes,
    keys: list[Key],
    *,
    device: str,
    model: str,
    version: str,
    manifest_sha256: str,
    now: str,
    facts: Mapping[str, str] | None = None,
) -> Permit:
    """Steps 1 to 8 for a permit of exactly this release. `facts`: what the device knows of itself, for a permit that
    names classes. Raises as `open_desired`; Forbidden (`permit_for_other_release`, `other_device`, `other_class`)."""
    permit = open_envelope(data, PERMIT_TYPE, PERMIT_SCHEMA, Permit, keys, "permit")
    if (permit.model, permit.version, permit.manifest_sha256) != (model, version, manifest_sha256):
        raise Forbidden(
            f"permit: is for {permit.model} {permit.version}, the bundle is {model} {version}",
            code="permit_for_other_release",
        )
    _check_meant(permit, device, facts or {})  # 7
    if permit.expires_at <= now:  # 8
        raise Untrusted(f"permit: expired on {permit.expires_at}, it is {now}", code="expired")
    return permit


def _check_meant(permit: Permit, device: str, facts: Mapping[str, str]) -> None:
    if permit.devices is None and permit.classes is None:
        return  # any device of the fleet
    if device in (permit.devices or ()) or classes.belongs(facts, permit.classes or ()):
        return
    named = [*(permit.devices or ())[:4], *(classes.show(one) for one in (permit.classes or ())[:4])]
    own = f"{device} ({classes.show(facts)})" if permit.classes else device
    code = "other_class" if permit.classes else "other_device"
    raise Forbidden(f"permit: not for this device, {own}: it is for {'; '.join(named)}", code=code)


def open_verdict(data: bytes, keys: list[Key], *, device: str) -> Verdict:
    """Steps 1 to 7 for a verdict that a device has signed. Raises Invalid, Untrusted, Forbidden."""
    verdict = open_envelope(data, VERDICT_TYPE, VERDICT_SCHEMA, Verdict, keys, "verdict")
    if verdict.device != device:
        raise Forbidden(f"verdict: is of {verdict.device}, {device} sent it", code="other_device")
    return verdict
