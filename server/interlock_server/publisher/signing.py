"""One signature of several: what is pending is verified, shown, and signed as it is; a release is revoked.

Nothing is believed that the server says: the role's present metadata is verified from this side's root on, and what
awaits signatures must be exactly what follows from it by the one change that is asked for.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, TargetFile, Targets

from interlock_server.publisher import keys, metadata
from interlock_server.publisher.client import Api, path
from interlock_server.publisher.keys import KeyFolder
from interlock_server.publisher.metadata import Chain
from interlock_shared import canonical, revocation, topics
from interlock_shared import manifest as manifests
from interlock_shared.base import version_key
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound, Untrusted
from interlock_shared.limits import MANIFEST_MAX_BYTES
from interlock_shared.manifest import Manifest
from interlock_shared.revocation import Revoked

Json = dict[str, Any]
PUBLISH, REVOKE = "publish", "revoke"
CLOCKS_APART = timedelta(days=1)  # of two signers: a machine's clock may be behind, or in another zone


@dataclass(frozen=True)
class Pending:
    """What a signature would be given to; verified. `manifest`: of the release, `previous`: of the one before."""

    action: str
    model: str
    version: str
    metadata: Metadata[Any]
    data: bytes
    manifest: Manifest
    previous: Manifest | None
    said: Json  # who has signed, and when, as the server tells it
    signed_by: tuple[str, ...]  # key ids whose signatures hold
    may_sign: tuple[str, ...]
    threshold: int

    @property
    def reason(self) -> str:
        """Of a revocation."""
        records = revocation.records(self.metadata.signed.unrecognized_fields)
        return records[self.version].reason if self.action == REVOKE else ""


async def chain_of(api: Api, folder: KeyFolder, model: str, *names: str) -> Chain:
    """The model's metadata, verified from this side's root on. Raises Untrusted."""
    files = await metadata.collect(api.metadata, model)
    root = await asyncio.to_thread(folder.root)
    return await asyncio.to_thread(metadata.verify, root, files, model, list(names))


def added(role: Metadata[Any], model: str, version: str, data: bytes, expires: datetime) -> Metadata[Any]:
    """The role's next metadata, unsigned: one release more."""
    following = _copy(role, expires)
    name = topics.target_name(model, version)
    following.signed.targets[name] = TargetFile.from_data(name, data, ["sha256"])
    return following


def taken(role: Metadata[Any], model: str, version: str, record: Revoked, expires: datetime) -> Metadata[Any]:
    """The role's next metadata, unsigned: one release is gone, and its record says why."""
    following = _copy(role, expires)
    following.signed.targets.pop(topics.target_name(model, version), None)
    more = following.signed.unrecognized_fields
    more[revocation.FIELD] = revocation.with_record(more.get(revocation.FIELD), version, record)
    return following


def _copy(role: Metadata[Any], expires: datetime) -> Metadata[Any]:
    signed = Targets.from_dict(role.signed.to_dict())
    signed.version += 1
    signed.expires = expires
    return Metadata(signed)


async def asked(api: Api, model: str, version: str) -> Json | None:
    """What awaits signatures under that name, as the server tells it; None when nothing does."""
    try:
        return await api.get(path(topics.PROPOSAL, model=model, version=version))
    except NotFound:
        return None


async def pending(api: Api, folder: KeyFolder, model: str, version: str, now: datetime) -> Pending:
    """What awaits signatures, verified. Raises NotFound (`not_pending`), Untrusted (`bad_proposal`, …)."""
    said = await api.get(path(topics.PROPOSAL, model=model, version=version))
    action, name = said.get("action"), topics.target_name(model, version)
    chain = await chain_of(api, folder, model, name)
    try:
        proposed = Metadata[Any].from_dict(dict(said["metadata"]))
        data = base64.b64decode(str(said["manifest"])) if action == PUBLISH else b""
    except Exception as bad:  # noqa: BLE001 - python-tuf lets parsers' own errors through
        raise Untrusted(f"server: what it gives to sign is no metadata: {bad}", code="bad_proposal") from None
    _check_expiry(proposed.signed, now)
    if action == PUBLISH:
        expected = added(chain.role, model, version, data, proposed.signed.expires)
        if name in chain.targets:
            raise Untrusted(f"{model} {version} is published already", code="bad_proposal")
    else:
        data = await _manifest(api, chain, model, version)
        record = revocation.records(proposed.signed.unrecognized_fields).get(version)
        if record is None or record.manifest_sha256 != canonical.sha256(data):
            raise Untrusted("server: what it gives to sign does not say what is revoked, or why", code="bad_proposal")
        expected = taken(chain.role, model, version, record, proposed.signed.expires)
    if proposed.signed.to_dict() != expected.signed.to_dict():
        raise Untrusted(
            f"server: what it gives to sign changes more than {model} {version}; nothing was signed",
            code="bad_proposal",
        )
    manifest = manifests.parse(data)
    if (manifest.model, manifest.version) != (model, version):
        raise Untrusted(f"server: the manifest is that of {manifest.release}", code="bad_proposal")
    result = _delegator(chain).get_verification_result(
        topics.release_role(model), proposed.signed_bytes, proposed.signatures
    )
    return Pending(
        action=str(action),
        model=model,
        version=version,
        metadata=proposed,
        data=data,
        manifest=manifest,
        previous=await _previous(api, chain, model, version),
        said=said,
        signed_by=tuple(sorted(result.signed)),
        may_sign=tuple(sorted({**result.signed, **result.unsigned})),
        threshold=result.threshold,
    )


