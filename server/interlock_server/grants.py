"""What a device may fetch: manifests and segments of releases that were ever assigned to it. It may fall back to an
older one, and has to be able to fetch that again; what the rest of the fleet runs is none of its business."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from interlock_server.ports import Rows, Store
from interlock_shared import manifest
from interlock_shared.errors import NotFound

KEPT = 64  # manifests whose segments are remembered: a rollout's devices ask for the same ones


class Grants:
    """Both questions raise NotFound: a device does not learn what there is beside its own."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._segments: OrderedDict[str, frozenset[str]] = OrderedDict()

    async def segment(self, device: str, sha256: str) -> None:
        """Whether the device may have this segment."""
        async with self._store.reading() as rows:
            for unit, version in await self._offered(rows, device):
                if sha256 in await self._of(rows, unit, version):
                    return
        raise NotFound(f"there is no segment {sha256[:12]}… for {device}", code="not_offered")

    async def release(self, device: str, model: str, version: str) -> None:
        """Whether the device may have this manifest."""
        async with self._store.reading() as rows:
            if (model, version) in await self._offered(rows, device):
                return
        raise NotFound(f"{model} {version} is not for {device}", code="not_offered")

    @staticmethod
    async def _offered(rows: Rows, device: str) -> list[tuple[str, str]]:
        found = await rows.list("assignments", order="number", newest=True, device=device)
        return list(dict.fromkeys((one["unit"], one["version"]) for one in found))

    async def _of(self, rows: Rows, model: str, version: str) -> frozenset[str]:
        row = await rows.find("releases", model=model, version=version)
        if row is None:
            return frozenset()
        digest = row["manifest_sha256"]
        if digest not in self._segments:
            parsed = await asyncio.to_thread(manifest.parse, bytes(row["manifest"]))
            self._segments[digest] = frozenset(parsed.segments())
        self._segments.move_to_end(digest)
        found = self._segments[digest]
        while len(self._segments) > KEPT:
            self._segments.popitem(last=False)
        return found
