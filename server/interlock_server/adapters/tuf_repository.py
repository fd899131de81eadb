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

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from interlock_server.core import releases
from interlock_server.ports import Checked, OnlineSigners
from interlock_shared import canonical, durable, topics, trust
from interlock_shared.base import validate
from interlock_shared.documents import Director
from interlock_shared.errors import Conflict, Invalid, NotFound, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES, METADATA_MAX_BYTES, ROOT_MAX_BYTES

TIMESTAMP_DAYS = 7  # how long a device believes that there is nothing newer
SNAPSHOT_DAYS = 30
RENEW_AFTER = timedelta(days=1)  # signed again daily, so that a server that is down for days strands nobody

TOGETHER = "together.json"  # files of one upload, by name, until all of them are written
TOGETHER_MAX_BYTES = 2**30

_NAME = re.compile(r"^(timestamp|[0-9]{1,10}\.[a-z0-9][a-z0-9._-]{0,100})\.json$")


def _load(document: Mapping[str, Any], kind: type[Signed], what: str, now: datetime | None) -> Metadata[Any]:
    """Uploaded metadata as python-tuf's object, signatures unchecked; its expiry too, without `now`.

    Raises Invalid, Untrusted (`expired`).
    """
    try:
        data = canonical.encode(document)
        limit = ROOT_MAX_BYTES if kind is Root else METADATA_MAX_BYTES
        if len(data) > limit:
            raise Invalid(f"{what}: {len(data)} bytes, at most {limit} are allowed", field=what)
        metadata = Metadata[Any].from_dict(deepcopy(dict(document)))
    except (KeyError, TypeError, ValueError, AttributeError) as bad:
        raise Invalid(f"{what}: not TUF metadata: {bad}", field=what, code="invalid_metadata") from None
    if not isinstance(metadata.signed, kind):
        raise Invalid(f"{what}: is {metadata.signed.type} metadata", field=what, code="invalid_metadata")
    if now is not None and metadata.signed.is_expired(now):
        raise Untrusted(f"{what}: expired at {metadata.signed.expires}", code="expired")
    return metadata