def _check_expiry(signed: Any, now: datetime) -> None:
    if not isinstance(signed, Targets):
        raise Untrusted("server: what it gives to sign is not a release role's", code="bad_proposal")
    if now < signed.expires <= keys.expires(now) + CLOCKS_APART:
        return
    end, here = signed.expires.strftime("%Y-%m-%d"), now.strftime("%Y-%m-%d %H:%M")
    raise Untrusted(
        f"server: what it gives to sign expires on {end}, not within {keys.EXPIRY.days} days of this machine's clock, "
        f"{here} UTC; is the clock right, here and where the first signed?",
        code="bad_proposal",
    )


def _delegator(chain: Chain) -> Targets:
    name = next(name for name in chain.files if name.endswith(".targets.json"))
    targets: Targets = Metadata[Any].from_bytes(chain.files[name]).signed
    return targets


async def _previous(api: Api, chain: Chain, model: str, version: str) -> Manifest | None:
    """The manifest of the newest release below this version; None for a first one."""
    versions = [name.split("/")[1] for name in chain.role.signed.targets]
    below = [one for one in versions if version_key(one) < version_key(version)]
    if not below:
        return None
    return manifests.parse(await _manifest(api, chain, model, max(below, key=version_key)))


async def _manifest(api: Api, chain: Chain, model: str, version: str) -> bytes:
    target = chain.role.signed.targets.get(topics.target_name(model, version))
    if target is None:
        raise NotFound(f"there is no release {model} {version}", code="no_release")
    data = await api.get_bytes(path(topics.MANIFEST, model=model, version=version), MANIFEST_MAX_BYTES)
    if canonical.sha256(data) != target.hashes.get("sha256"):
        raise Untrusted(f"{model} {version}: the server's manifest is not the signed one", code="target_mismatch")
    return data


async def own_signer(folder: KeyFolder, what: Pending) -> Signer:
    """The key of this folder. Raises NotFound (`no_key`), Forbidden (`foreign_key`), Conflict (`signed_already`)."""
    signer = await asyncio.to_thread(folder.signer, topics.release_role(what.model), what.may_sign)
    keyid = signer.public_key.keyid
    if keyid not in what.may_sign:
        raise Forbidden(f"the key {keyid[:12]}… may not sign for {what.model}", code="foreign_key")
    if keyid in what.signed_by:
        raise Conflict(
            f"{what.model} {what.version} is signed with this key already; another one has to sign",
            code="signed_already",
        )
    return signer


async def sign(api: Api, what: Pending, signer: Signer) -> Json:
    """Add the signature; the release's document. Raises as the server refuses."""
    what.metadata.sign(signer, append=True)
    route = path(topics.SIGNATURES, model=what.model, version=what.version)
    return await api.post(route, {"metadata": what.metadata.to_dict()}, safe=True)


async def revoke(
    api: Api, folder: KeyFolder, model: str, version: str, reason: str, now: datetime, sure: Callable[[Manifest], None]
) -> Json:
    """Take a release back, or propose that; its document. `sure` is asked with its manifest, before anything is signed.

    Raises NotFound (`no_release`, `no_key`), Untrusted, Conflict (`release_pending`), Invalid.
    """
    if not 0 < len(reason) <= revocation.REASON_MAX:
        raise Invalid(f"--reason: 1 to {revocation.REASON_MAX} characters", field="--reason")
    chain = await chain_of(api, folder, model)
    role = topics.release_role(model)
    signer = await asyncio.to_thread(folder.signer, role, chain.may_sign(role))
    data = await _manifest(api, chain, model, version)
    await asyncio.to_thread(sure, manifests.parse(data))
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    record = Revoked(manifest_sha256=canonical.sha256(data), at=at, reason=reason)
    following = taken(chain.role, model, version, record, keys.expires(now))
    following.sign(signer)
    return await api.post(path(topics.REVOKE, model=model, version=version), {"metadata": following.to_dict()})
