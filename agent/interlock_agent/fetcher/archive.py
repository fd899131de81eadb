"""A `.bundle` as a source: read once, front to back, also from a pipe.

The order of its members is fixed, so that trust, permit and manifest are known before a byte of payload is looked at.
Names are only compared; none becomes a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from interlock_shared import archive
from interlock_shared.archive import Member
from interlock_shared.errors import Invalid, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES, MANIFEST_MAX_BYTES, METADATA_MAX_BYTES, SEGMENT_MAX_BYTES

LIMITS = {
    "magic": 0,
    "metadata": METADATA_MAX_BYTES,
    "director": DOCUMENT_MAX_BYTES,
    "permit": DOCUMENT_MAX_BYTES,
    "manifest": MANIFEST_MAX_BYTES,
    "segment": SEGMENT_MAX_BYTES + 64 * 1024,
}


class Archive:
    """The stream behind a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=1024 * 1024)
        self._members = self._walk()
        self.files: dict[str, bytes] = {}  # metadata by name
        self.director_bytes = b""
        self.permit = b""
        self.manifest = b""

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise Invalid("bundle: ends before its content does", code="truncated", field="bundle")
        return data

    def _walk(self) -> Iterator[tuple[Member, bytes]]:
        rank = -1
        seen: set[str] = set()
        while True:
            header = archive.parse_header(self._exactly(archive.BLOCK))
            if header is None:
                return
            name, size = header
            if rank < 0 and name != archive.MAGIC:
                raise Invalid("bundle: not a bundle", code="not_a_bundle", field="bundle")
            member = archive.classify(name)
            place = archive.ORDER.index(member.kind)
            if place < rank or name in seen or (place == rank and member.kind not in ("metadata", "segment")):
                raise Invalid(f"bundle: member {name} is out of order", code="foreign_member", field="bundle")
            if size > LIMITS[member.kind]:
                raise Invalid(f"bundle: member {name} declares {size} bytes", code="too_large", field="bundle")
            rank = place
            seen.add(name)
            if member.kind == "metadata" and len(seen) > archive.METADATA_FILES_MAX:
                raise Invalid("bundle: too many metadata files", code="too_large", field="bundle")
            data = self._exactly(size)
            self._exactly(archive.padding(size))
            yield member, data

    def read_head(self) -> None:
        """Everything before the first segment. Raises Invalid, Untrusted."""
        for member, data in self._members:
            if member.kind == "metadata":
                self.files[member.name] = data
            elif member.kind == "director":
                self.director_bytes = data
            elif member.kind == "permit":
                self.permit = data
            elif member.kind == "manifest":
                self.manifest = data
                break
        if not self.manifest:
            raise Invalid("bundle: no manifest", code="truncated", field="bundle")
        if not self.files or not self.director_bytes:
            raise Untrusted("bundle: carries no signatures; export it from the server", code="unsigned_bundle")
        if not self.permit:
            raise Untrusted("bundle: carries no permit; export it from the server", code="no_permit")

    def segments(self) -> Iterator[tuple[Member, bytes]]:
        """The segments, in manifest order."""
        return self._members

    def drain(self) -> None:
        """Read what is left, so that a pipe's writer ends well."""
        while self._file.read(1024 * 1024):
            pass

    # --- metadata -----------------------------------------------------------------------------------------------

    def metadata(self, name: str, limit: int) -> bytes | None:
        """A TUF metadata file."""
        data = self.files.get(name)
        return data if data is None or len(data) <= limit else None

    def director(self, limit: int) -> bytes:
        """The target director.json."""
        return self.director_bytes[:limit]
