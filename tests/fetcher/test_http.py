"""Segments over HTTP from a real server that cuts, lies and grows: resumed from the right byte, or refused."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.fetcher import assemble
from interlock_agent.fetcher.assemble import Assembly
from interlock_agent.fetcher.http import RESUMES, Server
from interlock_agent.ports import Stored
from interlock_shared import canonical, topics
from interlock_shared.errors import InterlockError, Later, NoSpace, Untrusted
from interlock_shared.manifest import Manifest
from interlock_shared.seals import encode, seal
from tests.fetcher.repository import CONTENT, DEVICE, MODEL, PARTS, VERSION, Repository, the_manifest
from tests.fetcher.test_sideload import Clock

BLOB = re.compile("^" + topics.BLOB.replace("{sha256}", "([0-9a-f]{64})") + "$")
FIRST = canonical.sha256(PARTS[0])


@dataclass
class Shelf:
    """What the server has, and how it misbehaves. `cuts`: bytes of the body after which each answer breaks off."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    shift: int = 0  # by which a range is another one than was asked for
    status: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, repository: Repository) -> None:
        for name, data in repository.files().items():
            self.files[topics.METADATA.replace("{name}", name)] = data
        self.files[topics.METADATA.replace("{name}", "target/director.json")] = repository.director_document()
        path = topics.MANIFEST.replace("{model}", MODEL).replace("{version}", VERSION)
        self.files[path] = repository.raw
        self.segments(PARTS)

    def segments(self, parts: list[bytes]) -> None:
        for part in parts:
            self.files[topics.BLOB.replace("{sha256}", canonical.sha256(part))] = part

    def blobs(self) -> list[str]:
        return [path for path, _ in self.asked if BLOB.match(path)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shelf: Shelf

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        del format, args

    def do_GET(self) -> None:
        shelf = self.shelf
        asked = self.headers.get("Range", "")
        with shelf.lock:
            shelf.asked.append((self.path, asked))
            cut = (shelf.cuts.get(self.path) or [-1]).pop(0)
        data = shelf.files.get(self.path)
        if data is None or shelf.status:
            self.send_response(shelf.status or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = data[begin:]
        self.send_response(206 if asked else 200)
        if asked:
            at = begin + shelf.shift
            self.send_header("Content-Range", f"bytes {at}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body)))
        for name, value in shelf.headers.items():
            if BLOB.match(self.path):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if cut < 0 else body[:cut])
        self.close_connection = cut >= 0


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def url(shelf: Shelf) -> Iterator[str]:
    handler = type("H", (Handler,), {"shelf": shelf})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def segment(url: str, sink: Callable[[memoryview], None] = lambda piece: None) -> bytes:
    server = Server(url)
    try:
        return bytes(server.segment(FIRST, len(PARTS[0]), sink)[0])
    finally:
        server.close()


PATH = topics.BLOB.replace("{sha256}", FIRST)


def test_a_connection_cut_inside_a_segment_goes_on_from_its_byte(url: str, shelf: Shelf) -> None:
    shelf.segments(PARTS)
    shelf.cuts[PATH] = [5000, 0, 1]
    seen: list[bytes] = []
    assert segment(url, lambda piece: seen.append(bytes(piece))) == PARTS[0]
    assert b"".join(seen) == PARTS[0], "hashed once, in order"
    assert [asked for _, asked in shelf.asked] == ["", "bytes=5000-", "bytes=5000-", "bytes=5001-"]


def test_a_connection_that_always_breaks_goes_back_to_the_backoff(url: str, shelf: Shelf) -> None:
    shelf.segments(PARTS)
    shelf.cuts[PATH] = [1] * (RESUMES + 1)
    with pytest.raises(InterlockError) as error:
        segment(url)
    assert error.value.code == "unreachable"
    assert len(shelf.asked) == RESUMES + 1


LIES: list[tuple[str, dict[str, Any], str]] = [
    ("another range", {"shift": 3, "cuts": {PATH: [100]}}, "segment_mismatch"),
    ("another form", {"headers": {"Interlock-Form": "brotli"}}, "segment_mismatch"),
    ("longer than declared", {"files": {PATH: PARTS[0] + b"x"}}, "segment_mismatch"),
    ("shorter than declared", {"files": {PATH: PARTS[0][:-1]}}, "segment_mismatch"),
    ("far longer", {"files": {PATH: bytes(1 << 20)}, "headers": {"Interlock-Form": "zstd"}}, "segment_mismatch"),
    ("not there", {"files": {}}, "server_refused"),
    ("busy", {"status": 503}, "server_busy"),
    ("forbidden", {"status": 403}, "server_refused"),
]


@pytest.mark.parametrize(("words", "lie", "code"), LIES, ids=[row[0] for row in LIES])
def test_a_server_that_lies_is_refused(url: str, shelf: Shelf, words: str, lie: dict[str, Any], code: str) -> None:
    del words
    shelf.segments(PARTS)
    for name, value in lie.items():
        setattr(shelf, name, value)
    with pytest.raises(InterlockError) as error:
        segment(url)
    assert error.value.code == code


def test_a_small_resource_has_its_limit(url: str, shelf: Shelf) -> None:
    shelf.files["/big"] = bytes(101)
    server = Server(url)
    assert server.get("/none", 100) is None
    with pytest.raises(Untrusted, match="more than 100"):
        server.get("/big", 100)
    server.close()
    with pytest.raises(InterlockError):
        Server("ftp://x")


def test_a_server_that_is_away_is_unreachable(free_port: Callable[[], int]) -> None:
    with pytest.raises(InterlockError) as error:
        segment(f"http://127.0.0.1:{free_port()}")
    assert error.value.code == "unreachable"


# --- assembling -----------------------------------------------------------------------------------------------------


def assembly(state: Path, manifest: Manifest | None = None) -> Assembly:
    made = manifest or the_manifest()
    raw = Repository(manifest=made).raw
    found = Assembly(state, MODEL, made, raw, canonical.sha256(raw))
    found.open()
    return found


def finished(one: Assembly, state: Path) -> Path:
    made = the_manifest()
    del state
    return one.complete(encode(seal(made, "0" * 64, "fp32", 0)))


def packed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize(
    ("words", "content", "form"),
    [
        ("another byte", b"\0" + PARTS[0][1:], "identity"),
        ("shorter", PARTS[0][:-1], "identity"),
        ("longer", PARTS[0] + b"x", "identity"),
        ("no frame", PARTS[0], "zstd"),
        ("a bomb", packed(bytes(64 << 20)), "zstd"),
        ("a byte too many", packed(PARTS[0] + b"x"), "zstd"),
        ("another content", packed(PARTS[1]), "zstd"),
        ("half a frame", packed(PARTS[0])[:-100], "zstd"),
    ],
)
def test_a_corrupt_segment_is_never_written(tmp_path: Path, words: str, content: bytes, form: str) -> None:
    del words
    one = assembly(tmp_path)
    wanted = one.missing()
    with pytest.raises(Untrusted) as error:
        one.add(wanted[0], content, form)
    assert error.value.code == "segment_mismatch"
    assert (one.done, one.fetched) == (0, 0)
    assert (one._folder / "model.onnx").stat().st_size == 0


def test_what_is_here_is_kept_where_it_is_right(tmp_path: Path) -> None:
    first = assembly(tmp_path)
    wanted = first.missing()
    first.add(wanted[0], PARTS[0], "identity")
    first.add(wanted[1], packed(PARTS[1]), "zstd")
    again = assembly(tmp_path)  # the process was killed
    assert [ref.sha256 for ref in again.missing()] == [wanted[2].sha256]
    assert again.reused == 32_000
    with (again._folder / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"rotten")
    third = assembly(tmp_path)
    assert [ref.sha256 for ref in third.missing()] == [wanted[0].sha256, wanted[2].sha256]
    third.add(wanted[0], PARTS[0], "identity")
    third.add(wanted[2], PARTS[2], "identity")
    folder = finished(third, tmp_path)
    assert (folder / "model.onnx").read_bytes() == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_a_slot_holds_is_copied_and_checked(tmp_path: Path) -> None:
    older = [PARTS[0], b"other" * 100, PARTS[2]]
    slot = tmp_path / "slots" / MODEL / "a"
    (slot / ".interlock").mkdir(parents=True)
    (slot / "model.onnx").write_bytes(b"".join(older))
    (slot / ".interlock" / "seal.json").write_bytes(encode(seal(the_manifest(older), "1" * 64, "fp32", 1)))
    one = assembly(tmp_path)
    assert [ref.sha256 for ref in one.missing()] == [canonical.sha256(PARTS[1])]
    assert one.reused == 24_000
    one.complete(b"{}")
    (slot / "model.onnx").write_bytes(b"rotten" * 9000)  # the seal says what is no longer there
    state = tmp_path / "two"
    (tmp_path / "slots").rename(tmp_path / "kept")
    state.mkdir()
    (tmp_path / "kept").rename(state / "slots")
    assert len(assembly(state).missing()) == 3


def test_space_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    short = usage._replace(free=assemble.RESERVE_BYTES + len(CONTENT) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: short)
    with pytest.raises(NoSpace) as error:
        assembly(tmp_path)
    assert error.value.details["lacking"] == 1
    assert list((tmp_path / "incoming" / MODEL).iterdir()) == []


# --- the whole child ------------------------------------------------------------------------------------------------


class Online:
    def __init__(self, state: Path, url: str, repository: Repository, **meta: Any) -> None:
        (state / "trust").mkdir(parents=True)
        (state / "trust" / "root.json").write_bytes(repository.root())
        identity = {"server": url, "device": DEVICE}
        self.state, self.repository = state, repository
        self.clock = Clock()
        self.fetcher = FetcherProcess(state, DEVICE, identity, self.clock, Stored(meta=meta))

    async def fetch(self, digest: str = "") -> dict[str, Any]:
        source = await self.fetcher.online(MODEL, VERSION, digest or canonical.sha256(self.repository.raw))
        try:
            self.head = await source.manifest()
            return dict(await source.proceed(lambda done, of: None))
        finally:
            await source.abandon()


async def test_one_pass_over_the_network(tmp_path: Path, url: str, shelf: Shelf) -> None:
    repository = Repository(version=2)
    shelf.put(repository)
    device = Online(tmp_path, url, repository)
    done = await device.fetch()
    assert (Path(done["folder"]) / "model.onnx").read_bytes() == CONTENT
    assert (done["fetched"], done["reused"]) == (len(CONTENT), 0)
    assert sorted(shelf.blobs()) == sorted(topics.BLOB.replace("{sha256}", canonical.sha256(part)) for part in PARTS)
    assert device.head["trust"]["floors"]["release-detector"] == 2
    assert device.head["trust"]["director"]["epoch"] == 1
    of_a_release = ("release-detector", "delegated")
    assert await device.fetcher.refresh() == {
        "floors": {k: v for k, v in device.head["trust"]["floors"].items() if k not in of_a_release},
        "director": device.head["trust"]["director"],
        "signed_until": "2027-06-01T00:00:00Z",
        "revoked": {},
    }


YEAR = 365 * 86_400.0


async def test_a_wild_clock_takes_nothing_up_and_forgets_nothing(tmp_path: Path, url: str, shelf: Shelf) -> None:
    """Years ahead everything looks expired: later, not never. When the clock is right again, it works."""
    repository = Repository()
    shelf.put(repository)
    device = Online(tmp_path, url, repository)
    device.clock.moment += 30 * YEAR
    for work in (device.fetch(), device.fetcher.refresh()):
        with pytest.raises(Later) as ahead:
            await work
        assert ahead.value.code == "metadata_expired"
        assert "2056" in ahead.value.message, "it tells the time that was believed"
    assert not shelf.blobs()
    device.clock.moment -= 30 * YEAR
    done = await device.fetch()
    assert (Path(done["folder"]) / "model.onnx").read_bytes() == CONTENT


async def test_a_clock_in_the_past_is_not_asked_whether_it_is_before_the_issue(
    tmp_path: Path, url: str, shelf: Shelf
) -> None:
    """No battery: what was signed after the time that is believed is taken up all the same."""
    repository = Repository()
    shelf.put(repository)
    device = Online(tmp_path, url, repository)
    device.clock.moment = 0.0
    assert (await device.fetch())["fetched"] == len(CONTENT)


async def test_after_a_failure_only_what_is_missing_is_asked_for(tmp_path: Path, url: str, shelf: Shelf) -> None:
    repository = Repository()
    shelf.put(repository)
    last = topics.BLOB.replace("{sha256}", canonical.sha256(PARTS[2]))
    shelf.cuts[last] = [10] * (RESUMES + 1)
    device = Online(tmp_path, url, repository)
    with pytest.raises(InterlockError) as error:
        await device.fetch()
    assert error.value.code == "unreachable"
    assert not list(tmp_path.rglob("seal.json"))
    shelf.asked.clear()
    done = await device.fetch()
    assert last in shelf.blobs()
    assert len(shelf.blobs()) < 3
    assert (Path(done["folder"]) / "model.onnx").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("words", "path", "data", "code"),
    [
        ("a corrupt segment", PATH, bytes(16_000), "segment_mismatch"),
        ("another manifest", "/v1/releases/detector/1.4.0/manifest", b"{}", "manifest_mismatch"),
        ("another director", "/v1/metadata/target/director.json", b"{}", "manifest_mismatch"),
        ("metadata that is none", "/v1/metadata/timestamp.json", b"{}", "bad_metadata"),
    ],
)
async def test_what_is_not_signed_is_never_sealed(
    tmp_path: Path, url: str, shelf: Shelf, words: str, path: str, data: bytes, code: str
) -> None:
    repository = Repository()
    shelf.put(repository)
    shelf.files[path] = data
    with pytest.raises(Untrusted) as error:
        await Online(tmp_path, url, repository).fetch()
    assert error.value.code == code, words
    assert not list(tmp_path.rglob("seal.json"))


async def test_another_manifest_than_was_wanted_is_refused(tmp_path: Path, url: str, shelf: Shelf) -> None:
    repository = Repository()
    shelf.put(repository)
    with pytest.raises(Untrusted) as error:
        await Online(tmp_path, url, repository).fetch("0" * 64)
    assert error.value.code == "manifest_mismatch"
    assert shelf.blobs() == []


async def test_the_poll_brings_the_desired_document(tmp_path: Path, url: str, shelf: Shelf) -> None:
    device = Online(tmp_path, url, Repository())
    assert await device.fetcher.poll() is None
    shelf.files[topics.DEVICE_DESIRED.replace("{id}", DEVICE)] = b'{"desired":{"payload":"x"}}'
    assert await device.fetcher.poll() == b'{"payload": "x"}'
