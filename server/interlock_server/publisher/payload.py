"""Payload on its way out: regular files of one folder, cut, hashed, compressed; never held as a whole.

What leaves is checked against the manifest again: a file that changed after it was hashed is an error, not a release.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO

import zstandard

from interlock_shared import segments
from interlock_shared.errors import Conflict, Invalid, Untrusted
from interlock_shared.limits import COMPRESS_WORTH, FILE_MAX_BYTES, SEGMENT_MAX_BYTES
from interlock_shared.manifest import File, Manifest, SegmentRef
from interlock_shared.segments import Transport

ZSTD_LEVEL = 3  # weights hardly compress: a higher level costs minutes and saves nothing

Progress = Callable[[int], None]
"""Told how many bytes of payload were dealt with."""


def silent(_count: int) -> None:
    """Progress for those who do not watch."""


def open_plain(path: Path) -> BinaryIO:
    """A regular file that is no link. Raises Invalid (`not_a_plain_file`, `missing_file`)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Invalid(f"{path.name}: there is no such file in {path.parent}", code="missing_file") from None
    except OSError as bad:
        problem = "it is a link" if path.is_symlink() else str(bad.strerror)
        raise Invalid(f"{path.name}: {problem}; a bundle takes plain files", code="not_a_plain_file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Invalid(f"{path.name}: a bundle takes plain files", code="not_a_plain_file")
    return os.fdopen(descriptor, "rb")


def describe(path: Path, progress: Progress = silent) -> File:
    """Cut and hash one file, in one pass. Raises Invalid."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > FILE_MAX_BYTES:
            raise Invalid(f"{path.name}: {size} bytes, at most {FILE_MAX_BYTES} are carried", code="too_large")
        whole, refs = hashlib.sha256(), []
        for _, length in segments.cut(size):
            content = file.read(length)
            if len(content) != length:
                raise Conflict(f"{path.name}: it changed while it was read", code="file_changed")
            whole.update(content)
            refs.append(SegmentRef(sha256=hashlib.sha256(content).hexdigest(), size=length))
            progress(length)
        if file.read(1):
            raise Conflict(f"{path.name}: it changed while it was read", code="file_changed")
    return File(name=path.name, size=size, sha256=whole.hexdigest(), segments=tuple(refs))


def compress(sha256: str, content: bytes) -> Transport:
    """The form a segment travels in. The same content gives the same bytes."""
    packed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(content)
    if len(packed) <= COMPRESS_WORTH * len(content):
        return Transport(sha256, len(content), segments.ZSTD, packed)
    return Transport(sha256, len(content), segments.IDENTITY, content)


def content_of(transport: Transport) -> bytes:
    """The checked content. Raises Untrusted (`segment_mismatch`). No more than the declared size is ever unpacked."""
    content = transport.data
    if transport.form == segments.ZSTD:
        limit = min(transport.size, SEGMENT_MAX_BYTES)
        try:
            reader = zstandard.ZstdDecompressor().decompressobj(read_across_frames=False)
            content = _bounded(reader, transport.data, limit)
        except zstandard.ZstdError as bad:
            raise Untrusted(f"segment {transport.sha256[:12]}…: {bad}", code="segment_mismatch") from None
    segments.check(content, transport.sha256, transport.size)
    return content


def _bounded(reader: zstandard.ZstdDecompressionObj, data: bytes, limit: int) -> bytes:
    """Unpack piece by piece, so that a small member cannot fill the memory."""
    out = bytearray()
    step = 4096  # zstd's blocks unpack to at most 128 KiB each
    for start in range(0, len(data), step):
        out += reader.decompress(data[start : start + step])
        if len(out) > limit:
            raise zstandard.ZstdError(f"more than the {limit} bytes that were declared")
        if reader.eof and (reader.unused_data or start + step < len(data)):
            raise zstandard.ZstdError("something stands behind its end")
    if not reader.eof:
        raise zstandard.ZstdError("it ends too early")
    return bytes(out)


def travel(folder: Path, manifest: Manifest, wanted: set[str] | None = None) -> Generator[Transport]:
    """Each distinct segment once, in manifest order, read from the files again. `wanted` None: all of them.

    Raises Conflict (`file_changed`), Invalid.
    """
    seen: set[str] = set()
    for entry in manifest.files:
        if all(ref.sha256 in seen or (wanted is not None and ref.sha256 not in wanted) for ref in entry.segments):
            continue
        with open_plain(folder / entry.name) as file:
            for ref in entry.segments:
                if ref.sha256 in seen or (wanted is not None and ref.sha256 not in wanted):
                    file.seek(ref.size, os.SEEK_CUR)
                    continue
                seen.add(ref.sha256)
                content = file.read(ref.size)
                try:
                    segments.check(content, ref.sha256, ref.size)
                except Untrusted:
                    raise Conflict(
                        f"{entry.name}: it changed after it was built; build again", code="file_changed"
                    ) from None
                yield compress(ref.sha256, content)