def _verify(delegator: Metadata[Any], role: str, metadata: Metadata[Any]) -> None:
    try:
        keys = [delegator.signed.get_key(keyid) for keyid in delegator.signed.get_delegated_role(role).keyids]
        if trust.different(keys) != len(keys):
            raise Untrusted(f"{role}: one of its keys is named twice, and would count twice", code="key_exists")
        delegator.verify_delegate(role, metadata)
    except (RepositoryError, ValueError) as bad:
        raise Untrusted(f"{role}: {bad}", code="bad_signature") from None


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

    def __init__(self, folder: Path, keys: OnlineSigners) -> None:
        self._folder, self._keys = folder, keys
        (folder / "target").mkdir(parents=True, exist_ok=True)
        durable.sweep(folder)
        self._finish()
        self._state = self._read()
        self._settle()

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
        self._recover()
        state = self._state.copy()
        roots = self._next_roots([*document.get("chain", ()), document["root"]], now)
        if roots:
            state.root = roots[-1]
        state.root = cast("Metadata[Root]", state.root)
        targets = _load(document["targets"], Targets, "targets", now)
        _verify(state.root, "targets", targets)
        if state.targets is not None and targets.to_dict() != state.targets.to_dict():
            releases.check_version(state.targets.signed.version, targets.signed.version)
        state.targets = targets
        director = self._director(targets.signed, document["director"])
        self._take_delegated(state, document["delegated"], now)
        files = {f"{one.signed.version}.root.json": canonical.encode(one.to_dict()) for one in roots}
        self._write_and_sign(state, now, {**files, "target/" + topics.DIRECTOR_TARGET: director}, together=True)
        self._settle()

    def _next_roots(self, documents: Sequence[Mapping[str, Any]], now: datetime) -> list[Metadata[Root]]:
        """The new ones of these roots, each signed by the one before it and by itself. What is known already is left
        out, so that an upload can be repeated; only the last must not have expired, and names this server's keys.
        """
        current, found = self._state.root, []
        for document in documents:
            last = document is documents[-1]
            root = _load(document, Root, "root", now if last else None)
            if current is not None and root.signed.version <= current.signed.version and self._known(root):
                continue
            releases.check_version(current.signed.version if current else 0, root.signed.version)
            for delegator in (current, root):
                if delegator is not None:
                    _verify(delegator, "root", root)
            if root.signed.consistent_snapshot is not True:
                raise Invalid("root: consistent_snapshot must be true", field="root", code="invalid_metadata")
            found.append(root)
            current = root
        for role in ("snapshot", "timestamp") if found else ():
            named, mine = found[-1].signed.roles[role], self._keys.candidates(role)
            if named.threshold != 1 or named.keyids not in [[one.public_key.keyid] for one in mine]:
                raise Untrusted(
                    f"root: {role} must be signed by this server's key alone: `interlock root propose --rotate {role}`",
                    code="foreign_online_key",
                )
        return found

    def _known(self, root: Metadata[Root]) -> bool:
        with contextlib.suppress(OSError):
            return self.path(f"{root.signed.version}.root.json").read_bytes() == canonical.encode(root.to_dict())
        return False

    def _director(self, targets: Targets, document: Mapping[str, Any]) -> bytes:
        data = canonical.encode(document)
        director = validate(Director, dict(document), "director")
        target = targets.targets.get(topics.DIRECTOR_TARGET)
        facts = (target.length, target.hashes.get("sha256")) if target else None
        if facts != (len(data), canonical.sha256(data)):
            raise Untrusted("targets: director.json is not the document that was sent", code="target_mismatch")
        mine = [one.public_key.keyid for one in self._keys.candidates("director")]
        releases.check_director(self._known_director(), director, mine)
        return data

    def _known_director(self) -> Director | None:
        """The trusted director's document. Raises Invalid."""
        if self._state.targets is None:
            return None
        data = self.path("target/" + topics.DIRECTOR_TARGET).read_bytes()
        return validate(Director, canonical.decode(data, limit=DOCUMENT_MAX_BYTES, what="director"), "director")

    def _settle(self) -> None:
        """Tell the online keys what trusted metadata says of them."""
        root, director = self._state.root, self._known_director()
        if root is None or director is None:
            return
        named: dict[str, Collection[str]] = {role: root.signed.roles[role].keyids for role in ("snapshot", "timestamp")}
        self._keys.settle({**named, "director": list(director.keys)}, director.epoch)

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
            content = releases.content(metadata.signed.to_dict())
            if content != (releases.content(known.signed.to_dict()) if known else releases.NOTHING):
                raise Conflict(f"{name}: releases are published one by one", code="target_changed")
            state.delegated[name] = metadata
        missing = set(roles or {}) - set(state.delegated)
        if missing:
            raise Invalid(f"delegated: {min(missing)} is missing", field="delegated")
        state.delegated = {name: state.delegated[name] for name in (roles or {})}
        for name, metadata in state.delegated.items():
            _verify(targets, name, metadata)  # what was published before must hold under new keys too

    def check_release(self, model: str, metadata: Mapping[str, Any], now: datetime) -> Checked:
        """A release role's next metadata with the signatures that hold; too few are no error.

        Raises NotFound (`unknown_model`), Invalid, Untrusted (`bad_signature`: not one holds, or one does not),
        Conflict (`stale_metadata`).
        """
        self._recover()
        name = topics.release_role(model)
        known, targets = self._state.delegated.get(name), self._state.targets
        if known is None or targets is None:
            raise NotFound(f"no key may release {model!r}: add it to the trust metadata first", code="unknown_model")
        loaded = _load(metadata, Targets, name, now)
        if loaded.signed.delegations is not None:
            raise Invalid(f"{name}: a release role delegates nothing", field="metadata", code="foreign_delegation")
        releases.check_version(known.signed.version, loaded.signed.version)
        result = targets.signed.get_verification_result(name, loaded.signed_bytes, loaded.signatures)
        foreign = sorted(set(loaded.signatures) - set(result.signed))
        if foreign or not result.signed:
            who = f"key {foreign[0][:12]}…" if foreign else "nobody"
            raise Untrusted(f"{name}: {who} may not sign this, or has signed something else", code="bad_signature")
        return Checked(
            old=releases.content(known.signed.to_dict()),
            new=releases.content(loaded.signed.to_dict()),
            keyids=tuple(sorted(result.signed)),
            threshold=result.threshold,
            version=loaded.signed.version,
            data=canonical.encode(loaded.to_dict()),
        )

    def signers_of(self, model: str) -> tuple[dict[str, str], int]:
        """Keys that may sign for the model, with their holders' names ("": not known), and how many of them must; no
        key for an unknown model."""
        targets = self._state.targets
        roles = targets.signed.delegations.roles if targets and targets.signed.delegations else None
        role = (roles or {}).get(topics.release_role(model))
        if targets is None or role is None:
            return {}, 1
        keys = {keyid: targets.signed.get_key(keyid) for keyid in role.keyids}
        return {
            keyid: str(key.unrecognized_fields.get(topics.KEY_HOLDER, "")) for keyid, key in keys.items()
        }, role.threshold

    def version_of(self, model: str) -> int:
        """The version of the model's release role; 0 for an unknown model."""
        known = self._state.delegated.get(topics.release_role(model))
        return int(known.signed.version) if known else 0

    def add_release(self, model: str, metadata: bytes, now: datetime) -> None:
        """Write what `check_release` approved; a repetition after a power cut changes nothing."""
        self._recover()
        state = self._state.copy()
        loaded: Metadata[Any] = Metadata[Any].from_bytes(metadata)
        name = topics.release_role(model)
        if name not in state.delegated:
            raise Untrusted(f"{name}: targets names nobody for it any more", code="unknown_model")
        if state.delegated[name].signed.version >= loaded.signed.version:
            return
        _verify(cast("Metadata[Targets]", state.targets), name, loaded)
        state.delegated[name] = loaded
        self._write_and_sign(state, now, {})

    def refresh(self, now: datetime) -> bool:
        """Sign anew when the timestamp is a day old, or the clock was set back; whether it did. Raises Untrusted."""
        self._recover()
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

    def _signer(self, root: Metadata[Root], role: str) -> Signer:
        named = root.signed.roles[role].keyids
        signers: Sequence[Signer] = self._keys.candidates(role)
        for one in signers:
            if one.public_key.keyid in named:
                return one
        words = f"{role}: root names a key that is not here: put keys/ back or `interlock root propose --rotate {role}`"
        raise Untrusted(words, code="foreign_online_key")

    def _finish(self) -> bool:
        """Write what a power cut or a full disk has left of an upload whose files belong together; whether it did."""
        path = self._folder / TOGETHER
        if not path.exists():
            return False
        files = canonical.decode(path.read_bytes(), limit=TOGETHER_MAX_BYTES, what=TOGETHER)
        self._write({str(name): str(text).encode() for name, text in files.items()})
        durable.remove(path)
        return True

    def _recover(self) -> None:
        """Before anything is signed on top of it."""
        if self._finish():
            self._state = self._read()
            self._settle()

    def _write(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            path = self._folder / name
            if not path.exists() or path.read_bytes() != data:
                durable.replace_file(path, data, mode=0o644)

    def _write_and_sign(
        self, state: Trusted, now: datetime, extra: Mapping[str, bytes], *, together: bool = False
    ) -> None:
        """Snapshot, timestamp, and all files. `together`: a new root or director must not be seen, after a power cut,
        beside a timestamp of before.
        """
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
        state.snapshot.sign(self._signer(root, "snapshot"))
        state.timestamp.sign(self._signer(root, "timestamp"))
        _verify(root, "snapshot", state.snapshot)
        _verify(root, "timestamp", state.timestamp)
        files = dict(extra)
        for name, one in {"targets": targets, **state.delegated}.items():
            files[f"{one.signed.version}.{name}.json"] = canonical.encode(one.to_dict())
        files[f"{snapshot.version}.snapshot.json"] = canonical.encode(state.snapshot.to_dict())
        files[f"{root.signed.version}.root.json"] = canonical.encode(root.to_dict())
        files["timestamp.json"] = canonical.encode(state.timestamp.to_dict())
        if together:
            record = canonical.encode({name: data.decode() for name, data in files.items()})
            durable.replace_file(self._folder / TOGETHER, record, mode=0o644)
        self._write(files)
        if together:
            durable.remove(self._folder / TOGETHER)
        self._state = state
