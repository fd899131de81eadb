"""Metadata alone, through python-tuf's client; and what it does not do: durability, floors, the time floor.

1. The embedded root is the only anchor, always given; the cached root.json is never one.
2. Time is the caller's floor, not the clock's word.
3. python-tuf walks root, timestamp, snapshot, targets, delegated role (TUF 1.0.x, §5).
4. What it wrote is made durable: it neither syncs nor replaces its files atomically.
5. No role may end below its floor, whatever the files say: a torn store would accept an older repository.
6. The director's document is a target, and its epoch never falls.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from tuf.api import exceptions
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from interlock_shared import canonical, durable
from interlock_shared.base import validate
from interlock_shared.documents import DIRECTOR_SCHEMA, Director
from interlock_shared.errors import Invalid, NotFound, Unreachable, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES, METADATA_MAX_BYTES
from interlock_shared.topics import DIRECTOR_TARGET, release_role, target_name

TOP_ROLES = ("root", "timestamp", "snapshot", "targets")
MAX_ROOT_ROTATIONS = 64  # in one refresh; a device that slept longer catches up in several
MAX_DELEGATIONS = 4  # ours are one level deep

logging.getLogger("tuf").setLevel(logging.ERROR)


class MetadataSource(Protocol):
    """Where metadata files come from."""

    def metadata(self, name: str, limit: int) -> bytes | None:
        """The file of that name; None when there is none. Raises Unreachable."""

    def director(self, limit: int) -> bytes:
        """The bytes of the target director.json."""


class _Port(FetcherInterface):
    """python-tuf's fetcher port over a source."""

    def __init__(self, source: MetadataSource) -> None:
        self._source = source
        self.trouble: Unreachable | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rsplit("/", 1)[-1]
        try:
            data = self._source.metadata(name, METADATA_MAX_BYTES)
        except Unreachable as error:
            self.trouble = error  # python-tuf would tell it as a failed download
            raise exceptions.DownloadError(error.message) from error
        if data is None:
            raise exceptions.DownloadHTTPError(f"{name} is not there", 404)
        return iter((data,))


class Trust:
    """One refresh. `folder` keeps the metadata between refreshes; a fresh one knows nothing but the embedded root."""

    def __init__(self, root: bytes, folder: Path, source: MetadataSource, now: float) -> None:
        self._folder = folder
        self._source = source
        self._port = _Port(source)
        folder.mkdir(parents=True, exist_ok=True)
        config = UpdaterConfig(
            max_root_rotations=MAX_ROOT_ROTATIONS,
            max_delegations=MAX_DELEGATIONS,
            root_max_length=METADATA_MAX_BYTES,
            timestamp_max_length=METADATA_MAX_BYTES,
            snapshot_max_length=METADATA_MAX_BYTES,
            targets_max_length=METADATA_MAX_BYTES,
        )
        try:
            self._updater = Updater(  # 1
                str(folder), "metadata:/", fetcher=self._port, config=config, bootstrap=root
            )
        except (exceptions.RepositoryError, ValueError) as bad:
            raise Untrusted(f"the embedded root is not usable: {bad}", code="bad_root") from None
        # 2: there is no parameter for it; tests/fetcher holds that the attribute is still the one python-tuf reads
        self._updater._trusted_set.reference_time = datetime.fromtimestamp(now, tz=timezone.utc)  # noqa: SLF001

    def refresh(self, floors: dict[str, Any]) -> dict[str, Any]:
        """Steps 3 to 5 for the top-level roles; the new floors. Raises Untrusted, Unreachable."""
        self._guarded(self._updater.refresh)
        return self._durable_floors(floors, TOP_ROLES)

    def _guarded(self, walk: Any, *arguments: Any) -> Any:
        try:
            return walk(*arguments)  # 3
        except exceptions.DownloadError as error:
            if self._port.trouble is not None:
                raise self._port.trouble from None
            raise Untrusted(f"metadata: {error}", code="metadata_missing") from None
        except exceptions.ExpiredMetadataError as error:
            raise Untrusted(f"metadata: {error}", code="metadata_expired") from None
        except exceptions.RepositoryError as error:
            raise Untrusted(f"metadata: {error}", code="bad_metadata") from None
        except OSError as error:
            raise Unreachable(f"metadata could not be stored: {error.strerror}", code="io") from None

    def _durable_floors(self, floors: dict[str, Any], roles: tuple[str, ...]) -> dict[str, Any]:
        durable.sync_tree(self._folder)  # 4
        raised = dict(floors)
        for role in roles:
            version = self.version(role)
            if version is None:
                continue
            if version < int(floors.get(role, 0)):  # 5
                raise Untrusted(
                    f"metadata: {role} {version} is below the floor {floors[role]}", code="below_floor", role=role
                )
            raised[role] = version
        raised["root_sha256"] = canonical.sha256((self._folder / "root.json").read_bytes())
        return raised

    def version(self, role: str) -> int | None:
        """The version of a role's trusted file; None when there is none."""
        try:
            return int(Metadata.from_file(str(self._folder / f"{role}.json")).signed.version)
        except (exceptions.RepositoryError, exceptions.StorageError, OSError):
            return None

    def director(self, epoch: int) -> dict[str, Any]:
        """Step 6: `{"epoch", "keys"}`. Raises Untrusted, Invalid."""
        target = self._target(DIRECTOR_TARGET)
        data = self._source.director(DOCUMENT_MAX_BYTES)
        _matches(target, data, DIRECTOR_TARGET)
        document = canonical.decode(data, limit=DOCUMENT_MAX_BYTES, what="director")
        if document.get("schema") != DIRECTOR_SCHEMA:
            raise Invalid(f"director: schema {document.get('schema')!r}", code="unknown_schema", field="schema")
        director = validate(Director, document, "director")
        if director.epoch < epoch:
            raise Untrusted(f"director: epoch {director.epoch} is below {epoch}", code="below_floor", role="director")
        return {"epoch": director.epoch, "keys": director.keys}

    def _target(self, name: str) -> TargetFile:
        target: TargetFile | None = self._guarded(self._updater.get_targetinfo, name)
        if target is None:
            raise NotFound(f"{name} is not among the signed targets", code="not_a_target")
        return target

    def release(self, model: str, version: str, manifest_sha256: str, floors: dict[str, Any]) -> dict[str, Any]:
        """That this manifest is a signed target of the model's role; the new floors. Raises Untrusted."""
        try:
            target = self._target(target_name(model, version))
        except NotFound as missing:
            raise Untrusted(f"{model} {version}: {missing.message}", code="not_signed") from None
        if target.hashes.get("sha256") != manifest_sha256:
            raise Untrusted(f"{model} {version}: the signed manifest is another one", code="manifest_mismatch")
        return self._durable_floors(floors, (release_role(model),))

    def check_offline_roles(self, model: str, now: float) -> None:
        """That what is signed offline holds *now*, where the online roles were judged at an earlier time (a file).
        Raises Untrusted (`metadata_expired`)."""
        moment = datetime.fromtimestamp(now, tz=timezone.utc)
        for role in ("root", "targets", release_role(model)):
            try:
                expired = Metadata.from_file(str(self._folder / f"{role}.json")).signed.is_expired(moment)
            except (exceptions.RepositoryError, exceptions.StorageError, OSError) as bad:
                raise Untrusted(f"metadata: {role}: {bad}", code="bad_metadata") from None
            if expired:
                raise Untrusted(f"metadata: {role} has expired", code="metadata_expired")


def _matches(target: TargetFile, data: bytes, what: str) -> None:
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
