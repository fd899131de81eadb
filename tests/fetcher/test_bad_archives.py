"""Every kind of bad archive, through the code that takes up a file: a typed error that names the field, nothing left on
disk, and what serves untouched."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard

from interlock_agent.adapters.slots import SlotFolders
from interlock_agent.core.times import rfc3339
from interlock_agent.fetcher import __main__ as fetcher
from interlock_agent.fetcher import messages
from interlock_shared import archive, canonical
from interlock_shared.archive import BLOCK, header, padding
from interlock_shared.errors import InterlockError
from tests.fetcher.repository import DEVICE, MODEL, NOW, PARTS, Repository
from tests.rig.pieces import Pieces, bomb, joined, member

GIB = 1024**3
MINE = Repository()
WHOLE = Pieces(MINE.bundle())
GOOD, NAMES = WHOLE.good, WHOLE.names
place, instead, content, before, declared = WHOLE.place, WHOLE.instead, WHOLE.content, WHOLE.before, WHOLE.declared


def manifest(**fields: Any) -> bytes:
    document = json.loads(MINE.raw) | fields
    return content("manifest", canonical.encode(document))


DEEP = b"[" * 100_000 + b"]" * 100_000
SEGMENT = NAMES[place("segment/")]
ZST = SEGMENT + ".zst"


def tail(kind: str, name: str, data: bytes) -> bytes:
    return instead(kind, (header(name, len(data)), data))


@dataclass(frozen=True)
class Row:
    """`field`: what the error must name."""

    words: str
    data: Callable[[], bytes]
    codes: tuple[str, ...]
    field: str = "bundle"


TYPES = {
    "hard link": tarfile.LNKTYPE,
    "symbolic link": tarfile.SYMTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "folder": tarfile.DIRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "contiguous file": tarfile.CONTTYPE,
    "GNU sparse file": tarfile.GNUTYPE_SPARSE,
    "GNU long name": tarfile.GNUTYPE_LONGNAME,
    "GNU long link": tarfile.GNUTYPE_LONGLINK,
    "pax header": tarfile.XHDTYPE,
    "global pax header": tarfile.XGLTYPE,
    "old form": tarfile.AREGTYPE,
}
PATHS = (
    *("../../../etc/passwd", "/etc/passwd", "metadata/../../x.json", "metadata//x.json", "segment/../x"),
    *(
        "manifest.json/",
        "./manifest.json",
        "metadata/x.json/../../y",
        "C:\\x",
        "metadata/a\\b.json",
        ".interlock/seal.json",
    ),
    *(
        "slots/detector/a/model.onnx",
        "model.onnx",
        "x" * 99,
        "metadata/" + "a" * 90 + ".exe",
        "~root",
        "manifest.json\n",
    ),
)
KINDS = ("metadata/1.root", "metadata/timestamp", "target/", "permit", "manifest", "segment/")


def without(kind: str) -> bytes:
    return joined([one for number, one in enumerate(GOOD) if number != place(kind)])


def linked(kind: str, form: bytes) -> bytes:
    return instead(kind, member(NAMES[place(kind)], b"", type=form, linkname="/etc/passwd"))


def files(**fields: Any) -> bytes:
    return manifest(files=[json.loads(MINE.raw)["files"][0] | fields])


SIZES = {
    "5 GiB": b"%011o\0" % (5 * GIB),
    "a size in GNU's form": b"\x80" + b"\0" * 6 + b"\x01\0\0\0\0",
    "a negative size": b"\xff" * 12,
}
TOO_LARGE = ("too_large", "segment_mismatch")
TWICE = ("duplicate_member", "wrong_order")
GONE = ("wrong_order", "truncated", "unsigned_bundle", "no_permit")
FAR = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=False)


def far() -> bytes:
    return zstandard.ZstdCompressor(compression_params=FAR).compress(bytes(1000))


ROWS = [
    *(
        Row(f"a {words} for {kind}", partial(linked, kind, form), ("not_a_plain_file",))
        for kind in ("manifest", "segment/")
        for words, form in TYPES.items()
    ),
    *(
        Row(f"the name {name!r}", partial(before, "manifest", member(name, b"x")), ("foreign_member",))
        for name in PATHS
    ),
    *(
        Row(f"{words} of {kind}", partial(declared, kind, size), TOO_LARGE)
        for kind in KINDS
        for words, size in SIZES.items()
    ),
    *(Row(f"{kind} twice", partial(before, kind, GOOD[place(kind)]), TWICE) for kind in KINDS),
    *(Row(f"no {kind}", partial(without, kind), GONE, "") for kind in KINDS),
    Row("another order", lambda: joined([GOOD[0], *reversed(GOOD[1:])]), ("wrong_order",)),
    Row("a member behind the last", lambda: joined([*GOOD, GOOD[-1]]), ("foreign_member",)),
    Row("bytes behind the end", lambda: MINE.bundle() + b"x" * 600, ("bad_archive",)),
    Row("zeros without end", lambda: MINE.bundle() + b"\0" * 100_000, ("bad_archive",)),
    Row("a manifest that is too large", lambda: content("manifest", b" " * (9 * 1024**2)), ("too_large",)),
    Row("a permit that is too large", lambda: content("permit", b" " * (2 * 1024**2)), ("too_large",)),
    Row("metadata that is too large", lambda: content("metadata/timestamp", b" " * (5 * 1024**2)), ("too_large",)),
    Row("a manifest that is too deep", lambda: content("manifest", b'{"a":' + DEEP + b"}"), ("invalid",), "manifest"),
    Row("a manifest that breaks off", lambda: content("manifest", MINE.raw[:-20]), ("invalid",), "manifest"),
    Row("a key twice", lambda: content("manifest", MINE.raw[:-1] + b',"version":"9.9.9"}'), ("invalid",), "manifest"),
    Row("NaN", lambda: content("manifest", MINE.raw[:-1] + b',"zz":NaN}'), ("invalid",), "manifest"),
    Row("not canonical", lambda: content("manifest", MINE.raw + b" "), ("not_canonical",), "manifest"),
    Row("an unknown field", lambda: manifest(colour="red"), ("invalid",), "colour"),
    Row("a wrong type", lambda: manifest(version=14), ("invalid",), "version"),
    Row("a command", lambda: manifest(exec="rm -rf /"), ("command_in_manifest", "invalid"), "exec"),
    Row("a path for a file", partial(files, name="../../x"), ("invalid",), "files.0.name"),
    Row("a file of 2^60 bytes", partial(files, size=2**60), ("invalid",), "files.0"),
    Row("a permit that is too deep", lambda: content("permit", b'{"a":' + DEEP + b"}"), ("invalid",), "permit"),
    Row("a permit of another kind", lambda: content("permit", b'{"payload":1}'), ("invalid",), "permit"),
    Row("a director of another kind", lambda: content("target/", b"[]"), ("manifest_mismatch",), ""),
    Row(
        "metadata that is too deep", lambda: content("metadata/timestamp", DEEP[95_000:105_000]), ("bad_metadata",), ""
    ),
    Row("a timestamp as large as targets", lambda: content("metadata/timestamp", DEEP), ("too_large",), ""),
    Row("metadata that is none", lambda: content("metadata/timestamp", b"{}"), ("bad_metadata",), ""),
    Row("a bomb", lambda: tail("segment/", ZST, bomb(200 * 1024**2)), ("segment_mismatch",), ""),
    Row("a bomb with a large window", lambda: tail("segment/", ZST, far()), ("segment_mismatch",), ""),
    Row("a segment that unpacks to less", lambda: tail("segment/", ZST, bomb(10)), ("segment_mismatch",), ""),
    Row("a segment that is no frame", lambda: tail("segment/", ZST, b"x" * 100), ("segment_mismatch",), ""),
    Row("a segment of other bytes", lambda: content("segment/", bytes(len(PARTS[0]))), ("segment_mismatch",), ""),
    Row("a segment that is longer", lambda: content("segment/", PARTS[0] + b"x"), ("segment_mismatch",), ""),
]


class Go:
    """The agent wants it."""

    def line(self) -> bytes:
        return messages.GO.encode()


@dataclass
class Device:
    """A device that serves something."""

    state: Path

    def __post_init__(self) -> None:
        (self.state / "trust").mkdir(parents=True)
        (self.state / "trust" / "root.json").write_bytes(MINE.root())
        slot = self.state / "slots" / MODEL / "a"
        slot.mkdir(parents=True)
        (slot / "model.onnx").write_bytes(b"what serves")
        (self.state / "slots" / MODEL / "confirmed").symlink_to("a")
        self.before = self.all()

    def all(self) -> dict[str, bytes]:
        files = (path for path in sorted(self.state.parent.rglob("*")) if path.is_file())
        return {str(path.relative_to(self.state.parent)): path.read_bytes() for path in files}

    def take(self, data: bytes) -> None:
        descriptor = os.memfd_create("bundle")
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        now = NOW.timestamp()
        job = messages.Job("archive", DEVICE, str(self.state), now, rfc3339(now), descriptor=descriptor)
        said: Any = Go()
        fetcher.sideload(job, said)

    def gives_up(self) -> None:
        """As the agent does after a refusal."""
        asyncio.run(SlotFolders(self.state).drop(MODEL))


@pytest.mark.parametrize("row", ROWS, ids=[row.words for row in ROWS])
def test_a_bad_archive(row: Row, tmp_path: Path) -> None:
    device = Device(tmp_path / "state")
    with pytest.raises(InterlockError) as refused:
        device.take(row.data())
    assert refused.value.code in row.codes, refused.value.message
    if row.field:
        assert str(refused.value.details.get("field", "")).startswith(row.field), refused.value.details
    device.gives_up()
    assert device.all() == device.before, "nothing is left, here or beside it"


def test_a_file_that_breaks_off_anywhere(tmp_path: Path) -> None:
    device = Device(tmp_path / "state")
    data, cuts, at = MINE.bundle(), [0, 1], 0
    for head, body in GOOD:
        cuts += [at, at + 100, at + BLOCK, at + BLOCK + len(body) // 2, at + BLOCK + len(body) - 1]
        at += len(head) + len(body) + padding(len(body))
    cuts += [at, at + BLOCK, at + BLOCK + 100]
    for cut in sorted(set(cuts)):
        with pytest.raises(InterlockError) as refused:
            device.take(data[:cut])
        assert refused.value.code in ("truncated", "foreign_member"), (cut, refused.value.message)
        device.gives_up()
        assert device.all() == device.before, cut


def test_the_good_one_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = Device(tmp_path / "state")
    device.take(joined(GOOD))
    assert "done" in capsys.readouterr().out
    assert len(device.all()) > len(device.before)


def test_a_head_that_is_endless_ends(tmp_path: Path) -> None:
    """More roots than any repository has; nothing is kept of them beyond the bound."""
    del tmp_path
    roots = b"".join(header(f"metadata/{number + 1}.root.json", 0) for number in range(2000))
    with pytest.raises(InterlockError) as refused:
        archive.Reader(io.BytesIO(GOOD[0][0] + roots)).head()
    assert refused.value.code == "too_large"
