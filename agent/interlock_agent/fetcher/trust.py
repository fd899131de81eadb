"""Metadata alone, through python-tuf's client; and what it does not do: durability, floors, the time floor.

1. The embedded root is the only anchor, always given; the cached root.json is never one.
2. Time is the caller's floor, not the clock's word.
3. python-tuf walks root, timestamp, snapshot, targets, delegated role (TUF 1.0.x, §5), in a copy of the store that is
   thrown away: it neither syncs nor replaces its files atomically. At most 64 rotations of root a walk; what was
   reached is kept, and the next walk goes on from there.
4. When a newer root has taken a threshold of a role's keys away, what those keys had signed is forgotten (§5.3.11),
   and with the timestamp's what they had said of the time. When newer targets have done so with a delegated role's,
   it begins anew; python-tuf compares snapshots before it sees targets, so the walk is then done without the old one.
5. No role may end below its floor, whatever the files say: a torn store would accept an older repository.
6. What is believed then goes into the store, file by file, durably, in the order of the walk: after a power cut the
   store is a walk that ended early.
7. The director's document is a target, and its epoch never falls.
"""

from __future__ import annotations

import json
import logging
import weakref
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import Updater, UpdaterConfig

from interlock_agent.fetcher import stored, stores
from interlock_agent.fetcher.port import ROTATIONS_MAX, MetadataSource, Port, check_delegations
from interlock_agent.fetcher.stored import HISTORY, signed_of
from interlock_shared import canonical, durable, floors
from interlock_shared.base import validate
from interlock_shared.documents import DIRECTOR_SCHEMA, Director
from interlock_shared.errors import InterlockError, Invalid, Later, NotFound, Unreachable, Untrusted
from interlock_shared.floors import ROOT_DIGEST, TOP_ROLES, Floors, RoleKeys
from interlock_shared.limits import DOCUMENT_MAX_BYTES, METADATA_MAX_BYTES, ROOT_MAX_BYTES
from interlock_shared.topics import DIRECTOR_TARGET, release_role, target_name

WALKS = 8  # in one job: a device that slept through more than 512 rotations goes on with the next
ROLES_MAX = 32  # that are looked at for one target; ours are one below `targets`
TIMESTAMP_MAX_BYTES = 16 * 1024  # names one file
RECOVERY = {"timestamp": ("timestamp",), "snapshot": ("snapshot", "timestamp"), "targets": ("targets", "snapshot")}

logging.getLogger("tuf").setLevel(logging.ERROR)


