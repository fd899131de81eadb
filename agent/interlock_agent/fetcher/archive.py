"""A `.bundle` as a source: read once, front to back, also from a pipe. The form is `interlock_shared.archive`'s."""

from __future__ import annotations

import os
from collections.abc import Iterator

from interlock_shared.archive import Reader
from interlock_shared.errors import Untrusted
from interlock_shared.segments import Transport


class Archive:
    """The stream behind a descriptor, which is taken over. Reading the head does not look at a byte of payload.

    One without signatures is refused, unless it may be `bare`: of a release that is judged and not installed.
    Raises Invalid, Incompatible, Untrusted (`unsigned_bundle`, `no_permit`).
    """

    def __init__(self, descriptor: int, *, bare: bool = False) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=1024 * 1024)
        self._reader = Reader(self._file)
        try:
            self._take(bare)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _take(self, bare: bool) -> None:
        head = self._reader.head()
        self.signed = bool(head.metadata) and head.director is not None and head.permit is not None
        if not bare and (not head.metadata or head.director is None):
            raise Untrusted("bundle: carries no signatures; export it from the server", code="unsigned_bundle")
        if not bare and head.permit is None:
            raise Untrusted("bundle: carries no permit; export it from the server", code="no_permit")
        self.raw, self.manifest, self.permit = head.data, head.manifest, head.permit or b""
        self._metadata, self._director = head.metadata, head.director or b""

    def segments(self) -> Iterator[Transport]:
        """Every segment, in manifest order."""
        return self._reader.segments(self.manifest)

    def metadata(self, name: str, limit: int) -> bytes | None:
        """A TUF metadata file."""
        data = self._metadata.get(name)
        return data if data is None or len(data) <= limit else None

    def newest_root(self) -> int:
        """The version of the newest root in the file; 0 without one."""
        roots = [name.split(".")[0] for name in self._metadata if name.endswith(".root.json")]
        return max((int(number) for number in roots), default=0)

    def director(self, limit: int) -> bytes:
        """The target director.json."""
        return self._director[:limit]
