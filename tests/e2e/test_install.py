"""A device that never met a server, as a technician has it: a file from a stick, or put into its inbox. Each refusal
has a reason in words and an exit code of its own, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from interlock_agent import cli
from interlock_server.publisher import build, bundle_toml
from interlock_shared import canonical, topics
from tests.e2e import releases
from tests.e2e.world import temporary
from tests.fetcher.repository import CONTENT, DEVICE, MODEL, VERSION, Repository
from tests.rig.fleet import Device, Fleet, until
from tests.rig.pieces import Pieces, bomb, member

pytestmark = pytest.mark.e2e

TODAY = datetime.now(timezone.utc)  # noqa: UP017  # as the repository has it
MINE = Repository(now=TODAY, permit_ends=TODAY + timedelta(days=30), root_version=2)
ALLOWED = '[sideload]\nunenrolled = "allow"\ninbox_s = 0.1\n'


@dataclass
class Unconnected(Fleet):
    """Devices of a fleet whose server is nowhere."""

    root: bytes = b""

    def join(self, made: Device, labels: Any) -> None:
        """Give it the root by hand."""
        del labels
        path = made.folder / "root.json"
        path.write_bytes(self.root)
        made.cli("enrol", "--offline-root", str(path), "--name", made.name)


@contextlib.contextmanager
def unconnected(root: bytes, more: str) -> Iterator[Device]:
    """One device, not started; ended whatever happens."""
    with temporary() as folder:
        fleet = Unconnected(folder, dict(os.environ), root=root)
        try:
            device = fleet.device(DEVICE)
            with device.config.open("a") as config:
                config.write(more.replace("INBOX", str(device.folder / "inbox")))
            yield device
        finally:
            fleet.stop()


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """Its agent runs; there is no host, since nothing here comes as far. The embedded root is the second one."""
    settings = ALLOWED + 'inbox = "INBOX"\n[units.wanted]\n'
    with unconnected(MINE.root(), settings) as made:
        made.start_agent()
        yield made


def install(device: Device, data: bytes, capsys: Any) -> tuple[int, dict[str, Any]]:
    """`interlock-agent install FILE --json` from a stick: its exit code, and why."""
    stick = device.folder / "stick"
    stick.mkdir(exist_ok=True)
    file = stick / "file.bundle"
    file.write_bytes(data)
    file.chmod(0o444)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.app(["install", str(file), "--json", "--config", str(device.config)])
    finally:
        file.unlink()
    document = json.loads(capsys.readouterr().out)
    return int(ended.value.code or 0), dict(document.get("error") or document)


def nothing_left(device: Device) -> None:
    """No payload, and no verdict, of a file that was refused."""
    incoming = device.state / "incoming"  # walked by what passes over a folder that is just being removed
    until(lambda: not [name for _, _, names in os.walk(incoming) for name in names], "an empty incoming folder")
    assert not list(device.state.rglob("seal.json"))
    assert not (device.state / "trust" / "metadata").exists()


def flipped(data: bytes, at: bytes) -> bytes:
    """One bit of that content turned."""
    spoilt = bytearray(data)
    spoilt[data.index(at)] ^= 1
    return bytes(spoilt)


BUNDLE = MINE.bundle()
YESTERDAY = TODAY - timedelta(days=1)
OVENS = replace(MINE, devices=None, classes=({"class": "oven"},)).bundle()
LATE = replace(MINE, expires={"release": YESTERDAY}).bundle()
REFUSALS: list[tuple[str, bytes, int, str, str]] = [
    ("another fleet", Repository(now=TODAY, root_version=2).bundle(), 10, "unknown_root", "another fleet"),
    ("permit expired", replace(MINE, permit_ends=YESTERDAY).bundle(), 11, "expired", f"{YESTERDAY:%Y-%m-%dT}"),
    ("role expired", LATE, 11, "metadata_expired", "release-detector"),
    ("no permit", MINE.bundle(permit=False), 12, "no_permit", "no permit"),
    ("permit for another device", replace(MINE, devices=("oven-1",)).bundle(), 12, "other_device", "oven-1"),
    ("permit for a class", OVENS, 12, "other_class", "oven"),
    ("older than what is trusted", replace(MINE, root_version=1).bundle(), 13, "below_floor", "older than"),
    ("corrupted", flipped(BUNDLE, CONTENT[20_000:20_016]), 14, "segment_mismatch", "segment 2 of 3"),
    ("cut short", BUNDLE[:-20_000], 14, "truncated", "segment 2 of 3"),
    ("cut in its head", BUNDLE[:3000], 14, "truncated", "ends within"),
    ("not signed by its role", replace(MINE, released=False).bundle(), 17, "not_signed", "detector 1.4.0"),
    ("a permit by nobody", replace(MINE, permit_by="depot").bundle(), 17, "bad_signature", "permit"),
    ("no bundle", b"\x7fELF" * 1000, 18, "not_a_plain_file", "no plain file"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "data", "code", "why", "said"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_a_refusal_says_why_by_its_exit_code(
    device: Device, capsys: Any, words: str, data: bytes, code: int, why: str, said: str
) -> None:
    exit_code, document = install(device, data, capsys)
    assert (exit_code, document.get("reason") or document["code"]) == (code, why), words
    assert said in document["message"]
    nothing_left(device)


def test_what_was_revoked_online_is_refused(device: Device, capsys: Any) -> None:
    store = device.state / "trust" / "metadata"
    store.mkdir()
    role = topics.release_role(MODEL)
    newer = replace(MINE, version=2, released=False)
    (store / f"{role}.json").write_bytes(newer.files()[f"2.{role}.json"])
    exit_code, document = install(device, BUNDLE, capsys)
    (store / f"{role}.json").unlink()
    store.rmdir()
    assert (exit_code, document["code"]) == (15, "revoked")
    nothing_left(device)


WHOLE = Pieces(BUNDLE)
SEGMENT = WHOLE.names[WHOLE.place("segment/")]
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
FIVE_GIB = b"%011o\0" % (5 * 1024**3)
BOMB = WHOLE.instead("segment/", member(SEGMENT + ".zst", bomb(200 * 1024**2)))
HOSTILE: dict[str, tuple[bytes, str]] = {
    "bomb": (BOMB, "segment_mismatch"),
    "sparse": (WHOLE.instead("segment/", member(SEGMENT, b"", type=tarfile.GNUTYPE_SPARSE)), "not_a_plain_file"),
    "linked-by-name": (
        WHOLE.instead("segment/", member(SEGMENT, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "not_a_plain_file",
    ),
    "linked-hard": (
        WHOLE.instead("manifest", member("manifest.json", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")),
        "not_a_plain_file",
    ),
    "climbing": (WHOLE.before("manifest", member("../../../etc/passwd", b"x")), "foreign_member"),
    "twice": (WHOLE.before("segment/", WHOLE.good[WHOLE.place("segment/")]), "wrong_order"),
    "manifest-of-5-gib": (WHOLE.declared("manifest", FIVE_GIB), "too_large"),
    "segment-of-5-gib": (WHOLE.declared("segment/", FIVE_GIB), "too_large"),
    "deep": (WHOLE.content("manifest", DEEP), "invalid"),
    "half": (BUNDLE[: len(BUNDLE) // 2], "truncated"),
}


@pytest.fixture
def incumbent(device: Device) -> Iterator[dict[str, bytes]]:
    """What lies in a slot, and serves; afterwards it is the same."""
    slot = device.state / "slots" / "served" / "a"
    slot.mkdir(parents=True)
    (slot / "model.onnx").write_bytes(b"what serves")
    files = {str(path): path.read_bytes() for path in (device.state / "slots").rglob("*") if path.is_file()}
    yield files
    nothing_left(device)
    found = {str(path): path.read_bytes() for path in (device.state / "slots").rglob("*") if path.is_file()}
    assert found == files
    shutil.rmtree(device.state / "slots" / "served")


AT_THE_DOOR = ("bomb", "linked-by-name")
IN_THE_INBOX = tuple(HOSTILE.keys() - set(AT_THE_DOOR))


@pytest.mark.parametrize("words", AT_THE_DOOR)
@pytest.mark.usefixtures("incumbent")
def test_a_hostile_file_is_refused_by_its_reason(device: Device, capsys: Any, words: str) -> None:
    data, why = HOSTILE[words]
    exit_code, document = install(device, data, capsys)
    assert (exit_code != 0, document.get("reason") or document["code"]) == (True, why), document


@pytest.mark.usefixtures("incumbent")
def test_hostile_files_in_the_inbox_are_moved_with_their_reasons(device: Device) -> None:
    for words in IN_THE_INBOX:
        put(device, f"{words}.bundle", HOSTILE[words][0])
    found = {words: note(device, "refused", f"{words}.bundle") for words in IN_THE_INBOX}
    assert {words: one["code"] for words, one in found.items()} == {words: HOSTILE[words][1] for words in IN_THE_INBOX}
    assert all(one["message"] for one in found.values())
    assert "Traceback" not in (device.folder / "agent.log").read_text()


def note(device: Device, where: str, name: str) -> dict[str, Any]:
    """What the inbox wrote beside the file that it took."""
    folder = device.folder / "inbox" / where
    found = until(lambda: list(folder.glob(f"*-{name}.json")), f"{name} in {where}")
    until(lambda: list(folder.glob(f"*-{name}")), f"{name} itself")
    return dict(json.loads(found[0].read_text()))


def put(device: Device, name: str, data: bytes) -> None:
    """As a careful program does it: written beside, then renamed."""
    inbox = device.folder / "inbox"
    (inbox / f".{name}").write_bytes(data)
    (inbox / f".{name}").rename(inbox / name)


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _several(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(BUNDLE)
    path.hardlink_to(other)


def _anybodys(path: Path) -> None:
    with open(os.open(path.with_suffix(".x"), os.O_WRONLY | os.O_CREAT), "wb") as file:
        file.write(BUNDLE)
    path.with_suffix(".x").chmod(0o666)
    path.with_suffix(".x").rename(path)


STRANGE: dict[str, Callable[[Path], None]] = {
    "link": _link,
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "two names": _several,
    "anybody's": _anybodys,
}


@pytest.mark.parametrize("what", STRANGE)
def test_the_inbox_opens_plain_files_alone(device: Device, what: str) -> None:
    name = f"{what.replace(' ', '-')}.bundle"
    STRANGE[what](device.folder / "inbox" / name)
    assert note(device, "refused", name)["code"] == "not_a_plain_file"
    assert not (device.folder / "inbox" / name).exists()


def test_the_inbox_moves_what_is_refused_with_a_note(device: Device) -> None:
    put(device, "foreign.bundle", Repository(now=TODAY, root_version=2).bundle())
    put(device, "damaged.bundle", flipped(BUNDLE, CONTENT[20_000:20_016]))
    found = note(device, "refused", "foreign.bundle")
    assert (found["code"], found["owner"], found["outcome"]) == ("unknown_root", os.geteuid(), "refused")
    assert "another fleet" in found["message"]
    assert "segment 2 of 3" in note(device, "refused", "damaged.bundle")["message"]
    nothing_left(device)


def test_a_file_that_is_still_written_is_not_taken(device: Device) -> None:
    inbox = device.folder / "inbox"
    with (inbox / "slow.bundle").open("wb") as slow:
        slow.write(BUNDLE[:5000])
        slow.flush()
        put(device, "other.bundle", b"not one")  # a later one, which was taken since
        assert note(device, "refused", "other.bundle")["code"] in ("truncated", "not_a_plain_file")
        assert (inbox / "slow.bundle").exists()
        slow.write(b"and the rest never comes")
    assert note(device, "refused", "slow.bundle")["code"] == "truncated"


def test_an_inbox_that_anybody_may_write_is_not_watched_and_says_so(device: Device) -> None:
    inbox = device.folder / "inbox"
    inbox.chmod(0o777)
    until(lambda: any("anybody may write" in note for note in device.ask("status")["notes"]), "the note")
    inbox.chmod(0o770)
    until(lambda: not device.ask("status")["notes"], "no note")


def test_a_device_whose_owner_does_not_allow_it_takes_no_file_before_it_is_enrolled(capsys: Any) -> None:
    with unconnected(MINE.root(), "") as device:
        device.start_agent()
        exit_code, document = install(device, BUNDLE, capsys)
        assert (exit_code, document["code"]) == (16, "unenrolled")
        assert "sideload.unenrolled" in document["message"]


def real(folder: Path) -> Repository:
    """A release of a model that runs, signed; its permit is for a class, by a depot's key."""
    source = bundle_toml.load(releases.write(folder, VERSION, 2.0, model=MODEL))
    made = build.build(source)
    parts = {}
    for file in made.manifest.files:
        content, at = (folder / file.name).read_bytes(), 0
        for segment in file.segments:
            parts[canonical.sha256(content[at : at + segment.size])] = content[at : at + segment.size]
            at += segment.size
    release = replace(MINE, manifest=made.manifest, parts=parts)
    return replace(release, sideload=("depot",), permit_by="depot", devices=None, classes=({"class": "press"},))


def test_a_device_that_never_met_a_server_serves_what_its_inbox_brought(tmp_path: Path) -> None:
    made = real(tmp_path / "model")
    settings = ALLOWED + 'inbox = "INBOX"\n'
    with unconnected(made.root(1), settings) as device:
        text = device.config.read_text().replace("[device]", '[device]\nclass = "press"')
        device.config.write_text(text)
        device.start()
        until((device.folder / "inbox" / "done").exists, "the inbox")
        put(device, "first.bundle", made.bundle())
        found = note(device, "done", "first.bundle")
        assert (found["phase"], found["version"]) == ("confirmed", VERSION)
        unit = device.ask("status")["units"][MODEL]
        assert (unit["confirmed"], unit["running"], unit["offered"]) == (VERSION, VERSION, VERSION)
        assert device.ask("status")["outbox"]["waiting"] > 0
