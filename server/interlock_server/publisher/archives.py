"""The single-file bundle, written: in the order of `interlock_shared.archive`, which reads it too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from interlock_shared import archive, durable
from interlock_shared.archive import Head
from interlock_shared.errors import Invalid, NoSpace
from interlock_shared.segments import Transport


def _put(out: BinaryIO, name: str, data: bytes) -> int:
    padding = archive.padding(len(data))
    out.write(archive.header(name, len(data)))
    out.write(data)
    out.write(b"\0" * padding)
    return archive.BLOCK + len(data) + padding


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
    ending = 2 * archive.BLOCK + -(count + 2 * archive.BLOCK) % archive.RECORD
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
