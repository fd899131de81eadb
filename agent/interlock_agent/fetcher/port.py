"""Where python-tuf's client gets its metadata files, and what is refused before it reads them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient.fetcher import FetcherInterface

from interlock_shared.errors import InterlockError, Later, Untrusted
from interlock_shared.limits import METADATA_MAX_BYTES
from interlock_shared.trust import different

ROTATIONS_MAX = 64  # of root, fetched in one walk; a device that slept longer goes on with the next


class MetadataSource(Protocol):
    """Where metadata files come from."""

    def metadata(self, name: str, limit: int) -> bytes | None:
        """The file of that name; None when there is none. Raises Unreachable."""

    def director(self, limit: int) -> bytes:
        """The bytes of the target director.json."""


class Port(FetcherInterface):
    """python-tuf's fetcher port over a source. `last_root(version)` is called where the roots end."""

    def __init__(self, source: MetadataSource, last_root: weakref.WeakMethod[Callable[[int], None]]) -> None:
        self._source, self._last_root = source, last_root
        self.trouble: InterlockError | None = None
        self._roots = 0

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rsplit("/", 1)[-1]
        is_root = name.endswith(".root.json")
        try:
            if not is_root and self._roots >= ROTATIONS_MAX:
                raise Later(f"metadata: {ROTATIONS_MAX} new roots, and perhaps more", code="more_roots")
            data = self._source.metadata(name, METADATA_MAX_BYTES)
            if data is not None:
                check_delegations(data)
        except InterlockError as error:
            self.trouble = error  # python-tuf would tell it as a failed download
            raise exceptions.DownloadError(error.message) from error
        if data is None:
            if is_root:
                heard = self._last_root()
                if heard is not None:
                    heard(int(name.split(".")[0]) - 1)
            raise exceptions.DownloadHTTPError(f"{name} is not there", 404)
        self._roots = self._roots + 1 if is_root else 0
        return iter((data,))


def check_delegations(data: bytes) -> None:
    """That whom a metadata file lets sign can be counted, whoever signed the file.

    python-tuf counts ids: one key under two ids would be two of a threshold (TAP 12, "each key only once"). Raises
    Untrusted (`key_exists`).
    """
    try:
        signed = Metadata[Any].from_bytes(data).signed
    except (exceptions.RepositoryError, ValueError, RecursionError):
        return  # python-tuf says what is wrong
    if isinstance(signed, Root):
        known, roles = signed.keys, list(signed.roles.items())
    elif isinstance(signed, Targets) and signed.delegations is not None:
        bins = signed.delegations.succinct_roles
        known, roles = signed.delegations.keys, list((signed.delegations.roles or {}).items())
        roles += [(bins.name_prefix, bins)] if bins is not None else []
    else:
        return
    for name, role in roles:
        keys = [known[keyid] for keyid in role.keyids if keyid in known]
        if different(keys) != len(keys):
            raise Untrusted(
                f"metadata: one of the keys of {name} is named twice, and would count twice",
                code="key_exists",
                role=name,
            )
