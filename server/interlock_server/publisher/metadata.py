"""TUF metadata on this side: which files belong together, and whether a root vouches for them.

The checks are python-tuf's client, fed from memory: the same code for what a server gives and for what a file carries.
Nothing that was not verified is signed on top of, exported, or called good.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import unquote

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Signed, Snapshot, TargetFile, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from interlock_shared import canonical
from interlock_shared.base import check_speakable, validate
from interlock_shared.documents import DIRECTOR_SCHEMA, Director
from interlock_shared.errors import Invalid, NotFound, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES, METADATA_MAX_BYTES
from interlock_shared.topics import DIRECTOR_TARGET, ROOT_EXTENSION, ROOT_SIDELOAD, release_role

ROOTS_MAX = 256  # rotations that are followed; python-tuf's own default
URL = "memory:///"

S = TypeVar("S", bound=Signed)

Get = Callable[[str], Awaitable[bytes | None]]
"""One metadata file by name; None when there is none."""


class _Memory(FetcherInterface):
    """python-tuf's fetcher port over files in memory."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._files.get(unquote(url.removeprefix(URL)))
        if data is None:
            raise DownloadHTTPError(f"there is no {url.removeprefix(URL)}", 404)
        yield data

    def fetch(self, url: str) -> Iterator[bytes]:
        """A generator would raise only when it is read, outside python-tuf's translation."""
        return iter(list(self._fetch(url)))


@dataclass(frozen=True)
class Chain:
    """Verified metadata of one model: the root that vouches, the role's metadata, targets asked for by name."""

    files: dict[str, bytes]
    role: Metadata[Any]
    targets: dict[str, TargetFile]
    root: bytes = b""  # the newest one that vouches

    def may_sign(self, role: str) -> frozenset[str]:
        """The key ids that count for a role that targets delegates to."""
        data = next(data for name, data in self.files.items() if name.endswith(".targets.json"))
        delegations = Metadata[Any].from_bytes(data).signed.delegations
        known = (delegations.roles or {}).get(role) if delegations else None
        return frozenset(known.keyids) if known else frozenset()

    def matches(self, name: str, data: bytes) -> bool:
        """Whether `data` is exactly the target of that name."""
        target = self.targets.get(name)
        return target is not None and (target.length, target.hashes.get("sha256")) == (
            len(data),
            canonical.sha256(data),
        )


def parsed(data: bytes | None, name: str, kind: type[S]) -> S:
    """The content of one metadata file, unverified. Raises NotFound (`no_trust`), Untrusted (`bad_metadata`, …)."""
    if data is None and name == "timestamp.json":
        raise NotFound("the server has no trust metadata yet: `interlock keys init`", code="no_trust")
    if data is None:
        raise Untrusted(f"metadata: there is no {name}", code="incomplete_metadata")
    try:
        content = Metadata[Any].from_bytes(data).signed
    except Exception as bad:  # noqa: BLE001 - python-tuf lets parsers' own errors through
        raise Untrusted(f"metadata: {name}: {bad}", code="bad_metadata") from None
    if not isinstance(content, kind):
        raise Untrusted(f"metadata: {name} is {content.type} metadata", code="bad_metadata")
    return content


async def collect(get: Get, model: str, *, first_root: int = 1) -> dict[str, bytes]:
    """All files that say something about a model, in the order of an archive. Nothing is verified yet.

    Raises Untrusted (`incomplete_metadata`), and what `get` raises.
    """
    files: dict[str, bytes] = {}
    for version in range(first_root, first_root + ROOTS_MAX):
        data = await get(f"{version}.root.json")
        if data is None:
            break
        files[f"{version}.root.json"] = data
    timestamp = await get("timestamp.json")
    name = f"{parsed(timestamp, 'timestamp.json', Timestamp).snapshot_meta.version}.snapshot.json"
    files["timestamp.json"] = timestamp or b""
    files[name] = await _need(get, name)
    snapshot = parsed(files[name], name, Snapshot)
    for role in ("targets", release_role(model)):
        meta = snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise Untrusted(
                f"metadata: no key may release {model!r}: `interlock keys add-model {model}`", code="unknown_model"
            )
        name = f"{meta.version}.{role}.json"
        files[name] = await _need(get, name)
    return files


