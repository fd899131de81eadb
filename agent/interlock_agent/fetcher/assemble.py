"""Verified bytes into a folder beside the slots.

- A segment is checked while it arrives; nothing unverified is ever counted as there.
- After an interruption of any kind what is in the partial folder is hashed again and kept where it is right: no
  progress file that could lie after a power cut.
- A segment that a slot holds already is copied from there, and checked like any other.
- One sync for the whole bundle; then the seal; then one rename makes the folder complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from interlock_shared import durable, segments
from interlock_shared.errors import NoSpace, Untrusted
from interlock_shared.manifest import Manifest, SegmentRef

OURS = ".interlock"
RESERVE_BYTES = 64 * 1024 * 1024  # left to the rest of the device
PROGRESS_S = 0.1
READ = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """Where a segment goes: file, offset."""

    file: str
    offset: int
    segment: SegmentRef


def places(manifest: Manifest) -> Iterator[Place]:
    """Every place, in manifest order."""
    for file in manifest.files:
        offset = 0
        for segment in file.segments:
            yield Place(file.name, offset, segment)
            offset += segment.size


class Assembly:
    """A partial folder that becomes complete. Thread-safe where it says so."""

    def __init__(self, state: Path, unit: str, manifest: Manifest, raw: bytes, manifest_sha256: str) -> None:
        self._root = state / "incoming" / unit
        self._folder = self._root / f".partial-{manifest_sha256}"
        self._final = self._root / manifest_sha256
        self._slots = state / "slots" / unit
        self._manifest, self._raw, self._sha256 = manifest, raw, manifest_sha256
        self._files: dict[str, int] = {}
        self._wanted: dict[str, list[Place]] = {}
        for place in places(manifest):
            self._wanted.setdefault(place.segment.sha256, []).append(place)
        self._lock = threading.Lock()
        self._told = 0.0
        self.done = 0
        self.total = manifest.payload_size
        self.fetched = 0
        self.reused = 0
        self.progress: Callable[[int, int], None] = lambda done, of: None

    def open(self) -> None:
        """Make or reopen the partial folder, after a look at the space. Raises NoSpace."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._clean_others()
        present = sum(_allocated(self._folder / file.name) for file in self._manifest.files)
        free = shutil.disk_usage(self._root).free
        lacking = max(0, self.total - present) + RESERVE_BYTES - free
        if lacking > 0:
            raise NoSpace(
                f"{self._manifest.release} needs {self.total} bytes beside the slots, {lacking} are lacking",
                lacking=lacking,
                free=free,
            )
        (self._folder / OURS).mkdir(parents=True, exist_ok=True)
        names = {file.name for file in self._manifest.files}
        for entry in self._folder.iterdir():
            if entry.name not in names and entry.name != OURS:
                entry.unlink()
        for file in self._manifest.files:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._folder / file.name, flags, 0o644)
            if os.fstat(descriptor).st_size > file.size:
                os.ftruncate(descriptor, file.size)
            self._files[file.name] = descriptor

    def _clean_others(self) -> None:
        """A folder of another manifest, complete or not, is no longer wanted: one attempt a unit."""
        for entry in self._root.iterdir():
            if entry not in (self._folder, self._final):
                shutil.rmtree(entry, ignore_errors=True)

    def missing(self) -> list[SegmentRef]:
        """Segments that must be brought in: not here from before, not in a slot. In manifest order."""
        held = self._held_in_slots()
        left = []
        for sha256, wanted in list(self._wanted.items()):
            segment = wanted[0].segment
            if self._is_here(wanted):
                self._count(sum(place.segment.size for place in wanted), reused=True)
            elif not self._copy(segment, held.get(sha256)):
                left.append(segment)
        return left

    def _is_here(self, wanted: list[Place]) -> bool:
        return all(
            _hash_range(self._files[place.file], place.offset, place.segment.size) == place.segment.sha256
            for place in wanted
        )

    def _held_in_slots(self) -> dict[str, tuple[Path, int]]:
        held: dict[str, tuple[Path, int]] = {}
        for slot in ("a", "b"):
            try:
                seal = json.loads((self._slots / slot / OURS / "seal.json").read_bytes())
                for file in seal["files"]:
                    offset = 0
                    for segment in file["segments"]:
                        held.setdefault(str(segment["sha256"]), (self._slots / slot / str(file["name"]), offset))
                        offset += int(segment["size"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # an empty or broken slot holds nothing
        return held

    def _copy(self, segment: SegmentRef, source: tuple[Path, int] | None) -> bool:
        if source is None:
            return False
        try:
            with source[0].open("rb") as file:
                content = os.pread(file.fileno(), segment.size, source[1])
            segments.check(content, segment.sha256, segment.size)
        except (OSError, Untrusted):
            return False
        self._write(segment, memoryview(content))
        self._count(sum(place.segment.size for place in self._wanted[segment.sha256]), reused=True)
        return True

    def _write(self, segment: SegmentRef, content: memoryview) -> None:
        for place in self._wanted[segment.sha256]:
            view, offset = content, place.offset
            while view:
                written = os.pwrite(self._files[place.file], view, offset)
                view, offset = view[written:], offset + written

    def _count(self, size: int, *, reused: bool) -> None:
        with self._lock:
            self.done += size
            if reused:
                self.reused += size
            now = time.monotonic()
            if now - self._told >= PROGRESS_S or self.done >= self.total:
                self._told = now
                self.progress(self.done, self.total)

    def add(self, segment: SegmentRef, content: bytes | memoryview, form: str, digest: str | None = None) -> None:
        """A segment that has arrived, in one form of transport. `digest`: of an identity form, hashed on its way.
        Thread-safe. Raises Untrusted; then nothing was written."""
        received = len(content)
        if form == segments.ZSTD:
            content, digest = _decompress(bytes(content), segment), None
        if digest is None:
            segments.check(content, segment.sha256, segment.size)
        elif digest != segment.sha256 or len(content) != segment.size:
            raise Untrusted(f"segment {segment.sha256[:12]}…: content does not match", code="segment_mismatch")
        self._write(segment, memoryview(content))
        with self._lock:
            self.fetched += received
        self._count(sum(place.segment.size for place in self._wanted[segment.sha256]), reused=False)

    def complete(self, seal: bytes) -> Path:
        """Everything is here: manifest, one sync, seal, rename. Raises OSError."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        ours = self._folder / OURS
        (ours / "manifest.json").write_bytes(self._raw)
        durable.sync_tree(self._folder)
        durable.replace_file(ours / "seal.json", seal, mode=0o644)
        if self._final.exists():
            shutil.rmtree(self._final)
        durable.rename_folder(self._folder, self._final)
        return self._final


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _hash_range(descriptor: int, offset: int, size: int) -> str:
    """Digest of a range; "" when the file is shorter."""
    digest = hashlib.sha256()
    while size:
        piece = os.pread(descriptor, min(READ, size), offset)
        if not piece:
            return ""
        digest.update(piece)
        offset, size = offset + len(piece), size - len(piece)
    return digest.hexdigest()


def _decompress(content: bytes, segment: SegmentRef) -> bytes:
    """The content of a zstd frame, never more than was declared: a bomb ends at its first byte too many."""
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(content) as reader:
            plain = reader.read(segment.size)
            if len(plain) == segment.size and reader.read(1):
                raise Untrusted(f"segment {segment.sha256[:12]}…: longer than declared", code="segment_mismatch")
    except zstandard.ZstdError as bad:
        raise Untrusted(f"segment {segment.sha256[:12]}…: {bad}", code="segment_mismatch") from None
    return bytes(plain)
