"""Releases come and go by the word of their release role: publish, sign, revoke.

- What a release role has signed is stored before the repository names it, together with the metadata that will: a start
  after a power cut finishes what was begun (`recover`).
- Where a role needs several signatures, what has too few is a *proposal*: it is not in the repository and cannot be
  rolled out. There is one a role, since its metadata has one next version; it ends signed, cancelled, or by its expiry.
- A signature is verified when it arrives, and again whenever it is counted: a key that was replaced counts no more.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from interlock_server.auditing import record
from interlock_server.catalogue import Catalogue
from interlock_server.core import releases
from interlock_server.core.access import Actor
from interlock_server.core.moments import stamp
from interlock_server.core.releases import DONE, PUBLISHED, PUBLISHING, REVOKING, WITHDRAWN
from interlock_server.ports import Changed, Checked, Clock, Repository, Row, Rows, Store
from interlock_server.withdrawals import end
from interlock_shared import canonical, manifest
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound, Untrusted
from interlock_shared.manifest import Manifest

log = logging.getLogger(__name__)

LIFETIME = timedelta(days=14)  # of a proposal: the role is free again when the second signer never came
PUBLISH, REVOKE = "publish", "revoke"


class Publishing:
    """One change at a time, so that two publishers cannot both be the next version."""

    def __init__(
        self,
        store: Store,
        repository: Repository,
        catalogue: Catalogue,
        clock: Clock,
        moved: Callable[[], None],
        changed: Changed,
    ) -> None:
        self._store, self._repository, self._catalogue, self._clock = store, repository, catalogue, clock
        self._moved, self._changed = moved, changed
        self._one = catalogue.changing

    # --- what is asked ---------------------------------------------------------------------------------------------

    async def publish(self, actor: Actor, encoded: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Publish one release, or propose it where that is one signature of several; its document. `encoded`: base64 of
        the manifest's canonical bytes.

        Raises Invalid, Incompatible, Untrusted, NotFound (`unknown_model`), Conflict (`stale_metadata`,
        `target_changed`, `release_exists`, `release_revoked`, `release_pending`, `segments_missing`).
        """
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise Invalid("manifest: not base64", field="manifest") from None
        parsed = manifest.parse(data)
        async with self._one:
            await self._refuse_known(parsed)
            await self._propose(actor, PUBLISH, parsed.model, parsed.version, data, metadata)
        return await self._catalogue.release(parsed.model, parsed.version)

    async def revoke(self, actor: Actor, model: str, version: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Take a release back, by its role's next metadata: the target is gone, a record says why.

        Raises as `publish`, and NotFound (`no_release`).
        """
        async with self._one:
            async with self._store.reading() as rows:
                found = await rows.find("releases", model=model, version=version, state=("in", releases.KNOWN))
            if found is None:
                raise NotFound(f"there is no release {model} {version}", code="no_release")
            await self._propose(actor, REVOKE, model, version, None, metadata)
        return await self._catalogue.release(model, version)

    async def sign(self, actor: Actor, model: str, version: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """One more signature of the very same metadata. Raises NotFound (`not_pending`), Conflict (`other_content`),
        Untrusted (`bad_signature`)."""
        async with self._one:
            await self.recover()
            known = await self._catalogue.proposal(model)
            if known is None or known["version"] != version:
                raise NotFound(f"{model} {version} awaits no signature", code="not_pending")
            await self._join(actor, known, metadata)
        return await self._catalogue.release(model, version)

    async def cancel(self, actor: Actor, model: str, version: str) -> dict[str, Any]:
        """Drop what awaits signatures. Raises NotFound (`not_pending`), Forbidden (`not_yours`)."""
        at = stamp(self._clock())
        async with self._one:
            known = await self._catalogue.proposal(model)
            if known is None or known["version"] != version:
                raise NotFound(f"{model} {version} awaits no signature", code="not_pending")
            if actor.name != known["created_by"] and actor.role != "admin":
                raise Forbidden(f"{known['created_by']} proposed it; they or an admin may cancel it", code="not_yours")
            async with self._store.writing() as rows:
                await rows.remove("proposals", model=model)
                await record(rows, at, actor, "release.cancel", f"{model} {version}", what=known["action"])
        return {"model": model, "version": version, "action": known["action"], "state": "cancelled"}

    # --- one change of a role --------------------------------------------------------------------------------------

    async def _refuse_known(self, parsed: Manifest) -> None:
        await self.recover()
        async with self._store.reading() as rows:
            found = await rows.find("releases", model=parsed.model, version=parsed.version)
        if found is None:
            return
        if found["state"] not in (PUBLISHED, WITHDRAWN):
            releases.refuse_revoked(parsed.release, found["ended_reason"])
        releases.refuse_existing(parsed)

    async def _propose(
        self, actor: Actor, action: str, model: str, version: str, data: bytes | None, metadata: Mapping[str, Any]
    ) -> None:
        await self.recover()
        known = await self._catalogue.proposal(model)
        if known is not None:
            if (known["action"], known["version"]) != (action, version):
                refuse_pending(known)
            await self._join(actor, known, metadata)
            return
        now = self._clock()
        checked = await asyncio.to_thread(self._repository.check_release, model, metadata, now)
        keys, _ = await asyncio.to_thread(self._repository.signers_of, model)
        row = {
            "model": model,
            "version": version,
            "action": action,
            "role_version": checked.version,
            "manifest": data,
            "metadata": checked.data,
            "signatures": _signed(actor, checked.keyids, keys, stamp(now)),
            "reason": _reason(checked, action, model, version, data),
            "created_at": stamp(now),
            "created_by": actor.name,
            "expires_at": stamp(now + LIFETIME),
        }
        await self._store_or_finish(actor, row, checked, f"release.{action}")

    async def _join(self, actor: Actor, known: Row, metadata: Mapping[str, Any]) -> None:
        now, held = self._clock(), json.loads(known["metadata"])
        if canonical.encode(metadata.get("signed")) != canonical.encode(held["signed"]):
            raise Conflict(
                f"{_named(known)}: what awaits signatures is other content than this; `interlock release sign`",
                code="other_content",
            )
        keys, _ = await asyncio.to_thread(self._repository.signers_of, known["model"])
        kept = [one for one in held["signatures"] if one["keyid"] in keys]  # one may have been replaced since
        have = {one["keyid"] for one in kept}
        sent = metadata.get("signatures")
        listed = sent if isinstance(sent, list) else []
        new = [one for one in listed if not (isinstance(one, Mapping) and str(one.get("keyid")) in have)]
        merged = {"signed": held["signed"], "signatures": [*kept, *new]}
        checked = await asyncio.to_thread(self._repository.check_release, known["model"], merged, now)
        said = [one for one in known["signatures"] if one["keyid"] in have]
        more = _signed(actor, [one for one in checked.keyids if one not in have], keys, stamp(now))
        row = {**known, "metadata": checked.data, "signatures": [*said, *more]}
        await self._store_or_finish(actor, row, checked, "release.sign")

    async def _store_or_finish(self, actor: Actor, row: Row, checked: Checked, action: str) -> None:
        model, version, at = row["model"], row["version"], stamp(self._clock())
        _reason(
            checked, row["action"], model, version, row["manifest"]
        )  # what holds at the first signature must at the last
        enough = len(checked.keyids) >= checked.threshold
        detail = {"signatures": len(checked.keyids), "of": checked.threshold, "what": row["action"]}
        devices: list[str] = []
        async with self._store.writing() as rows:
            if row["manifest"] is not None:
                await self._catalogue.check_segments(rows, manifest.parse(row["manifest"]))
            await rows.remove("proposals", model=model)
            if not enough:
                await rows.insert("proposals", **row)
            elif row["action"] == PUBLISH:
                await rows.insert("releases", **_release(row))
            else:
                devices = await self._end(rows, row, at)
            await record(rows, at, actor, action, f"{model} {version}", **detail)
        if not enough:
            return
        await self.recover()
        self._moved()
        self._changed(devices)

    @staticmethod
    async def _end(rows: Rows, row: Row, at: str) -> list[str]:
        what = {"state": REVOKING, "metadata": row["metadata"], "revoked_by": row["signatures"]}
        return await end(rows, row["model"], row["version"], row["created_by"], row["reason"], at, **what)

    # --- what was begun --------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Finish what a power cut or a full disk interrupted; the repository takes what the database has."""
        async with self._store.reading() as rows:
            begun = await rows.list("releases", order="created_at", state=("in", tuple(DONE)))
        for row in begun:
            where = {"model": row["model"], "version": row["version"]}
            try:
                await asyncio.to_thread(self._repository.add_release, row["model"], row["metadata"], self._clock())
            except Untrusted as late:  # the role's keys were replaced in between: it was signed by nobody
                log.error("%s: what was begun is undone: %s", _named(row), late.message)
                async with self._store.writing() as rows:
                    if row["state"] == PUBLISHING:
                        await rows.remove("releases", **where)
                    else:  # nobody is asked to run it as it is: an operator says how it goes on
                        await rows.change("releases", where, state=WITHDRAWN, metadata=None, revoked_by=[])
                continue
            async with self._store.writing() as rows:
                await rows.change("releases", where, state=DONE[row["state"]], metadata=None)


def _signed(actor: Actor, keyids: Iterable[str], holders: Mapping[str, str], at: str) -> list[Row]:
    return [{"keyid": one, "holder": holders.get(one, ""), "by": actor.name, "at": at} for one in keyids]


def _named(row: Row) -> str:
    return f"{row['model']} {row['version']}"


def refuse_pending(known: Row) -> None:
    """Raises Conflict (`release_pending`): the role's one next version is taken."""
    raise Conflict(
        f"{known['created_by']} has proposed to {known['action']} {_named(known)} at {known['created_at']}; it awaits "
        "signatures, and nothing else of this model can change before: `interlock release sign` or `release cancel`",
        code="release_pending",
        version=known["version"],
        by=known["created_by"],
        since=known["created_at"],
        action=known["action"],
    )


def _reason(checked: Checked, action: str, model: str, version: str, data: bytes | None) -> str:
    """The reason of a revocation; "" of a publish. Raises where the metadata says something else than was asked."""
    if action == PUBLISH:
        releases.check_addition(checked.old, checked.new, manifest.parse(data or b""), data or b"")
        return ""
    return releases.check_revocation(checked.old, checked.new, model, version).reason


def _release(row: Row) -> Row:
    data = row["manifest"]
    parsed = manifest.parse(data)
    return {
        "model": parsed.model,
        "version": parsed.version,
        "manifest_sha256": canonical.sha256(data),
        "payload_sha256": parsed.payload_sha256(),
        "size": parsed.payload_size,
        "manifest": data,
        "metadata": row["metadata"],
        "state": PUBLISHING,
        "created_at": row["created_at"],
        "published_by": row["created_by"],
        "signatures": row["signatures"],
        "revoked_by": [],
    }
