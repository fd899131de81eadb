"""Segments in a folder, named by the digest of their uncompressed content, kept as they travel.

An upload is written to a temporary file while it arrives, checked against its digest from there, then renamed durably:
a reader never sees an unchecked byte. Everything here blocks; callers use threads.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zstandard

from interlock_shared import durable
from interlock_shared.errors import Invalid, NoSpace, Untrusted
from interlock_shared.limits import MIB, SEGMENT_MAX_BYTES
from interlock_shared.segments import FORMS, ZSTD

FREE_MIN_BYTES = 64 * MIB  # the database and the metadata must still be writable when the blobs have filled the disk
WINDOW_MAX_BYTES = 128 * MIB  # of a zstd frame: what a fetcher on a small device would refuse is refused here already
STEP = 1 * MIB


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as bad:
        if bad.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace("the server's disk is full") from bad
        raise


class FolderBlobs:
    """`FOLDER/ab/abcdef…`; uploads in `FOLDER/incoming`, which is emptied at each start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True)

    def path(self, sha256: str) -> Path:
        """Where a segment lies, or would."""
        return self._folder / sha256[:2] / sha256

    def receive(self, sha256: str, form: str, size: int) -> FolderReceiver:
        """An upload of the segment with this digest and uncompressed size. Raises Invalid, NoSpace."""
        if form not in FORMS:
            raise Invalid(f"segment: form {form!r} is none of {', '.join(FORMS)}", field="Interlock-Form")
        if not 0 < size <= SEGMENT_MAX_BYTES:
            raise Invalid(f"segment: size {size} is not within 1 … {SEGMENT_MAX_BYTES}", field="Interlock-Size")
        if shutil.disk_usage(self._folder).free < FREE_MIN_BYTES + size:
            raise NoSpace("the server's disk is full")
        return FolderReceiver(self.path(sha256), self._incoming / secrets.token_hex(16), form, size)


class FolderReceiver:
    """One upload: `feed`, then `finish` or `discard`."""

    def __init__(self, target: Path, temporary: Path, form: str, size: int) -> None:
        self._target, self._temporary, self._form, self._size = target, temporary, form, size
        self.stored = 0
        self._file = temporary.open("xb")

    def feed(self, data: bytes) -> None:
        """The next bytes of the transport form. Raises Invalid when there are more than can be right, NoSpace."""
        self.stored += len(data)
        # zstd adds a few bytes to what it cannot compress; a form far above the content was made to fill the disk.
        if self.stored > self._size + self._size // 128 + 1024:
            raise Invalid("segment: more bytes than its size declares", field="body", code="segment_mismatch")
        with _disk_errors():
            self._file.write(data)

    def finish(self) -> None:
        """Check the content, keep it. Raises Untrusted (`segment_mismatch`), NoSpace; nothing is kept then."""
        with _disk_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        self._check()
        with _disk_errors():
            self._target.parent.mkdir(exist_ok=True)
            durable.rename_folder(self._temporary, self._target)

    def discard(self) -> None:
        """Forget the upload; no error when it was finished."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._temporary.unlink()

    def _check(self) -> None:
        digest, length = hashlib.sha256(), 0
        try:
            for part in self._content():
                length += len(part)
                if length > self._size:
                    break
                digest.update(part)
        except zstandard.ZstdError as bad:
            raise Untrusted(f"segment: not zstd: {bad}", code="segment_mismatch") from None
        if length != self._size or digest.hexdigest() != self._target.name:
            raise Untrusted(
                f"segment {self._target.name[:12]}…: the content is not what its digest and size say",
                code="segment_mismatch",
            )

    def _content(self) -> Iterator[bytes]:
        with self._temporary.open("rb") as file:
            if self._form != ZSTD:
                while part := file.read(STEP):
                    yield part
                return
            decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX_BYTES)
            with decompressor.stream_reader(file, read_across_frames=True) as reader:
                while part := reader.read(STEP):  # the length is capped by the caller: no bomb unfolds
                    yield part
