"""What can be installed: trust metadata, segments, releases, permits.

A release is stored before the repository names it, together with the metadata that will: a start after a power cut
finishes what was begun (`recover`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from interlock_server.auditing import record
from interlock_server.core import releases
from interlock_server.core.access import Actor
from interlock_server.core.moments import stamp
from interlock_server.ports import Blobs, Clock, Receiver, Repository, Row, Rows, Sealer, Store
from interlock_shared import canonical, manifest, trust
from interlock_shared.documents import Permit
from interlock_shared.errors import Invalid, NotFound

PUBLIC = ("model", "version", "manifest_sha256", "payload_sha256", "size", "created_at", "published_by", "state")
PENDING, PUBLISHED = "pending", "published"
IN_ONE_QUERY = 500  # SQLite's classic limit of variables in a statement is 999


class Catalogue:
    """Uploads are checked one at a time, so that two publishers cannot both be the next version."""

    def __init__(
        self,
        store: Store,
        repository: Repository,
        blobs: Blobs,
        sealer: Sealer,
        clock: Clock,
        moved: Callable[[], None],
    ) -> None:
        self._store, self._repository, self._blobs, self._sealer = store, repository, blobs, sealer
        self._clock, self._moved = clock, moved
        self._publishing = asyncio.Lock()

    # --- trust -----------------------------------------------------------------------------------------------------

    def keys(self) -> dict[str, Any]:
        """Public parts of the online keys."""
        return self._sealer.public()

    async def trust(self) -> dict[str, Any] | None:
        """Versions of the metadata; None before the first upload."""
        return await asyncio.to_thread(self._repository.status)

    def metadata(self, name: str) -> Path:
        """The file of one metadata document. Raises NotFound."""
        return self._repository.path(name)

    async def accept_trust(self, actor: Actor, document: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take root and targets metadata; the new `trust`. Raises Invalid, Untrusted, Conflict."""
        now = self._clock()
        async with self._publishing:
            await asyncio.to_thread(self._repository.accept_trust, document, now)
            status = await self.trust()
            async with self._store.writing() as rows:
                await record(rows, stamp(now), actor, "trust.update", "targets", **(status or {}))
        self._moved()
        return status

    async def refresh(self) -> None:
        """Sign snapshot and timestamp again when they are due."""
        async with self._publishing:
            if await asyncio.to_thread(self._repository.refresh, self._clock()):
                self._moved()

    # --- segments --------------------------------------------------------------------------------------------------

    async def missing(self, digests: list[str]) -> list[str]:
        """Which of the segments are not here, in the order asked."""
        async with self._store.reading() as rows:
            present = await self._present(rows, digests)
        return [one for one in dict.fromkeys(digests) if one not in present]

    @staticmethod
    async def _present(rows: Rows, digests: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for start in range(0, len(digests), IN_ONE_QUERY):
            part = await rows.list("blobs", sha256=("in", digests[start : start + IN_ONE_QUERY]))
            found.update({row["sha256"]: row["size"] for row in part})
        return found

    async def blob(self, sha256: str) -> tuple[Row, Path]:
        """(form, size, …) and the file of a segment. Raises NotFound."""
        async with self._store.reading() as rows:
            found = await rows.find("blobs", sha256=sha256)
        if found is None:
            raise NotFound(f"there is no segment {sha256[:12]}…")
        return found, self._blobs.path(sha256)

    async def receive(self, sha256: str, form: str, size: int) -> Receiver | None:
        """Where an upload goes; None when the segment is here already. Raises Invalid, NoSpace."""
        async with self._store.reading() as rows:
            if await rows.find("blobs", sha256=sha256):
                return None
        return await asyncio.to_thread(self._blobs.receive, sha256, form, size)

    async def received(self, actor: Actor, sha256: str, form: str, size: int, stored: int) -> None:
        """A segment's file is durable: from now on it is there."""
        at = stamp(self._clock())
        async with self._store.writing() as rows:
            new = await rows.insert_new("blobs", sha256=sha256, form=form, size=size, stored=stored, created_at=at)
            if new:
                await record(rows, at, actor, "blob.upload", sha256, size=size, stored=stored)

    # --- releases --------------------------------------------------------------------------------------------------

    async def publish(self, actor: Actor, encoded: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Publish one release; its document. `encoded`: base64 of the manifest's canonical bytes.

        Raises Invalid, Incompatible, Untrusted, NotFound (`unknown_model`), Conflict (`stale_metadata`,
        `target_changed`, `release_exists`, `segments_missing`).
        """
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise Invalid("manifest: not base64", field="manifest") from None
        parsed = manifest.parse(data)
        now = self._clock()
        async with self._publishing:
            await self.recover()
            await self._refuse_known(parsed)
            facts, stored = await asyncio.to_thread(self._repository.check_release, parsed.model, metadata, now)
            releases.check_addition(facts["old"], facts["new"], parsed, data)
            row = self._row(actor, parsed, data, stored, stamp(now))
            async with self._store.writing() as rows:
                releases.check_segments(parsed, await self._present(rows, list(parsed.segments())))
                await rows.insert("releases", **row)
                await record(
                    rows, stamp(now), actor, "release.publish", parsed.release, manifest=row["manifest_sha256"]
                )
            await self._finish(row)
        self._moved()
        return await self.release(parsed.model, parsed.version)

    async def _refuse_known(self, parsed: manifest.Manifest) -> None:
        async with self._store.reading() as rows:
            if await rows.find("releases", model=parsed.model, version=parsed.version, state=PUBLISHED):
                releases.refuse_existing(parsed)

    @staticmethod
    def _row(actor: Actor, parsed: manifest.Manifest, data: bytes, metadata: bytes, at: str) -> Row:
        return {
            "model": parsed.model,
            "version": parsed.version,
            "manifest_sha256": canonical.sha256(data),
            "payload_sha256": parsed.payload_sha256(),
            "size": parsed.payload_size,
            "manifest": data,
            "metadata": metadata,
            "state": PENDING,
            "created_at": at,
            "published_by": actor.name,
        }

    async def _finish(self, row: Row) -> None:
        await asyncio.to_thread(self._repository.add_release, row["model"], row["metadata"], self._clock())
        where = {"model": row["model"], "version": row["version"]}
        async with self._store.writing() as rows:
            await rows.change("releases", where, state=PUBLISHED, metadata=None)

    async def recover(self) -> None:
        """Finish publishes that a power cut or a full disk interrupted."""
        async with self._store.reading() as rows:
            pending = await rows.list("releases", order="created_at", state=PENDING)
        for row in pending:
            await self._finish(row)

    async def releases(self, model: str | None) -> list[dict[str, Any]]:
        """Published releases, oldest first."""
        where: dict[str, Any] = {"model": model} if model else {}
        async with self._store.reading() as rows:
            found = await rows.list("releases", order="created_at", state=PUBLISHED, **where)
        return [{name: row[name] for name in PUBLIC} for row in found]

    async def _known(self, model: str, version: str) -> Row:
        async with self._store.reading() as rows:
            found = await rows.find("releases", model=model, version=version, state=PUBLISHED)
        if found is None:
            raise NotFound(f"there is no release {model} {version}", code="no_release")
        return found

    async def release(self, model: str, version: str) -> dict[str, Any]:
        """One release's document. Raises NotFound (`no_release`)."""
        row = await self._known(model, version)
        return {name: row[name] for name in PUBLIC}

    async def manifest(self, model: str, version: str) -> bytes:
        """A release's manifest: its canonical bytes. Raises NotFound (`no_release`)."""
        return bytes((await self._known(model, version))["manifest"])

    async def permit(self, actor: Actor, model: str, version: str, devices: list[str] | None, days: int) -> bytes:
        """A signed permit to install the release from a file. Raises NotFound (`no_release`)."""
        row, now = await self._known(model, version), self._clock()
        permit = Permit(
            model=model,
            version=version,
            manifest_sha256=row["manifest_sha256"],
            devices=None if devices is None else tuple(devices),
            issued_at=stamp(now),
            expires_at=stamp(now + timedelta(days=days)),
        )
        async with self._store.writing() as rows:
            detail = {"devices": devices, "days": days}
            await record(rows, stamp(now), actor, "permit.issue", f"{model} {version}", **detail)
        return self._sealer.seal(permit, trust.PERMIT_TYPE)
