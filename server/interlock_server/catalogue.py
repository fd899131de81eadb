"""What can be installed: trust metadata, segments, releases, permits."""

from __future__ import annotations

import asyncio
import base64
import json
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
from interlock_shared.errors import NotFound

PUBLIC = ("model", "version", "manifest_sha256", "payload_sha256", "size", "created_at", "published_by", "state")
AWAITING = "awaiting"  # the state of a release that has too few signatures
IN_ONE_QUERY = 500  # SQLite's classic limit of variables in a statement is 999


class Catalogue:
    """Trust, segments, and what is known of releases; publishing.py changes them."""

    def __init__(
        self,
        store: Store,
        repository: Repository,
        blobs: Blobs,
        sealer: Sealer,
        clock: Clock,
        moved: Callable[[], None],
        everybody: Callable[[], None],
    ) -> None:
        self._store, self._repository, self._blobs, self._sealer = store, repository, blobs, sealer
        self._clock, self._moved, self._everybody = clock, moved, everybody
        self.changing = asyncio.Lock()  # held while the repository is changed

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

    async def rotate(self, actor: Actor, roles: list[str]) -> dict[str, Any]:
        """Fresh online keys beside those that are used; all public parts."""
        async with self.changing:
            await asyncio.to_thread(self._sealer.begin, roles)
        async with self._store.writing() as rows:
            await record(rows, stamp(self._clock()), actor, "trust.rotate", " ".join(roles))
        return self.keys()

    async def accept_trust(self, actor: Actor, document: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take root and targets metadata; the new `trust`. Raises Invalid, Untrusted, Conflict."""
        now, epoch = self._clock(), self._sealer.epoch
        async with self.changing:
            await asyncio.to_thread(self._repository.accept_trust, document, now)
            status = await self.trust()
            async with self._store.writing() as rows:
                await record(rows, stamp(now), actor, "trust.update", "targets", **(status or {}))
        self._moved()
        if self._sealer.epoch != epoch:
            self._everybody()  # what the former director has signed counts no longer
        return status

    async def refresh(self) -> None:
        """Sign snapshot and timestamp again when they are due."""
        async with self.changing:
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

    async def check_segments(self, rows: Rows, parsed: manifest.Manifest) -> None:
        """Raises Conflict (`segments_missing`)."""
        releases.check_segments(parsed, await self._present(rows, list(parsed.segments())))

    async def proposal(self, model: str) -> Row | None:
        """What awaits signatures of the model's role: not expired, and still its next version."""
        async with self._store.reading() as rows:
            found = await rows.find("proposals", model=model)
        return found if found is not None and await self._stands(found) else None

    async def _stands(self, row: Row) -> bool:
        following = await asyncio.to_thread(self._repository.version_of, row["model"]) + 1
        return bool(row["expires_at"] > stamp(self._clock()) and row["role_version"] == following)

    async def _pending(self, row: Row) -> dict[str, Any]:
        keys, threshold = await asyncio.to_thread(self._repository.signers_of, row["model"])
        return {
            "action": row["action"],
            "signatures": [one for one in row["signatures"] if one["keyid"] in keys],
            "threshold": threshold,
            "reason": row["reason"],
            "created_at": row["created_at"],
            "created_by": row["created_by"],
            "expires_at": row["expires_at"],
        }

    async def releases(self, model: str | None) -> list[dict[str, Any]]:
        """Releases and what awaits signatures, oldest first."""
        where: dict[str, Any] = {"model": model} if model else {}
        async with self._store.reading() as rows:
            found = await rows.list("releases", order="created_at", state=("in", releases.KNOWN), **where)
            waits = await rows.list("proposals", order="created_at", **where)
            reports = [row["reported"] for row in await rows.list("devices")]
        pending = {(row["model"], row["version"]): row for row in waits if await self._stands(row)}
        documents = [await self._document(row, pending.pop((row["model"], row["version"]), None)) for row in found]
        documents += [await self._proposed(row) for row in pending.values() if row["action"] == "publish"]
        counts = releases.counted(reports)
        return [{**one, "devices": counts[one["model"], one["version"]]} for one in documents]

    async def _document(self, row: Row, proposed: Row | None) -> dict[str, Any]:
        ended = None
        if row["ended_at"] is not None:
            ended = {"at": row["ended_at"], "by": row["ended_by"], "reason": row["ended_reason"]}
            ended |= {"signatures": row["revoked_by"]}
        return {
            **{name: row[name] for name in PUBLIC},
            "state": releases.DONE.get(row["state"], row["state"]),
            "signatures": row["signatures"],
            "ended": ended,
            "pending": await self._pending(proposed) if proposed else None,
        }

    async def _proposed(self, row: Row) -> dict[str, Any]:
        parsed = manifest.parse(row["manifest"])
        pending = await self._pending(row)
        return {
            "model": row["model"],
            "version": row["version"],
            "manifest_sha256": canonical.sha256(row["manifest"]),
            "payload_sha256": parsed.payload_sha256(),
            "size": parsed.payload_size,
            "created_at": row["created_at"],
            "published_by": row["created_by"],
            "state": AWAITING,
            "signatures": pending["signatures"],
            "ended": None,
            "pending": pending,
        }

    async def _known(self, model: str, version: str) -> Row:
        async with self._store.reading() as rows:
            found = await rows.find("releases", model=model, version=version, state=("in", releases.KNOWN))
        if found is None:
            raise NotFound(f"there is no release {model} {version}", code="no_release")
        return found

    async def release(self, model: str, version: str) -> dict[str, Any]:
        """One release's document, with the devices that hold it. Raises NotFound (`no_release`)."""
        proposed = await self.proposal(model)
        if proposed is not None and proposed["version"] != version:
            proposed = None
        if proposed is not None and proposed["action"] == "publish":
            document = await self._proposed(proposed)
        else:
            document = await self._document(await self._known(model, version), proposed)
        async with self._store.reading() as rows:
            reports = {row["id"]: row["reported"] for row in await rows.list("devices", order="id")}
        return {**document, "devices": releases.holders(reports, model, version)}

    async def to_sign(self, model: str, version: str) -> dict[str, Any]:
        """What awaits signatures: its metadata, and of a publish the manifest. Raises NotFound (`not_pending`)."""
        found = await self.proposal(model)
        if found is None or found["version"] != version:
            raise NotFound(f"{model} {version} awaits no signature", code="not_pending")
        data = found["manifest"]
        return {
            **{name: found[name] for name in ("model", "version")},
            **await self._pending(found),
            "metadata": json.loads(found["metadata"]),
            "manifest": None if data is None else base64.b64encode(data).decode(),
        }

    async def manifest(self, model: str, version: str) -> bytes:
        """A release's manifest: its canonical bytes. Raises NotFound (`no_release`)."""
        return bytes((await self._known(model, version))["manifest"])

    async def permit(
        self, actor: Actor, model: str, version: str, meant: Mapping[str, Any], valid_for: timedelta
    ) -> bytes:
        """A signed permit to install the release from a file, on the `devices` and the `classes` of `meant`. Raises
        NotFound (`no_release`), Conflict (`release_withdrawn`, `release_revoked`)."""
        row, now = await self._known(model, version), self._clock()
        releases.check_usable(f"{model} {version}", row["state"], row["ended_reason"] or "")
        permit = Permit(
            model=model,
            version=version,
            manifest_sha256=row["manifest_sha256"],
            devices=tuple(meant["devices"]) if meant.get("devices") else None,
            classes=tuple(meant["classes"]) if meant.get("classes") else None,
            issued_at=stamp(now),
            expires_at=stamp(now + valid_for),
        )
        async with self._store.writing() as rows:
            detail = {**meant, "expires_at": permit.expires_at}
            await record(rows, stamp(now), actor, "permit.issue", f"{model} {version}", **detail)
        return self._sealer.seal(permit, trust.PERMIT_TYPE)
