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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from interlock_shared.errors import Invalid, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES, MANIFEST_MAX_BYTES, METADATA_MAX_BYTES, MIB, SEGMENT_MAX_BYTES
from interlock_shared.manifest import Manifest, SegmentRef, parse
from interlock_shared.segments import IDENTITY, ZSTD, Transport

MAGIC = "interlock.bundle/1"
PERMIT = "permit.json"
MANIFEST = "manifest.json"
DIRECTOR = "target/director.json"
METADATA_FILES_MAX = 1024 + 8  # python-tuf follows at most 256 root rotations by default; far above need
HEAD_MAX_BYTES = 64 * MIB  # what comes before the segments is held in memory at once
MEMBER_MAX_BYTES = {
    "magic": 0,
    "metadata": METADATA_MAX_BYTES,
    "director": DOCUMENT_MAX_BYTES,
    "permit": DOCUMENT_MAX_BYTES,
    "manifest": MANIFEST_MAX_BYTES,
    "segment": SEGMENT_MAX_BYTES,
}
BLOCK = 512  # of a tar
RECORD = 20 * BLOCK  # an archive is padded to a multiple of it
MTIME = 0  # every member: building twice gives the same bytes

_METADATA = re.compile(r"^metadata/((?:[0-9]{1,10}\.)?[a-z0-9][a-z0-9._-]{0,100}\.json)$")
_SIZE = re.compile(rb"^([0-7]{11})\0$")
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


# --- one form of header ---------------------------------------------------------------------------------------------
# A member's header has exactly one form: a plain file, no owner, no time. So the reader does not interpret tar: it
# builds the header that it expects and compares. Links, sparse files, extended headers, long names and prefixes cannot
# get in that way.


def header(name: str, size: int) -> bytes:
    """The one header that a member of that name and size has: POSIX.1-1988 ustar, 512 bytes."""
    fields = name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    fields += b"%011o\0" % size + b"%011o\0" % MTIME
    rest = (b"0" + b"\0" * 100 + b"ustar\x0000").ljust(BLOCK - 156, b"\0")
    total = sum(fields) + 8 * ord(" ") + sum(rest)
    return fields + b"%06o\0 " % total + rest


def padding(size: int) -> int:
    """Bytes after a member's content, up to the next block."""
    return -size % BLOCK


def _refuse(problem: str, code: str = "bad_archive") -> Invalid:
    return Invalid(f"bundle: {problem}", code=code, field="bundle")


# --- reading --------------------------------------------------------------------------------------------------------


class Stream(Protocol):
    """What is read: a file, a pipe."""

    def read(self, size: int, /) -> bytes:
        """At most that many bytes; none at the end."""


@dataclass
class Head:
    """What a bundle carries before its segments. Metadata by file name, in the archive's order."""

    data: bytes
    manifest: Manifest
    metadata: dict[str, bytes] = field(default_factory=dict)
    director: bytes | None = None
    permit: bytes | None = None


def _exactly(stream: Stream, count: int, what: str) -> bytes:
    parts, missing = [], count
    while missing:
        part = stream.read(missing)
        if not part:
            raise _refuse(f"it ends within {what}", "truncated")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _next(stream: Stream) -> tuple[Member, str, int] | None:
    """The next member's header; None at the end. Raises Invalid, never trusting a byte of it."""
    block = _exactly(stream, BLOCK, "a member's header")
    if not any(block):
        return None
    raw = block[:100].rstrip(b"\0")
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        raise _refuse(f"member {raw[:40]!r} has no place in a bundle", "foreign_member") from None
    if block[156:157] != b"0":
        raise _refuse(f"member {name[:80]!r} is no plain file", "not_a_plain_file")
    member = classify(name)
    found = _SIZE.match(block[124:136])
    if not found:  # also GNU's form for more than 8 GiB: no member is that long
        raise _refuse(f"member {name[:80]!r} declares a size that no member has", "too_large")
    size = int(found[1], 8)
    if size > MEMBER_MAX_BYTES[member.kind]:
        raise _refuse(f"{name}: {size} bytes, at most {MEMBER_MAX_BYTES[member.kind]} are read", "too_large")
    if block != header(name, size):
        raise _refuse(f"{name}: its header is not as it must be")
    return member, name, size


