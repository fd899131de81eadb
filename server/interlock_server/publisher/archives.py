"""The single-file bundle: written in a fixed order, read once from front to back, also from a pipe.

Every member's header has exactly one form (a plain file, no owner, no time), so the reader does not interpret tar: it
rebuilds the header it expects and compares. Links, sparse files, long names and prefixes cannot get in that way, and no
name is ever used as a path. `Head` is everything before the segments; segments are handed out one at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from interlock_server.publisher.payload import Transport
from interlock_shared import archive, durable, manifest
from interlock_shared.archive import Member
from interlock_shared.errors import Invalid, NoSpace, Untrusted
from interlock_shared.limits import DOCUMENT_MAX_BYTES, MANIFEST_MAX_BYTES, METADATA_MAX_BYTES, SEGMENT_MAX_BYTES
from interlock_shared.manifest import Manifest, SegmentRef

BLOCK = tarfile.BLOCKSIZE
MODE = 0o644
METADATA_TOTAL_MAX_BYTES = 64 * 1024 * 1024  # all metadata is held in memory at once
# A segment that would grow when compressed travels as it is, so that no member is longer than its content.
LIMITS = {
    "magic": 0,
    "metadata": METADATA_MAX_BYTES,
    "director": DOCUMENT_MAX_BYTES,
    "permit": DOCUMENT_MAX_BYTES,
    "manifest": MANIFEST_MAX_BYTES,
    "segment": SEGMENT_MAX_BYTES,
}

_SIZE = re.compile(rb"^([0-7]{11})\0$")


@dataclass
class Head:
    """What a bundle carries before its segments. Metadata by file name, in the archive's order."""

    data: bytes
    manifest: Manifest
    metadata: dict[str, bytes] = field(default_factory=dict)
    director: bytes | None = None
    permit: bytes | None = None


# --- writing --------------------------------------------------------------------------------------------------------


def header(name: str, size: int) -> bytes:
    """The one header that a member of that name and size has."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, MODE, archive.MTIME
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _put(out: BinaryIO, name: str, data: bytes) -> int:
    padding = -len(data) % BLOCK
    out.write(header(name, len(data)))
    out.write(data)
    out.write(b"\0" * padding)
    return BLOCK + len(data) + padding


def write(out: BinaryIO, head: Head, segments: Iterable[Transport]) -> int:
    """Write all members; the number of bytes. Raises OSError."""
    count = _put(out, archive.MAGIC, b"")
    for name, data in head.metadata.items():
        count += _put(out, f"metadata/{name}", data)
    for name, document in ((archive.DIRECTOR, head.director), (archive.PERMIT, head.permit)):
        if document is not None:
            count += _put(out, name, document)
    count += _put(out, archive.MANIFEST, head.data)
    for one in segments:
        count += _put(out, archive.segment_name(one.sha256, one.form), one.data)
    ending = 2 * BLOCK + -(count + 2 * BLOCK) % tarfile.RECORDSIZE
    out.write(b"\0" * ending)
    return count + ending


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name once it is complete and on disk. Raises NoSpace, Invalid."""
    temporary = path.parent / f"{durable.TEMPORARY_PREFIX}{path.name[:100]}-{os.getpid()}"
    try:
        with temporary.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(path)
        durable.fsync_folder(path.parent)
    except OSError as bad:
        kind = NoSpace if bad.errno in {28, 122} else Invalid  # ENOSPC, EDQUOT
        raise kind(f"{path}: {bad.strerror or bad}", code="no_space" if kind is NoSpace else "cannot_write") from None
    finally:
        temporary.unlink(missing_ok=True)


# --- reading --------------------------------------------------------------------------------------------------------


def _exactly(stream: BinaryIO, count: int, what: str) -> bytes:
    parts, missing = [], count
    while missing:
        part = stream.read(missing)
        if not part:
            raise Invalid(f"bundle: it ends within {what}", code="truncated", field="bundle")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _refuse(problem: str, code: str = "bad_archive") -> Invalid:
    return Invalid(f"bundle: {problem}", code=code, field="bundle")


def _size(block: bytes, name: str) -> int:
    found = _SIZE.match(block[124:136])
    if not found:  # also GNU's form for more than 8 GiB: no member is that long
        raise _refuse(f"member {name[:80]!r} declares a size that no member has", "too_large")
    return int(found[1], 8)


def _next(stream: BinaryIO) -> tuple[Member, str, int] | None:
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
    member = archive.classify(name)
    size = _size(block, name)
    if size > LIMITS[member.kind]:
        raise _refuse(f"{name}: {size} bytes, at most {LIMITS[member.kind]} are read", "too_large")
    if block != header(name, size):
        raise _refuse(f"{name}: its header is not as it must be")
    return member, name, size


def _body(stream: BinaryIO, name: str, size: int) -> bytes:
    data = _exactly(stream, size, name)
    if any(_exactly(stream, -size % BLOCK, name)):
        raise _refuse(f"{name}: something stands behind its end")
    return data


def _end(stream: BinaryIO) -> None:
    """The second zero block, and padding up to a record: nothing but zeros, and not more of them."""
    rest = b""
    while len(rest) <= tarfile.RECORDSIZE and (more := stream.read(tarfile.RECORDSIZE + 1 - len(rest))):
        rest += more
    if len(rest) < BLOCK:
        raise _refuse("it ends before its end mark", "truncated")
    if len(rest) > tarfile.RECORDSIZE or any(rest):
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

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._next: tuple[Member, str, int] | None = None

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
            if archive.ORDER.index(member.kind) < last or member.kind in {"magic", "segment"}:
                raise _refuse(f"{name} is not in its place", "wrong_order")
            last = archive.ORDER.index(member.kind)
            into = metadata if member.kind == "metadata" else found
            key = member.name if member.kind == "metadata" else member.kind
            if key in into:
                raise _refuse(f"{name} occurs twice", "duplicate_member")
            held += size
            if held > METADATA_TOTAL_MAX_BYTES or len(metadata) >= archive.METADATA_FILES_MAX:
                raise _refuse("it carries more metadata than any repository has", "too_large")
            into[key] = _body(self._stream, name, size)
        data = found["manifest"]
        _check_order(list(metadata))
        return Head(data, manifest.parse(data), metadata, found.get("director"), found.get("permit"))

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
        if size > ref.size:
            raise Untrusted(f"bundle: {name[:30]}…: longer than the manifest says", code="segment_mismatch")
        return Transport(ref.sha256, ref.size, member.form, _body(self._stream, name, size))