class Trust:
    """One refresh. `folder` keeps the metadata between refreshes; a fresh one knows nothing but the embedded root.
    `now`: seconds since the epoch, with what signed times say of it; `clock`: without."""

    def __init__(
        self, root: bytes, folder: Path, source: MetadataSource, now: float, clock: float | None = None
    ) -> None:
        self._embedded, self._folder, self._source = root, folder, source
        self._now, self._clock = now, now if clock is None else clock
        durable.make_folder(folder / HISTORY, 0o700)
        self._since = self.version("root") or 0  # which keys had signed what is in the store
        self._forgotten: set[str] = set()
        self._listed: dict[str, int] = {}  # what the old snapshot named, where the walk is done without it
        self._begin()

    def _begin(self) -> None:
        self._walk = stores.make()
        weakref.finalize(self, stores.remove, self._walk)
        self._copy_store()
        self._port = Port(self._source, weakref.WeakMethod(self._last_root))  # no cycle: the folder goes at once
        try:
            check_delegations(self._embedded)
            embedded = Metadata[Root].from_bytes(self._embedded).signed.version
            self._updater = Updater(  # 1
                str(self._walk),
                "metadata:/",
                fetcher=self._port,
                config=self._config(embedded),
                bootstrap=self._embedded,
            )
        except (exceptions.RepositoryError, ValueError) as bad:
            raise Untrusted(f"the embedded root is not usable: {bad}", code="bad_root") from None
        self._believe(self._now)

    def _believe(self, now: float) -> None:
        # 2: there is no parameter for it; tests/fetcher holds that the attribute is still the one python-tuf reads
        self._updater._trusted_set.reference_time = _moment(now)  # noqa: SLF001

    def _last_root(self, newest: int) -> None:
        """Step 4, between the last root and the first timestamp, for what the store holds."""
        for role in self._replaced(self._since, newest):
            self._forgotten |= set(RECOVERY[role])
            if role == "timestamp":
                self._believe(self._clock)
        for name in self._forgotten:
            (self._walk / f"{name}.json").unlink(missing_ok=True)

    def _replaced(self, since: int, newest: int) -> set[str]:
        return floors.replaced(stored.chain(self._walk, since, newest)) if since else set()

    def _copy_store(self) -> None:
        (self._walk / HISTORY).mkdir()
        for path in (*self._folder.glob("*.json"), *(self._folder / HISTORY).glob("*.root.json")):
            if path.is_file() and path.stat().st_size <= METADATA_MAX_BYTES:
                (self._walk / path.relative_to(self._folder)).write_bytes(path.read_bytes())

    def _config(self, embedded: int) -> UpdaterConfig:
        known = embedded  # roots that are here already are no rotations of this walk
        while (self._walk / HISTORY / f"{known + 1}.root.json").exists():
            known += 1
        return UpdaterConfig(
            max_root_rotations=known - embedded + ROTATIONS_MAX,
            max_delegations=ROLES_MAX,
            root_max_length=ROOT_MAX_BYTES,
            timestamp_max_length=TIMESTAMP_MAX_BYTES,
            snapshot_max_length=METADATA_MAX_BYTES,
            targets_max_length=METADATA_MAX_BYTES,
        )

    def refresh(self, known: Floors) -> Floors:
        """Steps 3 to 6 for the top-level roles; the new floors. Raises Untrusted, Unreachable, Later (`more_roots`)."""
        self._since = self._since or int(known.get("root", 0))
        try:
            return self._walked(known, TOP_ROLES, self._updater.refresh)[1]
        except Untrusted as refused:
            listed = stored.versions(self._folder / "snapshot.json")
            if refused.code != "bad_metadata" or not listed:
                raise
            first = refused.message  # the error itself would hold this walk's folder
        self._listed = listed
        self._begin()
        (self._walk / "snapshot.json").unlink()
        try:
            return self._walked(known, TOP_ROLES, self._updater.refresh)[1]
        except InterlockError:
            raise Untrusted(first, code="bad_metadata") from None

    def _walked(self, known: Floors, roles: tuple[str, ...], walk: Any, *arguments: Any) -> tuple[Any, Floors]:
        trouble: InterlockError | None = None
        try:
            answer = self._guarded(walk, *arguments)
        except InterlockError as error:
            trouble, answer = error, None
        try:
            for name in self._forgotten:  # before the roots: what took it away must not be there without it
                durable.remove(self._folder / f"{name}.json")
            self._keep(self._roots())  # 6: also of a walk that ended early, as python-tuf does
            raised = self._raised(known, roles)  # 5
            self._keep(self._vouched_for())
        except Untrusted as below:
            raise trouble or below from None
        except OSError as error:
            raise Unreachable(f"metadata could not be stored: {error.strerror}", code="io") from None
        if trouble is not None:
            raise trouble
        return answer, raised

    def _guarded(self, walk: Any, *arguments: Any) -> Any:
        try:
            return walk(*arguments)  # 3
        except exceptions.DownloadLengthMismatchError as error:
            raise Untrusted(f"metadata: {error}", code="too_large") from None
        except exceptions.DownloadError as error:
            if self._port.trouble is not None:
                raise self._port.trouble from None
            raise Untrusted(f"metadata: {error}", code="metadata_missing") from None
        except exceptions.ExpiredMetadataError as error:
            at = _moment(self._now).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise Untrusted(f"metadata: {error}: it is {at} here", code="metadata_expired") from None
        except (exceptions.RepositoryError, ValueError, RecursionError) as error:
            raise Untrusted(f"metadata: {error}", code="bad_metadata") from None
        except OSError as error:
            raise Unreachable(f"metadata could not be stored: {error.strerror}", code="io") from None

    def _raised(self, known: Floors, roles: tuple[str, ...]) -> Floors:
        newest = self.version("root", self._walk) or 0
        replaced = self._replaced(int(known.get("root", 0)), newest)
        standing = floors.recovered(known, replaced)  # 4
        if "timestamp" in replaced:
            standing[floors.CLOCK_ROOT] = newest
        # In others' repositories a role may be named as what stands beside the versions: it has no floor of ours.
        named = {*roles, "targets"} - floors.RESERVED
        versions = ((role, self.version(role, self._walk)) for role in named)
        found: Floors = {role: version for role, version in versions if version is not None}
        delegated, targets = stored.delegated(self._walk), int(found.get("targets", 0))
        if targets >= int(standing.get("targets", 0)):
            standing = floors.relieved(standing, delegated, targets)
        root = Metadata[Root].from_file(str(self._walk / "root.json"))
        found[ROOT_DIGEST] = canonical.sha256(root.signed_bytes)  # whoever else signs it, it is the same root
        floors.check(standing, found)
        self._check_listed(delegated)
        entries = {role: floors.entry(delegated[role], targets) for role in found.keys() & delegated.keys() & named}
        entries = {**(standing.get(floors.DELEGATED) or {}), **entries}
        return {**standing, **found, **({floors.DELEGATED: entries} if entries else {})}

    def _check_listed(self, delegated: dict[str, RoleKeys]) -> None:
        """What python-tuf would have looked at, had it had the old snapshot. Raises Untrusted."""
        now, before = stored.versions(self._walk / "snapshot.json"), stored.delegated(self._folder)
        for role, version in self._listed.items():
            anew = role in before and floors.taken_away(before[role], delegated.get(role))
            if now.get(role, -1) < version and not (anew and role in now):
                raise Untrusted(f"metadata: {role} went back from version {version}", code="bad_metadata")
        self._listed = {}

    def _roots(self) -> list[Path]:
        return sorted((self._walk / HISTORY).glob("*.root.json"), key=lambda path: int(path.name.split(".")[0]))

    def _vouched_for(self) -> list[Path]:
        top = [self._walk / f"{role}.json" for role in TOP_ROLES]
        return [*top, *sorted(path for path in self._walk.glob("*.json") if path not in top)]

    def _keep(self, paths: list[Path]) -> None:
        """The walk's files into the store, in this order."""
        for path in paths:
            target = self._folder / path.relative_to(self._walk)
            if path.exists():
                data = path.read_bytes()
                if not target.is_file() or target.read_bytes() != data:
                    durable.replace_file(target, data)
            elif target.exists():
                durable.remove(target)  # 4: forgotten

    def version(self, role: str, folder: Path | None = None) -> int | None:
        """The version of a role's trusted file; None when there is none."""
        signed = signed_of((folder or self._folder) / f"{quote(role, '')}.json")
        return int(signed.version) if signed is not None else None

    def expires(self, role: str) -> str | None:
        """When a role's trusted file expires (RFC 3339); None when there is none."""
        signed = signed_of(self._folder / f"{quote(role, '')}.json")
        return str(signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ")) if signed is not None else None

    def until(self) -> str:
        """When the first of the top-level roles expires (RFC 3339): not the timestamp's word alone, which a stolen
        server signs."""
        return min(filter(None, map(self.expires, TOP_ROLES)))

    def director(self, epoch: int) -> dict[str, Any]:
        """Step 7: `{"epoch", "keys"}`. Raises Untrusted, Invalid."""
        target = self._found(DIRECTOR_TARGET, self._guarded(self._updater.get_targetinfo, DIRECTOR_TARGET))
        data = self._source.director(DOCUMENT_MAX_BYTES)
        matches(target, data, DIRECTOR_TARGET)
        document = canonical.decode(data, limit=DOCUMENT_MAX_BYTES, what="director")
        if document.get("schema") != DIRECTOR_SCHEMA:
            raise Invalid(f"director: schema {document.get('schema')!r}", code="unknown_schema", field="schema")
        director = validate(Director, document, "director")
        if director.epoch < epoch:
            raise Untrusted(f"director: epoch {director.epoch} is below {epoch}", code="below_floor", role="director")
        return {"epoch": director.epoch, "keys": director.keys}

    @staticmethod
    def _found(name: str, target: TargetFile | None) -> TargetFile:
        if target is None:
            raise NotFound(f"{name} is not among the signed targets", code="not_a_target")
        return target

    def target(self, name: str, known: Floors) -> tuple[TargetFile, Floors]:
        """Steps 3 to 6 for a target, whoever signs it; the new floors. Raises NotFound, Untrusted, Unreachable."""
        target, raised = self._walked(known, TOP_ROLES, self._updater.get_targetinfo, name)
        meta = signed_of(self._walk / "snapshot.json").meta
        listed = {role: info.version for role, info in meta.items() if role not in ("root.json", "targets.json")}
        here = (role.removesuffix(".json") for role in listed)
        looked_at = [role for role in here if self.version(role, self._walk) == listed[f"{role}.json"]]
        return self._found(name, target), self._raised(raised, (*TOP_ROLES, *looked_at))

    def path_of(self, target: TargetFile) -> str:
        """Where a target lies below the address of targets."""
        if not Metadata[Root].from_file(str(self._folder / "root.json")).signed.consistent_snapshot:
            return str(target.path)
        parent, slash, name = target.path.rpartition("/")
        return f"{parent}{slash}{next(iter(target.hashes.values()))}.{name}"

    def release(self, model: str, version: str, manifest_sha256: str, known: Floors) -> Floors:
        """That this manifest is a signed target of the model's role; the new floors. Raises Untrusted."""
        walk, name = self._updater.get_targetinfo, target_name(model, version)
        target, raised = self._walked(known, (release_role(model),), walk, name)
        if target is None:
            raise Untrusted(f"{model} {version}: {name} is not among the signed targets", code="not_signed")
        if target.hashes.get("sha256") != manifest_sha256:
            raise Untrusted(f"{model} {version}: the signed manifest is another one", code="manifest_mismatch")
        return raised

    def role(self, model: str, known: Floors) -> tuple[dict[str, Any] | None, Floors]:
        """Steps 3 to 6 for a model's release role: what it says (None: no key may release that model), and the new
        floors. Raises Untrusted, Unreachable."""
        role, walk = release_role(model), self._updater.get_targetinfo
        _, raised = self._walked(known, (role,), walk, target_name(model, "0.0.0"))
        signed = signed_of(self._walk / f"{role}.json")
        return (signed.to_dict() if signed is not None else None), raised

    def check_offline_roles(self, model: str, now: float) -> None:
        """That what is signed offline holds *now*, where the online roles were judged at an earlier time (a file).
        Raises Untrusted (`metadata_expired`)."""
        for role in ("root", "targets", release_role(model)):
            signed = signed_of(self._folder / f"{role}.json")
            if signed is None:
                raise Untrusted(f"metadata: {role} is not there", code="bad_metadata")
            if signed.is_expired(_moment(now)):
                ended = signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ")
                raise Untrusted(f"metadata: {role} expired on {ended}", code="metadata_expired", role=role)


def walked(
    root: bytes, folder: Path, source: MetadataSource, now: float, known: Floors, clock: float | None = None
) -> tuple[Trust, Floors]:
    """A refresh of as many walks as the chain of roots needs, up to WALKS. Raises as `Trust.refresh`."""
    for left in range(WALKS - 1, -1, -1):
        chain = Trust(root, folder, source, now, clock)
        try:
            return chain, chain.refresh(known)
        except Later as more:
            if more.code != "more_roots" or not left:
                raise
    raise AssertionError("unreachable: the last turn returns or raises")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)


def matches(target: TargetFile, data: bytes, what: str) -> None:
    """Raises Untrusted (`manifest_mismatch`) where the bytes are not the signed ones."""
    try:
        target.verify_length_and_hashes(data)
    except exceptions.LengthOrHashMismatchError as bad:
        raise Untrusted(f"{what}: {bad}", code="manifest_mismatch") from None


def revoked(folder: Path, model: str, version: str, manifest_sha256: str, role_version: int) -> bool:
    """Whether the metadata that this device trusts online, at least as new as `role_version`, lacks the release: a
    file cannot bring back what its signer has taken away."""
    try:
        document = json.loads((folder / f"{release_role(model)}.json").read_bytes())
        signed = document["signed"]
        if int(signed["version"]) < role_version:
            return False
        target = signed["targets"].get(target_name(model, version))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return target is None or target.get("hashes", {}).get("sha256") != manifest_sha256