def _body(stream: Stream, name: str, size: int) -> bytes:
    data = _exactly(stream, size, name)
    if any(_exactly(stream, padding(size), name)):
        raise _refuse(f"{name}: something stands behind its end")
    return data


def _end(stream: Stream) -> None:
    """The second zero block, and padding up to a record: nothing but zeros, and not more of them."""
    rest = b""
    while len(rest) <= RECORD and (more := stream.read(RECORD + 1 - len(rest))):
        rest += more
    if len(rest) < BLOCK:
        raise _refuse("it ends before its end mark", "truncated")
    if len(rest) > RECORD or any(rest):
        raise _refuse("something stands behind its end")


def _check_order(names: list[str]) -> None:
    """Roots from 1 on, timestamp, snapshot, targets, one release role. Raises Invalid (`wrong_order`)."""
    roots = len([name for name in names if name.endswith(".root.json")])
    wanted = [rf"{number + 1}\.root" for number in range(roots)]
    wanted += ["timestamp", r"[0-9]+\.snapshot", r"[0-9]+\.targets", r"[0-9]+\.release-.+"]
    fits = [re.fullmatch(pattern + r"\.json", name) for pattern, name in zip(wanted, names, strict=False)]
    if names and (len(names) != len(wanted) or not roots or not all(fits)):
        raise _refuse("its metadata is not complete, or not in order", "wrong_order")


class Reader:
    """One bundle, front to back. `head` first, then `segments` once."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def head(self) -> Head:
        """All members up to the manifest. Raises Invalid, Incompatible."""
        first = _next(self._stream)
        if first is None or first[0].kind != "magic":
            raise _refuse("it does not begin as a bundle does", "not_a_bundle")
        metadata: dict[str, bytes] = {}
        found: dict[str, bytes] = {}
        held, last = 0, 0
        while "manifest" not in found:
            entry = _next(self._stream)
            if entry is None:
                raise _refuse("it has no manifest", "truncated")
            member, name, size = entry
            if ORDER.index(member.kind) < last or member.kind in {"magic", "segment"}:
                raise _refuse(f"{name} is not in its place", "wrong_order")
            last = ORDER.index(member.kind)
            into = metadata if member.kind == "metadata" else found
            key = member.name if member.kind == "metadata" else member.kind
            if key in into:
                raise _refuse(f"{name} occurs twice", "duplicate_member")
            held += size
            if held > HEAD_MAX_BYTES or len(metadata) >= METADATA_FILES_MAX:
                raise _refuse("it carries more metadata than any repository has", "too_large")
            into[key] = _body(self._stream, name, size)
        data = found["manifest"]
        _check_order(list(metadata))
        return Head(data, parse(data), metadata, found.get("director"), found.get("permit"))

    def segments(self, wanted: Manifest) -> Iterator[Transport]:
        """Each segment of the manifest, in its order, not unpacked yet. Raises Invalid, Untrusted."""
        for ref in wanted.segments().values():
            yield self._segment(ref)
        if _next(self._stream) is not None:
            raise _refuse("a member stands behind the last segment", "foreign_member")
        _end(self._stream)

    def _segment(self, ref: SegmentRef) -> Transport:
        entry = _next(self._stream)
        if entry is None:
            raise _refuse(f"segment {ref.sha256[:12]}… is missing", "truncated")
        member, name, size = entry
        if member.kind != "segment" or member.name != ref.sha256:
            raise _refuse(f"{name[:80]} is not in its place", "wrong_order")
        if size > ref.size:  # one that would grow when compressed travels as it is
            raise Untrusted(f"bundle: {name[:30]}…: longer than the manifest says", code="segment_mismatch")
        return Transport(ref.sha256, ref.size, member.form, _body(self._stream, name, size))
