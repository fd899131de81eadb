"""What can be published: a folder that is built now, or a bundle that was built before. Read again when it leaves."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from interlock_server.publisher import build, bundle_toml, payload
from interlock_server.publisher.release import Parcel
from interlock_shared.archive import Head, Reader
from interlock_shared.errors import Conflict
from interlock_shared.segments import Transport


def is_bundle(where: Path) -> bool:
    """Whether that is a bundle, and not a folder or a bundle.toml."""
    return where.is_file() and where.suffix != ".toml"


def built(made: build.Built) -> Parcel:
    """The parcel of a folder."""
    return Parcel(made.data, made.manifest, lambda wanted: payload.travel(made.folder, made.manifest, wanted))


def of_folder(where: Path, progress: payload.Progress = payload.silent) -> Parcel:
    """Build, then as `built`."""
    return built(build.build(bundle_toml.load(where), progress))


def read_head(where: Path) -> Head:
    """A bundle's head. Raises Invalid."""
    with payload.open_plain(where) as stream:
        return Reader(stream).head()


def of_bundle(where: Path) -> Parcel:
    """The parcel of a bundle; each segment is checked before it leaves. Raises Invalid, Untrusted."""
    head = read_head(where)

    def segments(wanted: set[str]) -> Generator[Transport]:
        with payload.open_plain(where) as stream:
            reader = Reader(stream)
            if reader.head().data != head.data:
                raise Conflict(f"{where.name}: it changed while it was read", code="file_changed")
            for one in reader.segments(head.manifest):
                if one.sha256 in wanted:
                    payload.content_of(one)
                    yield one

    return Parcel(head.data, head.manifest, segments)
