"""The single-file form of a release, `detector-1.4.0.bundle`: a plain tar in a fixed order, readable once from front
to back, also from a pipe.

Members, in this order and under these names; no name is ever used as a path:

    interlock.bundle/1                     empty, says what the file is
    metadata/N.root.json …                 every root from 1 on, in order
    metadata/timestamp.json
    metadata/N.snapshot.json
    metadata/N.targets.json
    metadata/N.ROLE.json                   the delegated role of the model
    target/director.json                   who may sign the permit
    permit.json                            DSSE envelope
    manifest.json                          canonical bytes
    segment/SHA256 or segment/SHA256.zst   each distinct segment once, in manifest order

A bundle that was built and not yet published (`interlock bundle build`) has no metadata, target and permit members.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from interlock_shared.errors import Invalid
from interlock_shared.segments import IDENTITY, ZSTD

MAGIC = "interlock.bundle/1"
PERMIT = "permit.json"
MANIFEST = "manifest.json"
DIRECTOR = "target/director.json"
METADATA_FILES_MAX = 1024 + 8  # python-tuf follows at most 256 root rotations by default; far above need
MTIME = 0  # every member: building twice gives the same bytes

_METADATA = re.compile(r"^metadata/((?:[0-9]{1,10}\.)?[a-z0-9][a-z0-9._-]{0,100}\.json)$")
_SEGMENT = re.compile(r"^segment/([0-9a-f]{64})(\.zst)?$")

ORDER = ("magic", "metadata", "director", "permit", "manifest", "segment")


@dataclass(frozen=True)
class Member:
    """What a member is: `kind` of ORDER, `name` (metadata file name or digest), `form` of a segment."""

    kind: str
    name: str
    form: str = IDENTITY


def classify(name: str) -> Member:
    """The member of that name. Raises Invalid for any other name."""
    plain = {MAGIC: "magic", PERMIT: "permit", MANIFEST: "manifest", DIRECTOR: "director"}
    if name in plain:
        return Member(plain[name], name)
    metadata = _METADATA.match(name)
    if metadata:
        return Member("metadata", metadata.group(1))
    segment = _SEGMENT.match(name)
    if segment:
        return Member("segment", segment.group(1), ZSTD if segment.group(2) else IDENTITY)
    raise Invalid(f"bundle: member {name[:80]!r} has no place in a bundle", code="foreign_member", field="bundle")


def segment_name(sha256: str, form: str) -> str:
    """The member name of a segment."""
    return f"segment/{sha256}" + (".zst" if form == ZSTD else "")


BLOCK = 512  # of a tar


def parse_header(block: bytes) -> tuple[str, int] | None:
    """(name, size) of a tar header; None for the end marker. Only plain files in POSIX ustar form have a place in a
    bundle: links, sparse files, extended headers and folders are refused before any of their bytes is read.

    Raises Invalid. Format: POSIX.1-1988, pax "ustar Interchange Format".
    """
    if len(block) != BLOCK:
        raise Invalid("bundle: ends in the middle of a header", code="truncated", field="bundle")
    if block == b"\0" * BLOCK:
        return None
    total = sum(block[:148]) + 8 * 0x20 + sum(block[156:])
    if block[257:262] != b"ustar" or _octal(block[148:156]) != total:
        raise Invalid("bundle: not a bundle (no tar header where one must be)", code="not_a_bundle", field="bundle")
    if block[156:157] not in (b"0", b"\0"):
        raise Invalid("bundle: holds something that is not a plain file", code="foreign_member", field="bundle")
    if block[345:500].strip(b"\0"):
        raise Invalid("bundle: a member's name is too long", code="foreign_member", field="bundle")
    try:
        name = block[:100].rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise Invalid("bundle: a member's name is not ASCII", code="foreign_member", field="bundle") from None
    return name, _octal(block[124:136])


def _octal(digits: bytes) -> int:
    text = digits.strip(b" \0")
    if not text or any(byte not in b"01234567" for byte in text):
        raise Invalid("bundle: a number in a tar header is malformed", code="not_a_bundle", field="bundle")
    return int(text, 8)


def padding(size: int) -> int:
    """Bytes after a member's content, up to the next block."""
    return -size % BLOCK