async def _need(get: Get, name: str) -> bytes:
    data = await get(name)
    if data is None:
        raise Untrusted(f"metadata: there is no {name}", code="incomplete_metadata")
    return data


def verify(
    root: bytes, files: Mapping[str, bytes], model: str, targets: list[str], *, file_at: datetime | None = None
) -> Chain:
    """TUF's client workflow from `root` on, then each of `targets` (one that is not there is left out). Blocks.

    `file_at`: it is a file that is judged at that time. What is signed offline must hold then; timestamp and snapshot
    are checked for signature and version alone, since the permit says how long a file is good for.

    Raises Untrusted (`bad_signature`, `expired`, `incomplete_metadata`), Invalid on a root that is none.
    """
    config = UpdaterConfig(
        max_root_rotations=ROOTS_MAX,
        root_max_length=METADATA_MAX_BYTES,
        timestamp_max_length=METADATA_MAX_BYTES,
        snapshot_max_length=METADATA_MAX_BYTES,
        targets_max_length=METADATA_MAX_BYTES,
    )
    with tempfile.TemporaryDirectory(prefix="interlock-") as folder, _translated():
        updater = Updater(folder, URL, fetcher=_Memory(files), config=config, bootstrap=root)
        if file_at is not None:  # there is no parameter for it; nothing has expired at the beginning of time
            updater._trusted_set.reference_time = datetime.fromtimestamp(0, UTC)  # noqa: SLF001
        updater.refresh()
        found = {name: updater.get_targetinfo(name) for name in [DIRECTOR_TARGET, *targets]}
        # A name that no release has: python-tuf loads and verifies the role on the way to its answer.
        updater.get_targetinfo(f"{model}/-/manifest.json")
        path = f"{folder}/{release_role(model)}.json"
        try:
            with open(path, "rb") as file:
                role = Metadata[Any].from_bytes(file.read())
        except FileNotFoundError:
            raise Untrusted(f"metadata: no key may release {model!r}", code="unknown_model") from None
        newest = _read(folder, "root")
        if file_at is not None:
            for name in ("root", "targets", release_role(model)):
                signed = Metadata[Any].from_bytes(_read(folder, name)).signed
                if signed.is_expired(file_at):
                    raise Untrusted(f"metadata: {name} expired on {signed.expires:%Y-%m-%dT%H:%M:%SZ}", code="expired")
    return Chain(dict(files), role, {name: one for name, one in found.items() if one is not None}, newest)


def _read(folder: str, role: str) -> bytes:
    with open(f"{folder}/{role}.json", "rb") as file:
        return file.read()


def sideload_keys(root: bytes) -> dict[str, Any]:
    """The keys beside the director's that a verified root lets sign permits: `x-interlock.sideload`."""
    extension = read_root(root, "root").signed.unrecognized_fields.get(ROOT_EXTENSION)
    found = extension.get(ROOT_SIDELOAD) if isinstance(extension, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """python-tuf's errors as ours."""
    try:
        yield
    except ExpiredMetadataError as bad:
        raise Untrusted(f"metadata: {bad}", code="expired") from None
    except DownloadError as bad:
        raise Untrusted(f"metadata: {bad}", code="incomplete_metadata") from None
    except RepositoryError as bad:
        raise Untrusted(f"metadata: {bad}", code="bad_signature") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as bad:
        raise Untrusted(f"metadata: {bad}", code="bad_metadata") from None


def director(data: bytes | None, chain: Chain) -> Director:
    """The director's document, which `targets` vouches for. Raises Untrusted, Invalid, Incompatible."""
    if data is None or not chain.matches(DIRECTOR_TARGET, data):
        raise Untrusted("director.json is not the one that targets has signed", code="target_mismatch")
    document = canonical.decode(data, limit=DOCUMENT_MAX_BYTES, what="director")
    check_speakable(document, DIRECTOR_SCHEMA, "director")
    return validate(Director, document, "director")


def read_root(data: bytes, what: str) -> Metadata[Any]:
    """A root as an object, unverified. Raises Invalid."""
    try:
        metadata = Metadata[Any].from_bytes(data)
        if metadata.signed.type != "root":
            raise ValueError(f"it is {metadata.signed.type} metadata")
    except Exception as bad:  # noqa: BLE001 - python-tuf lets parsers' own errors through
        raise Invalid(f"{what}: not root metadata: {bad}", code="bad_metadata", field=what) from None
    return metadata
