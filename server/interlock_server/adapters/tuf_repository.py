"""The TUF repository: checks what is uploaded, signs snapshot and timestamp, keeps files (consistent snapshots).

Rules of the file:
- The server signs *only* snapshot and timestamp. Root, targets and release roles are signed elsewhere, and checked here
  by python-tuf before anything is written.
- Files of a version are written before the snapshot that names them, and the timestamp last: whatever is cut short,
  clients see the old repository or the new.
- Stored bytes are the canonical bytes of the uploaded object, so that both sides know their digest.
- Blocks (disk, signatures): one call at a time, in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from interlock_server.core import releases
from interlock_shared import canonical, durable, topics
from interlock_shared.base import validate
from interlock_shared.documents import Director
from interlock_shared.errors import Conflict, Invalid, NotFound, Untrusted
from interlock_shared.limits import METADATA_MAX_BYTES

TIMESTAMP_DAYS = 7  # how long a device believes that there is nothing newer
SNAPSHOT_DAYS = 30
RENEW_AFTER = timedelta(days=1)  # signed again daily, so that a server that is down for days strands nobody

_NAME = re.compile(r"^(timestamp|[0-9]{1,10}\.[a-z0-9][a-z0-9._-]{0,100})\.json$")


def _load(document: Mapping[str, Any], kind: type[Signed], what: str, now: datetime) -> Metadata[Any]:
    """Uploaded metadata as python-tuf's object, signatures unchecked. Raises Invalid, Untrusted (`expired`)."""
    try:
        data = canonical.encode(document)
        if len(data) > METADATA_MAX_BYTES:
            raise Invalid(f"{what}: {len(data)} bytes, at most {METADATA_MAX_BYTES} are allowed", field=what)
        metadata = Metadata[Any].from_dict(deepcopy(dict(document)))
    except (KeyError, TypeError, ValueError, AttributeError) as bad:
        raise Invalid(f"{what}: not TUF metadata: {bad}", field=what, code="invalid_metadata") from None
    if not isinstance(metadata.signed, kind):
        raise Invalid(f"{what}: is {metadata.signed.type} metadata", field=what, code="invalid_metadata")
    if metadata.signed.is_expired(now):
        raise Untrusted(f"{what}: expired at {metadata.signed.expires}", code="expired")
    return metadata


def _verify(delegator: Metadata[Any], role: str, metadata: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, metadata)
    except (RepositoryError, ValueError) as bad:
        raise Untrusted(f"{role}: {bad}", code="bad_signature") from None


def _facts(targets: Targets) -> dict[str, tuple[int, str]]:
    return {name: (one.length, str(one.hashes.get("sha256"))) for name, one in targets.targets.items()}


class Trusted:
    """The metadata of one state of the repository, as objects."""

    def __init__(self) -> None:
        self.root: Metadata[Root] | None = None
        self.targets: Metadata[Targets] | None = None
        self.delegated: dict[str, Metadata[Targets]] = {}
        self.snapshot: Metadata[Snapshot] | None = None
        self.timestamp: Metadata[Timestamp] | None = None

    def copy(self) -> Trusted:
        """A state to change; the metadata objects in it are replaced, never altered."""
        other = Trusted()
        other.__dict__.update({**self.__dict__, "delegated": dict(self.delegated)})
        return other


