"""A published release as one file for a device that has never seen a network; and the check of such a file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from interlock_server.publisher import archives, metadata, payload
from interlock_server.publisher.client import Api, path
from interlock_shared import canonical, manifest, topics, trust
from interlock_shared.archive import Head, Reader
from interlock_shared.documents import PERMIT_SCHEMA, Permit
from interlock_shared.errors import Incompatible, Untrusted
from interlock_shared.limits import MANIFEST_MAX_BYTES
from interlock_shared.manifest import Manifest
from interlock_shared.segments import Transport


async def head(
    api: Api, model: str, version: str, meant: dict[str, Any], now: datetime, root: bytes | None = None
) -> Head:
    """Everything of the file but segments, verified against `root` where this side has one. `meant`: devices, classes
    and time of the permit, as the server takes them. Raises InterlockError."""
    release = {"model": model, "version": version}
    data = await api.get_bytes(path(topics.MANIFEST, **release), MANIFEST_MAX_BYTES)
    parsed = manifest.parse(data)
    files = await metadata.collect(api.metadata, model)
    director = await api.metadata("target/" + topics.DIRECTOR_TARGET)
    answer = await api.post(path(topics.PERMIT, **release), meant)
    permit = canonical.encode(answer.get("permit"))
    made = Head(data, parsed, files, director, permit)
    await asyncio.to_thread(check_trust, made, root or files.get("1.root.json", b""), now)
    return made


async def export(api: Api, made: Head, out: BinaryIO, progress: payload.Progress = payload.silent) -> int:
    """Write the file, one segment in memory at a time; the number of bytes. Raises InterlockError, OSError."""
    loop = asyncio.get_running_loop()

    def arriving() -> Iterator[Transport]:
        # The writer runs in a thread and asks for each segment when it wants it: a slow disk slows the download.
        for ref in made.manifest.segments().values():
            one = asyncio.run_coroutine_threadsafe(api.get_segment(ref.sha256, ref.size), loop).result()
            payload.content_of(one)
            progress(ref.size)
            yield one

    return await asyncio.to_thread(archives.write, out, made, arriving())


@dataclass(frozen=True)
class Checked:
    """What a bundle was found to be. `permit` None: it has not been published."""

    manifest: Manifest
    manifest_sha256: str
    segments: int
    bytes: int
    signed: bool
    root_sha256: str | None = None
    permit: Permit | None = None


def check_trust(head: Head, root: bytes, now: datetime) -> Permit:
    """The chain from `root` to the manifest, and the permit, as a device judges them: the permit's time stands in for
    that of timestamp and snapshot. Raises Untrusted, Invalid, Incompatible."""
    name = topics.target_name(head.manifest.model, head.manifest.version)
    chain = metadata.verify(root, head.metadata, head.manifest.model, [name], file_at=now)
    if name not in chain.targets:
        raise Untrusted(f"{head.manifest.release}: its release role has not signed it", code="not_released")
    if not chain.matches(name, head.data):
        raise Untrusted(f"{head.manifest.release}: the manifest is not the one that was signed", code="target_mismatch")
    director = metadata.director(head.director, chain)
    if head.permit is None:
        raise Untrusted("the bundle carries no permit", code="no_permit")
    try:
        keys = trust.load_keys(dict(director.keys) | metadata.sideload_keys(chain.root))
        permit = trust.open_envelope(head.permit, trust.PERMIT_TYPE, PERMIT_SCHEMA, Permit, keys, "permit")
    except Untrusted as bad:
        if bad.code != "bad_signature":
            raise
        message = "permit: neither the director nor a sideload key that the root names has signed it"
        raise Untrusted(message, code="bad_signature") from None
    wanted = (head.manifest.model, head.manifest.version, canonical.sha256(head.data))
    if (permit.model, permit.version, permit.manifest_sha256) != wanted:
        raise Untrusted(f"permit: is for {permit.model} {permit.version}", code="permit_for_other_release")
    if permit.expires_at <= now.strftime("%Y-%m-%dT%H:%M:%SZ"):
        raise Untrusted(f"permit: expired on {permit.expires_at}", code="expired")
    return permit


def check(stream: BinaryIO, root: bytes | None, now: datetime, progress: payload.Progress = payload.silent) -> Checked:
    """Read a bundle once and believe nothing of it. Without `root`, the root that it carries is asked, which proves
    that the file holds together, not whose it is. Raises Invalid, Untrusted, Incompatible.
    """
    reader = Reader(stream)
    head = reader.head()
    permit, used = None, None
    if head.metadata or head.permit is not None or head.director is not None or root is not None:
        if not head.metadata:
            raise Untrusted("the bundle was not published: it carries no metadata", code="not_signed")
        used = root or head.metadata.get("1.root.json")
        if used is None:
            raise Untrusted("metadata: there is no 1.root.json", code="incomplete_metadata")
        permit = check_trust(head, used, now)
    count = 0
    for one in reader.segments(head.manifest):
        payload.content_of(one)
        count += 1
        progress(one.size)
    return Checked(
        manifest=head.manifest,
        manifest_sha256=canonical.sha256(head.data),
        segments=count,
        bytes=head.manifest.payload_size,
        signed=permit is not None,
        root_sha256=canonical.sha256(used) if used else None,
        permit=permit,
    )


def summary(parsed: Manifest, data: bytes) -> dict[str, Any]:
    """What `show` prints of a manifest."""
    return {
        "manifest_sha256": canonical.sha256(data),
        "payload_sha256": parsed.payload_sha256(),
        "size": parsed.payload_size,
        "segments": len(parsed.segments()),
        "manifest": parsed.model_dump(mode="json", by_alias=True),
    }


def refuse_terminal(out: BinaryIO) -> None:
    """Raises Incompatible when a bundle would go to a terminal."""
    if out.isatty():
        raise Incompatible("a bundle is not for a terminal; redirect, or -o FILE", code="is_a_terminal")
