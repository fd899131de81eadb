"""The inbox: what is steady is taken, once; what cannot be done now stays; every end has its note."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.inbox_folder import Entry, InboxFolder
from interlock_agent.inbox import AGAIN_S, Inbox
from interlock_agent.installer import Installer
from interlock_shared.errors import Busy, Forbidden, InterlockError, Later, Untrusted


@dataclass
class Clock:
    at: float = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds

    def dice(self) -> float:
        return 0.5

    def floor(self) -> float:
        return 0.0

    def behind(self) -> float:
        return 0.0

    def raise_floor(self, moment: float) -> None:
        del moment

    def forget_floor(self) -> None:
        raise AssertionError


def entry(name: str, size: int = 1, wrong: str = "") -> Entry:
    return Entry(name, 1, size, 0, 0, wrong)


@dataclass
class Folder:
    """A folder whose files are what the test says."""

    files: list[Entry] = field(default_factory=list)
    written: bool = False
    full: bool = False
    moved: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def prepare(self) -> None:
        pass

    def look(self) -> list[Entry]:
        return list(self.files)

    def open(self, entry: Entry) -> int | None:
        return None if self.written else 0

    def put(self, entry: Entry, where: str, at: str, note: dict[str, Any]) -> None:
        if self.full:
            raise Later("no space", code="io")
        self.files.remove(entry)
        self.moved.append((entry.name, where, note))


CONFIRMED = {"phase": "confirmed", "reason": "", "message": ""}


class Engine(Installer):
    """Answers what the test says, in turn."""

    def __init__(self, *answers: dict[str, Any] | InterlockError) -> None:
        self.answers = list(answers)

    async def install(self, descriptor: int, tell: Any = None) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, InterlockError):
            raise answer
        return answer


def made(folder: Folder, *answers: dict[str, Any] | InterlockError) -> tuple[Inbox, Engine, Clock]:
    engine, clock = Engine(*answers), Clock()
    return Inbox(folder, engine, clock, 5.0), engine, clock


async def test_a_file_is_taken_when_it_was_the_same_in_two_looks() -> None:
    folder = Folder([entry("a.bundle", 1)])
    inbox, engine, _ = made(folder, CONFIRMED)
    await inbox.look()
    folder.files = [entry("a.bundle", 2)]  # it has grown
    await inbox.look()
    assert engine.answers
    folder.written = True
    await inbox.look()
    assert engine.answers
    folder.written = False
    await inbox.look()
    assert [(name, where) for name, where, _ in folder.moved] == [("a.bundle", "done")]


ENDS: list[tuple[dict[str, Any] | InterlockError, str, str]] = [
    (CONFIRMED, "done", ""),
    ({"phase": "waiting", "reason": "window", "message": ""}, "done", "window"),
    ({"phase": "rejected", "reason": "latency_ratio", "message": "slow"}, "refused", "latency_ratio"),
    ({"phase": "failed", "reason": "segment_mismatch", "message": "x"}, "refused", "segment_mismatch"),
    (Untrusted("another fleet", code="unknown_root"), "refused", "unknown_root"),
    (Forbidden("no", code="unenrolled"), "refused", "unenrolled"),
]


@pytest.mark.parametrize(("answer", "where", "code"), ENDS, ids=[f"{row[1]}-{row[2]}" for row in ENDS])
async def test_each_end_has_its_place_and_its_note(answer: Any, where: str, code: str) -> None:
    folder = Folder([entry("a.bundle")])
    inbox, _, _ = made(folder, answer)
    await inbox.look()
    await inbox.look()
    name, moved_to, note = folder.moved[0]
    assert (name, moved_to, note["code"], note["outcome"]) == ("a.bundle", where, code, where)


@pytest.mark.parametrize(
    "answer",
    [
        Busy("a trial is under way"),
        {"phase": "waiting", "reason": "no_space", "message": "lacking"},
        {"phase": "failed", "reason": "source_lost", "message": "the agent was restarted"},
    ],
    ids=["busy", "no_space", "source_lost"],
)
async def test_what_cannot_be_done_now_stays_and_is_tried_again_later(answer: Any) -> None:
    folder = Folder([entry("a.bundle")])
    inbox, engine, clock = made(folder, answer, CONFIRMED)
    await inbox.look()
    await inbox.look()
    await inbox.look()
    assert (len(engine.answers), folder.moved) == (1, [])
    clock.at += AGAIN_S
    await inbox.look()
    assert [where for _, where, _ in folder.moved] == ["done"]


async def test_a_disk_that_takes_no_note_is_waited_for() -> None:
    folder = Folder([entry("link.bundle", wrong="it is no plain file")], full=True)
    inbox, _, clock = made(folder)
    await inbox.look()
    await inbox.look()
    folder.full = False
    await inbox.look()
    assert folder.moved == []
    clock.at += AGAIN_S
    await inbox.look()
    assert folder.moved[0][2]["message"] == "it is no plain file"


def test_a_file_that_has_changed_since_the_look_is_not_read(tmp_path: Path) -> None:
    folder = InboxFolder(tmp_path / "in")
    folder.prepare()
    file = tmp_path / "in" / "a.bundle"
    file.write_bytes(b"1")
    seen = folder.look()[0]
    file.write_bytes(b"22")
    assert folder.open(seen) is None
    now = folder.look()[0]
    with file.open("ab"):
        assert folder.open(now) is None  # somebody has it open for writing
    descriptor = folder.open(now)
    assert descriptor is not None
    os.close(descriptor)
    file.unlink()
    assert folder.open(now) is None
    folder.put(now, "done", "2026-01-01T00:00:00.000000Z", {})  # who gave it took it away again: a note is enough
    assert [path.name for path in (tmp_path / "in" / "done").iterdir()] == ["20260101T000000Z-a.bundle.json"]


def test_a_name_is_never_more_than_a_name(tmp_path: Path) -> None:
    folder = InboxFolder(tmp_path / "in")
    folder.prepare()
    names = [
        b"\x1b[2J.bundle",
        b"\xff\xfe.bundle",
        b"x" * 240 + b".bundle",
        b"-rf.bundle",
        b".hidden.bundle",
        b"a.part",
    ]
    for name in names:
        with open(os.fsencode(tmp_path / "in") + b"/" + name, "wb") as file:
            file.write(b"x")
    seen = folder.look()
    assert len(seen) == 4
    for one in seen:
        folder.put(one, "refused", "2026-01-01T00:00:00.000000Z", {"outcome": "refused"})
    kept = [path.name for path in (tmp_path / "in" / "refused").iterdir()]
    assert len(kept) == 8
    assert all(name.isprintable() and name.startswith("20260101T000000Z-") for name in kept)


def test_the_same_name_twice_in_a_second_loses_neither(tmp_path: Path) -> None:
    folder = InboxFolder(tmp_path / "in")
    folder.prepare()
    for content in (b"1", b"2"):
        (tmp_path / "in" / "a.bundle").write_bytes(content)
        folder.put(folder.look()[0], "done", "2026-01-01T00:00:00.000000Z", {})
    kept = sorted(path.read_bytes() for path in (tmp_path / "in" / "done").glob("*.bundle"))
    assert kept == [b"1", b"2"]


def test_what_was_taken_stays_for_a_while_and_the_oldest_goes(tmp_path: Path) -> None:
    folder = InboxFolder(tmp_path / "in", keep=2)
    folder.prepare()
    done = tmp_path / "in" / "done"
    (done / "mine.txt").write_text("a person's")
    (done / "20200101-notes.bundle").write_text("a person's, too")
    for second in range(5):
        name = tmp_path / "in" / f"{second}.bundle"
        if second == 1:
            name.mkdir()
            (name / "inside").touch()
        elif second == 2:
            name.symlink_to(done / "mine.txt")
        else:
            name.write_bytes(b"x")
        folder.put(folder.look()[0], "done", f"2026-01-01T00:00:0{second}.000000Z", {})
    kept = sorted(path.name for path in done.iterdir())
    newest = [f"20260101T00000{second}Z-{second}.bundle" for second in (3, 4)]
    assert kept == ["20200101-notes.bundle", *sorted([*newest, *(f"{name}.json" for name in newest)]), "mine.txt"]


def test_a_link_of_an_odd_name_is_refused_in_words_that_can_be_written(tmp_path: Path) -> None:
    inbox = InboxFolder(tmp_path / "inbox")
    inbox.prepare()
    name = os.fsdecode(b"x\xff\x1b[2J.bundle")
    (inbox.path / name).write_bytes(b"x")
    seen = inbox.look()[0]
    (inbox.path / name).unlink()
    (inbox.path / name).symlink_to("/etc/passwd")
    with pytest.raises(Forbidden) as refused:
        inbox.open(seen)
    assert refused.value.message.encode().decode().isprintable()
    inbox.put(seen, "refused", "2026-06-01T00:00:00.000000Z", {"message": refused.value.message})
    assert len(list((inbox.path / "refused").glob("*.json"))) == 1