class TufRepository:
    """`FOLDER/N.role.json`, `FOLDER/timestamp.json`, `FOLDER/target/director.json`."""

    def __init__(self, folder: Path, signers: Mapping[str, Signer]) -> None:
        self._folder, self._signers = folder, signers
        (folder / "target").mkdir(parents=True, exist_ok=True)
        durable.sweep(folder)
        self._state = self._read()

    # --- reading ---------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """The file of that name. Raises NotFound for any other name than those of metadata."""
        if name != "target/" + topics.DIRECTOR_TARGET and not _NAME.match(name):
            raise NotFound(f"there is no metadata {name[:80]!r}")
        return self._folder / name

    def status(self) -> dict[str, Any] | None:
        """Versions of the roles, and the digest of the first root; None before the first upload."""
        state = self._state
        if not (state.timestamp and state.snapshot and state.targets and state.root):
            return None
        return {
            "root": state.root.signed.version,
            "targets": state.targets.signed.version,
            "snapshot": state.snapshot.signed.version,
            "timestamp": state.timestamp.signed.version,
            "root_sha256": canonical.sha256(self.path("1.root.json").read_bytes()),
        }

    def _read(self) -> Trusted:
        """The state that `timestamp.json` names; nothing when there is none. Raises Invalid on a broken file."""
        state = Trusted()
        if not (self._folder / "timestamp.json").exists():
            return state
        try:
            state.timestamp = self._file("timestamp.json")
            state.snapshot = self._file(f"{state.timestamp.signed.snapshot_meta.version}.snapshot.json")
            meta = dict(state.snapshot.signed.meta)
            state.targets = self._file(f"{meta.pop('targets.json').version}.targets.json")
            for name, one in meta.items():
                state.delegated[name.removesuffix(".json")] = self._file(f"{one.version}.{name}")
            version = max(int(path.name.split(".")[0]) for path in self._folder.glob("*.root.json"))
            state.root = self._file(f"{version}.root.json")
        except (OSError, DeserializationError, KeyError, ValueError) as bad:
            raise Invalid(f"repository {self._folder}: {bad}; restore it from a backup", code="broken_store") from bad
        return state

    def _file(self, name: str) -> Metadata[Any]:
        return Metadata[Any].from_bytes(self.path(name).read_bytes())

    # --- uploads ---------------------------------------------------------------------------------------------------

    def accept_trust(self, document: Mapping[str, Any], now: datetime) -> None:
        """Take root, targets, new delegated roles and the director's document. Nothing is changed by a refusal.

        Raises Invalid, Untrusted, Conflict (`stale_metadata`, `target_changed`).
        """
        state = self._state.copy()
        state.root = self._next_root(_load(document["root"], Root, "root", now))
        targets = _load(document["targets"], Targets, "targets", now)
        _verify(state.root, "targets", targets)
        if state.targets is not None and targets.to_dict() != state.targets.to_dict():
            releases.check_version(state.targets.signed.version, targets.signed.version)
        state.targets = targets
        director = self._director(targets.signed, document["director"])
        self._take_delegated(state, document["delegated"], now)
        self._write_and_sign(state, now, {"target/" + topics.DIRECTOR_TARGET: director})

    def _next_root(self, root: Metadata[Root]) -> Metadata[Root]:
        current = self._state.root
        if current is not None and current.to_dict() == root.to_dict():
            return current
        releases.check_version(current.signed.version if current else 0, root.signed.version)
        for delegator in (current, root):
            if delegator is not None:
                _verify(delegator, "root", root)
        if root.signed.consistent_snapshot is not True:
            raise Invalid("root: consistent_snapshot must be true", field="root", code="invalid_metadata")
        for role in ("snapshot", "timestamp"):
            keyid = self._signers[role].public_key.keyid
            if root.signed.roles[role].keyids != [keyid] or root.signed.roles[role].threshold != 1:
                raise Untrusted(f"root: {role} must be signed by this server's key alone", code="foreign_online_key")
        return root

    def _director(self, targets: Targets, document: Mapping[str, Any]) -> bytes:
        data = canonical.encode(document)
        director = validate(Director, dict(document), "director")
        facts = _facts(targets).get(topics.DIRECTOR_TARGET)
        if facts != (len(data), canonical.sha256(data)):
            raise Untrusted("targets: director.json is not the document that was sent", code="target_mismatch")
        if self._signers["director"].public_key.keyid not in director.keys or director.epoch != releases.DIRECTOR_EPOCH:
            raise Untrusted("director: this server's key and epoch are not in it", code="foreign_online_key")
        return data

    def _take_delegated(self, state: Trusted, documents: Mapping[str, Any], now: datetime) -> None:
        targets = cast("Metadata[Targets]", state.targets)
        roles = targets.signed.delegations.roles if targets.signed.delegations else None
        for name, role in (roles or {}).items():
            model = name.removeprefix("release-")
            releases.check_models([model])
            if topics.release_role(model) != name or role.paths != releases.delegated_paths(model):
                raise Invalid(f"targets: {name} may sign {role.paths}", field="targets", code="foreign_delegation")
            if not role.terminating:
                raise Invalid(f"targets: {name} must be terminating", field="targets", code="foreign_delegation")
        foreign = set(documents) - set(roles or {})
        if foreign:
            raise Invalid(f"delegated: targets does not delegate to {min(foreign)}", field="delegated")
        for name, document in documents.items():
            metadata = _load(document, Targets, name, now)
            known = state.delegated.get(name)
            if known is not None and metadata.to_dict() != known.to_dict():
                releases.check_version(known.signed.version, metadata.signed.version)
            if _facts(metadata.signed) != (_facts(known.signed) if known else {}):
                raise Conflict(f"{name}: releases are published one by one", code="target_changed")
            state.delegated[name] = metadata
        missing = set(roles or {}) - set(state.delegated)
        if missing:
            raise Invalid(f"delegated: {min(missing)} is missing", field="delegated")
        state.delegated = {name: state.delegated[name] for name in (roles or {})}
        for name, metadata in state.delegated.items():
            _verify(targets, name, metadata)  # what was published before must hold under new keys too

    def check_release(self, model: str, metadata: Mapping[str, Any], now: datetime) -> tuple[dict[str, Any], bytes]:
        """Signature and version of a release role's next metadata: the facts before and after, and bytes to store.

        Raises NotFound (`unknown_model`), Invalid, Untrusted, Conflict (`stale_metadata`).
        """
        name = topics.release_role(model)
        known, targets = self._state.delegated.get(name), self._state.targets
        if known is None or targets is None:
            raise NotFound(f"no key may release {model!r}: add it to the trust metadata first", code="unknown_model")
        loaded = _load(metadata, Targets, name, now)
        _verify(targets, name, loaded)
        if loaded.signed.delegations is not None:
            raise Invalid(f"{name}: a release role delegates nothing", field="metadata", code="foreign_delegation")
        releases.check_version(known.signed.version, loaded.signed.version)
        return {"old": _facts(known.signed), "new": _facts(loaded.signed)}, canonical.encode(metadata)

    def add_release(self, model: str, metadata: bytes, now: datetime) -> None:
        """Write what `check_release` approved; a repetition after a power cut changes nothing."""
        state = self._state.copy()
        loaded: Metadata[Any] = Metadata[Any].from_bytes(metadata)
        name = topics.release_role(model)
        if state.delegated[name].signed.version >= loaded.signed.version:
            return
        state.delegated[name] = loaded
        self._write_and_sign(state, now, {})

    def refresh(self, now: datetime) -> bool:
        """Sign anew when the timestamp is a day old, or the clock was set back; whether it did."""
        timestamp = self._state.timestamp
        if timestamp is None:
            return False
        left = timestamp.signed.expires - now
        if (
            timedelta(0) < left <= timedelta(days=TIMESTAMP_DAYS)
            and left > timedelta(days=TIMESTAMP_DAYS) - RENEW_AFTER
        ):
            return False
        self._write_and_sign(self._state.copy(), now, {})
        return True

    # --- writing ---------------------------------------------------------------------------------------------------

    def _write_and_sign(self, state: Trusted, now: datetime, extra: Mapping[str, bytes]) -> None:
        root, targets = cast("Metadata[Root]", state.root), cast("Metadata[Targets]", state.targets)
        snapshot = Snapshot(
            version=(state.snapshot.signed.version if state.snapshot else 0) + 1,
            expires=(now + timedelta(days=SNAPSHOT_DAYS)).replace(microsecond=0),
            meta={"targets.json": MetaFile(targets.signed.version)}
            | {f"{name}.json": MetaFile(one.signed.version) for name, one in state.delegated.items()},
        )
        timestamp = Timestamp(
            version=(state.timestamp.signed.version if state.timestamp else 0) + 1,
            expires=(now + timedelta(days=TIMESTAMP_DAYS)).replace(microsecond=0),
            snapshot_meta=MetaFile(snapshot.version),
        )
        state.snapshot, state.timestamp = Metadata(snapshot), Metadata(timestamp)
        state.snapshot.sign(self._signers["snapshot"])
        state.timestamp.sign(self._signers["timestamp"])
        _verify(root, "snapshot", state.snapshot)
        _verify(root, "timestamp", state.timestamp)
        files = dict(extra)
        for name, one in {"targets": targets, **state.delegated}.items():
            files[f"{one.signed.version}.{name}.json"] = canonical.encode(one.to_dict())
        files[f"{snapshot.version}.snapshot.json"] = canonical.encode(state.snapshot.to_dict())
        files[f"{root.signed.version}.root.json"] = canonical.encode(root.to_dict())
        files["timestamp.json"] = canonical.encode(state.timestamp.to_dict())
        for name, data in files.items():
            path = self._folder / name
            if not path.exists() or path.read_bytes() != data:
                durable.replace_file(path, data, mode=0o644)
        self._state = state
