"""Publish: segments first, then the signed word that they are a release.

The server's metadata is verified against this side's own root before anything is signed on top of it: a server that
lies gets no signature. Uploads resume by asking what is missing. When somebody else published in between, the metadata
is fetched and signed anew, once.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Timestamp

from interlock_server.publisher import keys, metadata, payload
from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import KeyFolder
from interlock_shared import topics
from interlock_shared.errors import Conflict, NotFound
from interlock_shared.manifest import Manifest
from interlock_shared.segments import Transport

PARALLEL = 4  # uploads at a time: enough to fill a link, few enough for the memory (one segment each)


@dataclass(frozen=True)
class Parcel:
    """A manifest and where its segments come from: `segments(wanted)` gives those of the digests, each once."""

    data: bytes
    manifest: Manifest
    segments: Callable[[set[str]], Iterator[Transport]]


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
        upload = await asyncio.to_thread(keys.first_trust, folder, online, models, now)
    answer = await api.post(topics.TRUST, upload, safe=True)
    await asyncio.to_thread(folder.taken)
    return answer


async def add_model(api: Api, folder: KeyFolder, model: str, now: datetime) -> dict[str, Any]:
    """Let a new key release one more model. Raises Conflict (`model_exists`), Untrusted."""
    keys.check_model(model)
    known = await _any_chain(api, folder)
    director = await api.metadata("target/" + topics.DIRECTOR_TARGET)
    upload = await asyncio.to_thread(keys.with_model, folder, known, director or b"{}", model, now)
    return await api.post(topics.TRUST, upload, safe=True)


async def _any_chain(api: Api, folder: KeyFolder) -> dict[str, bytes]:
    """The server's root and targets, verified over the chain of a model that is there already."""
    names = await _delegated(api)
    if not names:
        raise NotFound("the server has no model yet that its metadata could be verified by", code="no_model")
    files = await metadata.collect(api.metadata, names[0])
    root = await asyncio.to_thread(folder.root)
    await asyncio.to_thread(metadata.verify, root, files, names[0], [])
    return files


async def _delegated(api: Api) -> list[str]:
    """Models that the server's snapshot names; a hint only, what counts is verified later."""
    timestamp = metadata.parsed(await api.metadata("timestamp.json"), "timestamp.json", Timestamp)
    name = f"{timestamp.snapshot_meta.version}.snapshot.json"
    snapshot = metadata.parsed(await api.metadata(name), name, Snapshot)
    roles = [one.removesuffix(".json") for one in sorted(snapshot.meta)]
    return [role.removeprefix("release-") for role in roles if role.startswith("release-")]


async def upload(api: Api, parcel: Parcel, progress: payload.Progress = payload.silent) -> int:
    """Send what the server has not; the number of segments sent. Stopped and asked again it goes on where it was."""
    known = parcel.manifest.segments()
    missing = set((await api.post(topics.BLOBS_MISSING, {"sha256": list(known)}, safe=True))["missing"]) & set(known)
    progress(sum(one.size for one in known.values() if one.sha256 not in missing))
    if not missing:
        return 0
    source = parcel.segments(missing)
    lock = asyncio.Lock()

    async def work() -> None:
        while True:
            async with lock:  # one reader: segments come from one place, in order
                one = await asyncio.to_thread(next, source, None)
            if one is None:
                return
            await api.put_segment(one)
            progress(one.size)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(PARALLEL):
                group.create_task(work())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None  # the first is the reason, the others were only stopped by it
    return len(missing)


async def publish(
    api: Api, folder: KeyFolder, parcel: Parcel, now: datetime, progress: payload.Progress = payload.silent
) -> dict[str, Any]:
    """Upload, sign, announce; the release document. Raises Untrusted, Conflict (`release_exists`, …), NotFound."""
    # Before gigabytes travel: is there a key at all?
    signer = await asyncio.to_thread(folder.signer, topics.release_role(parcel.manifest.model))
    role = await _current(api, folder, parcel)
    await upload(api, parcel, progress)
    try:
        return await _post(api, signer, parcel, role, now)
    except Conflict as bad:
        if bad.code != "stale_metadata":
            raise
    return await _post(api, signer, parcel, await _current(api, folder, parcel), now)


async def _current(api: Api, folder: KeyFolder, parcel: Parcel) -> Metadata[Any]:
    """The release role's verified metadata. Raises Conflict (`release_exists`)."""
    model, version = parcel.manifest.model, parcel.manifest.version
    files = await metadata.collect(api.metadata, model)
    name = topics.target_name(model, version)
    root = await asyncio.to_thread(folder.root)
    chain = await asyncio.to_thread(metadata.verify, root, files, model, [name])
    if name in chain.role.signed.targets:
        same = chain.matches(name, parcel.data)
        raise Conflict(
            f"{parcel.manifest.release} is published already"
            + (", with these very bytes" if same else "; a release never changes: give it a new version"),
            code="release_exists",
            same=same,
        )
    return chain.role


async def _post(api: Api, signer: Signer, parcel: Parcel, role: Metadata[Any], now: datetime) -> dict[str, Any]:
    name = topics.target_name(parcel.manifest.model, parcel.manifest.version)
    role.signed.targets[name] = TargetFile.from_data(name, parcel.data, ["sha256"])
    role.signed.version += 1
    role.signed.expires = keys.expires(now)
    role.sign(signer)
    document = {"manifest": base64.b64encode(parcel.data).decode(), "metadata": role.to_dict()}
    return await api.post(topics.RELEASES, document)
