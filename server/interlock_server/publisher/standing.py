"""What a server's trust stands at: fetched, and verified from this side's own root before anything is built on it.

Expiry is not asked: what has expired is what must be renewed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import KeyFolder
from interlock_server.publisher.metadata import ROOTS_MAX, parsed
from interlock_server.publisher.proposal import State, check_state
from interlock_shared import canonical, topics
from interlock_shared.errors import Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES


async def fetch(api: Api, folder: KeyFolder) -> State:
    """All roots from the first on, targets, all release roles, the director. Raises NotFound (`no_trust`, `no_root`),
    Untrusted (`foreign_root`, `bad_signature`, `incomplete_metadata`), and what the link raises.
    """
    trusted = await asyncio.to_thread(folder.root)
    state = await _unverified(api)
    await asyncio.to_thread(check_state, state, trusted)
    return state


async def roots(api: Api) -> list[bytes]:
    """The server's roots, oldest first; nothing is verified."""
    found: list[bytes] = []
    while len(found) < ROOTS_MAX:
        data = await api.metadata(f"{len(found) + 1}.root.json")
        if data is None:
            break
        found.append(data)
    return found


async def _unverified(api: Api) -> State:
    timestamp = parsed(await api.metadata("timestamp.json"), "timestamp.json", Timestamp)
    name = f"{timestamp.snapshot_meta.version}.snapshot.json"
    snapshot = parsed(await api.metadata(name), name, Snapshot)
    known = []
    for number, data in enumerate(await roots(api), start=1):
        parsed(data, f"{number}.root.json", Root)
        known.append(Metadata[Root].from_bytes(data))
    roles: dict[str, Metadata[Any]] = {}
    for file, meta in sorted(snapshot.meta.items()):
        name = f"{meta.version}.{file}"
        content = await api.metadata(name)
        parsed(content, name, Targets)
        roles[file.removesuffix(".json")] = Metadata[Any].from_bytes(content or b"")
    targets = roles.pop("targets", None)
    if targets is None or not known:
        raise Untrusted("metadata: there is no root, or no targets", code="incomplete_metadata")
    said = await api.metadata("target/" + topics.DIRECTOR_TARGET) or b"{}"
    director = canonical.decode(said, limit=DOCUMENT_MAX_BYTES, what="director")
    named = targets.signed.targets.get(topics.DIRECTOR_TARGET)
    if named is None or named.hashes.get("sha256") != canonical.sha256(said):
        raise Untrusted("director.json is not the one that targets has signed", code="target_mismatch")
    return State(tuple(known), targets, roles, director)
