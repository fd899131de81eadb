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
