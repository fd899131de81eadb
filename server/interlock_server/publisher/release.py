"""Publish: segments first, then the signed word that they are a release.

The server's metadata is verified against this side's own root before anything is signed on top of it: a server that
lies gets no signature. Uploads resume by asking what is missing. When somebody else published in between, the metadata
is fetched and signed anew, once.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata

from interlock_server.publisher import ceremony, keys, payload, signing
from interlock_server.publisher.client import Api, path
from interlock_server.publisher.keys import KeyFolder
from interlock_shared import revocation, topics
from interlock_shared.errors import Conflict
from interlock_shared.manifest import Manifest
from interlock_shared.segments import Transport

PARALLEL = 4  # uploads at a time: enough to fill a link, few enough for the memory (one segment each)


@dataclass(frozen=True)
class Parcel:
    """A manifest and where its segments come from: `segments(wanted)` gives those of the digests, each once."""

    data: bytes
    manifest: Manifest
    segments: Callable[[set[str]], Generator[Transport]]


async def trust(api: Api, folder: KeyFolder, models: list[str], now: datetime) -> dict[str, Any]:
    """Make the first key set, or send again what an interrupted try has made. The server's trust document.

    Raises Conflict (`key_exists`, `trust_exists`), and what the server refuses.
    """
    upload = await asyncio.to_thread(folder.pending)
    if upload is None:
        await asyncio.to_thread(folder.refuse_existing)
        known = (await api.get(topics.STATUS)).get("trust")
        if known is not None:
            raise Conflict(
                "the server has its trust already; add models with `interlock keys add-model`", code="trust_exists"
            )
        online = await api.get(topics.ONLINE_KEYS)
        upload = await asyncio.to_thread(ceremony.first_trust, folder, online, models, now)
    answer = await api.post(topics.TRUST, upload, safe=True)
    await asyncio.to_thread(folder.taken)
    return answer


async def upload(api: Api, parcel: Parcel, progress: payload.Progress = payload.silent) -> int:
    """Send what the server has not; the number of segments sent. Stopped and asked again it goes on where it was."""
    known = parcel.manifest.segments()
    missing = set((await api.post(topics.BLOBS_MISSING, {"sha256": list(known)}, safe=True))["missing"]) & set(known)
    progress(sum(one.size for one in known.values() if one.sha256 not in missing))
    if not missing:
        return 0
    source, loop = parcel.segments(missing), asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "segments") as reader:  # one thread: segments come from one place, in order

        async def work() -> None:
            while (one := await loop.run_in_executor(reader, next, source, None)) is not None:
                await api.put_segment(one)
                progress(one.size)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(PARALLEL):
                    group.create_task(work())
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None  # the first is the reason, the others were only stopped by it
        finally:
            # By the same thread: it may still be reading for a task that was stopped.
            await loop.run_in_executor(reader, source.close)
    return len(missing)


async def publish(
    api: Api, folder: KeyFolder, parcel: Parcel, now: datetime, progress: payload.Progress = payload.silent
) -> dict[str, Any]:
    """Upload, sign, announce; the release document. What awaits signatures with these very bytes gets one more.

    Raises Untrusted, Conflict (`release_exists`, `release_pending`, …), NotFound.
    """
    # Before gigabytes travel: is there a key at all, and can it be opened?
    name = topics.release_role(parcel.manifest.model)
    await asyncio.to_thread(folder.signer, name)
    role, counting = await _current(api, folder, parcel)
    signer = await asyncio.to_thread(folder.signer, name, counting)
    await upload(api, parcel, progress)
    if await signing.asked(api, parcel.manifest.model, parcel.manifest.version) is not None:
        return await _join(api, folder, parcel, now)
    try:
        return await _post(api, signer, parcel, role, now)
    except Conflict as bad:
        if bad.code != "stale_metadata":
            raise
    return await _post(api, signer, parcel, (await _current(api, folder, parcel))[0], now)


async def _join(api: Api, folder: KeyFolder, parcel: Parcel, now: datetime) -> dict[str, Any]:
    model, version = parcel.manifest.model, parcel.manifest.version
    what = await signing.pending(api, folder, model, version, now)
    if what.action != signing.PUBLISH or what.data != parcel.data:
        raise Conflict(
            f"{what.said.get('created_by')} has proposed other content as {parcel.manifest.release} at "
            f"{what.said.get('created_at')}: `interlock release show {model} {version}`",
            code="release_pending",
        )
    signer = await asyncio.to_thread(folder.signer, topics.release_role(model), what.may_sign)
    if signer.public_key.keyid in what.signed_by:
        return await api.get(path(topics.RELEASE, model=model, version=version))
    return await signing.sign(api, what, await signing.own_signer(folder, what))


async def _current(api: Api, folder: KeyFolder, parcel: Parcel) -> tuple[Metadata[Any], frozenset[str]]:
    """The release role's verified metadata, and the keys that count for it.

    Raises Conflict (`release_exists`, `release_revoked`).
    """
    model, version = parcel.manifest.model, parcel.manifest.version
    name = topics.target_name(model, version)
    chain = await signing.chain_of(api, folder, model, name)
    record = revocation.records(chain.role.signed.unrecognized_fields).get(version)
    if record is not None:
        raise Conflict(
            f"{parcel.manifest.release} was revoked ({record.reason}); its version never comes back",
            code="release_revoked",
        )
    if name in chain.role.signed.targets:
        same = chain.matches(name, parcel.data)
        raise Conflict(
            f"{parcel.manifest.release} is published already"
            + (", with these very bytes" if same else "; a release never changes: give it a new version"),
            code="release_exists",
            same=same,
        )
    return chain.role, chain.may_sign(topics.release_role(model))


async def _post(api: Api, signer: Signer, parcel: Parcel, role: Metadata[Any], now: datetime) -> dict[str, Any]:
    following = signing.added(role, parcel.manifest.model, parcel.manifest.version, parcel.data, keys.expires(now))
    following.sign(signer)
    document = {"manifest": base64.b64encode(parcel.data).decode(), "metadata": following.to_dict()}
    return await api.post(topics.RELEASES, document)
