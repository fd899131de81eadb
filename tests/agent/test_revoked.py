"""A release that its signers have taken back: what is believed of it, and what the device does, by table."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from interlock_agent.adapters.journal import SqliteJournal
from interlock_agent.config import Config
from interlock_agent.core import quarantine, revoked
from interlock_agent.core.records import Attempt, Installed, UnitRecord, Wish
from interlock_agent.core.reports import reports
from interlock_agent.core.revoked import REVOKED
from interlock_agent.core.states import Event, Phase
from interlock_agent.core.wishes import restoring
from interlock_agent.engine import Engine
from interlock_agent.fetcher import revocations
from interlock_agent.guard import Guard
from interlock_agent.host.front.router import Limits, Router
from interlock_agent.ports import Stored
from interlock_agent.steps import fetching, switching
from interlock_agent.steps.base import Happened, Shared
from interlock_shared.errors import Busy, Later, Never
from tests.agent.test_switching import Switch

UNIT = "detector"
GOOD = Installed("1.0.0", "a" * 64, "1" * 64, "a", "fp", "w1")
BAD = Installed("1.1.0", "b" * 64, "2" * 64, "b", "fp", "w2")
WHY = {"version": "1.1.0", "reason": "labels were swapped", "at": "2026-01-01T00:00:00Z"}


def known(*digests: str) -> dict[str, Any]:
    return {UNIT: dict.fromkeys(digests, WHY)}


# --- what is believed -------------------------------------------------------------------------------------------------

NAME = "detector/1.1.0/manifest.json"
TARGET = {NAME: {"length": 9, "hashes": {"sha256": "b" * 64}}}
RECORD = {"1.1.0": {"manifest_sha256": "b" * 64, "at": "2026-01-01T00:00:00Z", "reason": "labels were swapped"}}


@pytest.mark.parametrize(
    ("targets", "records", "online", "reason"),
    [
        (TARGET, {}, True, None),
        (TARGET, {}, False, None),
        ({}, RECORD, True, "labels were swapped"),
        ({}, RECORD, False, "labels were swapped"),  # a record speaks for itself
        ({}, {}, True, revocations.GONE),
        ({}, {}, False, None),  # a file may be newer than what this metadata has heard of
        ({NAME: {"length": 9, "hashes": {"sha256": "c" * 64}}}, {}, True, revocations.GONE),
        ({}, {"1.1.0": {**RECORD["1.1.0"], "manifest_sha256": "c" * 64}}, False, None),  # other bytes of that name
        ({}, {"1.0.0": RECORD["1.1.0"]}, False, None),
    ],
)
def test_a_record_is_proof_and_a_missing_target_where_the_server_brought_it(
    targets: Any, records: Any, online: bool, reason: str | None
) -> None:
    signed = {"targets": targets, "x-interlock": {"revoked": records}}
    found = revocations.of_signed(signed, UNIT, "1.1.0", "b" * 64, online=online)
    assert (found and found["reason"]) == reason


def test_one_role_that_cannot_be_had_leaves_the_others_looked_at() -> None:
    class Chain:
        def role(self, model: str, floors: dict[str, Any]) -> Any:
            if model == "away":
                raise Later("no link")
            if model == "broken":  # its keys are in other hands, say
                return {"targets": {}, "x-interlock": {"revoked": "everything"}}, {**floors, model: 7}
            signed = {"targets": {}, "x-interlock": {"revoked": RECORD}} if model == UNIT else None
            return signed, {**floors, model: 7}

    mine = [["1.1.0", "b" * 64, False]]
    found, floors = revocations.look(
        cast("Any", Chain()), {"away": mine, "broken": mine, "factory": mine, UNIT: mine}, {"root": 1}
    )
    assert found == {UNIT: {"b" * 64: {"version": "1.1.0", "reason": "labels were swapped", "at": WHY["at"]}}}
    assert floors == {"root": 1, "broken": 7, "factory": 7, UNIT: 7}


def test_what_a_unit_holds() -> None:
    wish = Wish("1.2.0", "c" * 64, "w3")
    record = UnitRecord(UNIT, confirmed=BAD, previous=replace(GOOD, assignment=""), attempt=Attempt(wish))
    assert revoked.installed(record) == [
        ("1.1.0", "b" * 64, True),
        ("1.0.0", "a" * 64, False),
        ("1.2.0", "c" * 64, False),  # wanted by the server, and the metadata here may be from before
    ]
    back = replace(record, attempt=restoring(record, 8, {}).attempt)
    assert len(revoked.installed(back)) == 2


async def test_what_arrived_is_never_forgotten(tmp_path: Path) -> None:
    """Not by a refresh that does not name it, and not with the journal's database."""
    journal = SqliteJournal(tmp_path, "press-7")
    stored = await journal.load()
    shared = Shared(cast("Any", SimpleNamespace(journal=journal)), Config(), "press-7", stored)
    await shared.trust_moved({"revoked": known("b" * 64)})
    await shared.trust_moved({"revoked": {"other": {"c" * 64: WHY}}})
    await shared.trust_moved({"floors": {"root": 2}})
    assert shared.revocation(UNIT, "b" * 64) == WHY
    assert shared.revocation(UNIT, "a" * 64) is None
    await journal.close()
    for path in tmp_path.glob("journal.db*"):
        path.write_bytes(b"torn") if path.name == "journal.db" else path.unlink()
    again = SqliteJournal(tmp_path, "press-7")
    assert (await again.load()).meta["revoked"] == {"other": {"c" * 64: WHY}, **known("b" * 64)}
    await again.close()


# --- what is done -----------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """An engine that writes down what it is asked."""

    record_: UnitRecord
    stored: Stored
    orders: list[str] = field(default_factory=list)
    busy: bool = False

    def __post_init__(self) -> None:
        self.shared = SimpleNamespace(
            revocation=lambda unit, digest: revoked.of(self.stored.meta, unit, digest),
            surroundings=lambda record, manifest: quarantine.surroundings({}, "fp", "", ""),
        )
        self.on_change = self.orders.append

    def record(self, unit: str) -> UnitRecord:
        assert unit == UNIT
        return self.record_

    async def order(self, unit: str, event: Event, reason: str, seen: dict[str, Any] | None = None) -> None:
        if self.busy:
            raise Busy("not now")
        self.orders.append(f"{event.value}: {reason}" + (f": {seen['message']}" if seen else ""))

    async def configure(self, unit: str) -> None:
        self.orders.append("told the host")


class Diary:
    """A journal's put_meta."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    async def put_meta(self, values: dict[str, Any], outbox: tuple[dict[str, Any], ...] = ()) -> None:
        self.entries += [json.loads(json.dumps(entry)) for entry in outbox]


def guard(policy: str, record: UnitRecord, *digests: str) -> tuple[Guard, Told, Diary]:
    engine, diary = Told(record, Stored(meta={"revoked": known(*digests)})), Diary()
    clock = SimpleNamespace(now=lambda: 0.0, monotonic=lambda: 0.0)
    ports = SimpleNamespace(clock=clock, journal=diary)
    config = Config.model_validate({"units": {UNIT: {"revoked": policy, "health": {"late_revert": "alarm"}}}})
    return Guard(cast("Engine", engine), cast("Any", ports), config), engine, diary


BACK = f"turned-bad: revoked: {WHY['reason']}"


@pytest.mark.parametrize(
    ("policy", "previous", "others", "order", "why"),
    [
        ("back", GOOD, (), BACK, ""),  # whatever `late_revert` says: that is about health
        ("back", None, (), "", "no_fallback"),
        ("back", GOOD, ("a" * 64,), "", "fallback_revoked"),
        ("stop", GOOD, (), "told the host", "stop"),
        ("keep", GOOD, (), "", "keep"),
    ],
)
async def test_the_owners_word(
    policy: str, previous: Installed | None, others: tuple[str, ...], order: str, why: str
) -> None:
    record = UnitRecord(UNIT, Phase.CONFIRMED.value, confirmed=BAD, previous=previous)
    made, engine, diary = guard(policy, record, BAD.manifest_sha256, *others)
    for _ in range(3):  # each look: told once
        await made._revoked(record, BAD, WHY)
    asked = [one for one in engine.orders if one != UNIT]
    if not why:
        assert asked[0] == order
        assert diary.entries[:1] == [] or diary.entries[0]["data"]["why"] == "tried_in_vain"
        return
    assert asked == ([order] if order else [])
    (entry,) = diary.entries
    assert (entry["kind"], entry["reason"], entry["version"]) == ("revoked", "revoked", "1.1.0")
    assert (entry["data"]["why"], entry["data"]["action"]) == (why, "stop" if why == "stop" else "alarm")


async def test_while_it_is_just_switched_nothing_is_said() -> None:
    record = UnitRecord(UNIT, Phase.CONFIRMED.value, confirmed=BAD, previous=GOOD)
    made, engine, diary = guard("back", record, BAD.manifest_sha256)
    engine.busy = True
    await made._revoked(record, BAD, WHY)
    assert (engine.orders, diary.entries) == ([], [])


@pytest.mark.parametrize("phase", list(Phase))
async def test_what_is_in_flight_is_dropped_where_it_can_be(phase: Phase) -> None:
    wish = Wish("1.1.0", BAD.manifest_sha256, "w2")
    record = UnitRecord(UNIT, phase.value, confirmed=GOOD, attempt=Attempt(wish))
    made, engine, _ = guard("keep", record, BAD.manifest_sha256)
    done = await made._attempt_revoked(record)
    expected = phase.value in "accepted fetching staged gating passed waiting interrupted trial".split()
    out = "rollback: revoked" if phase is Phase.TRIAL else "cancel: revoked"
    assert (done, engine.orders) == (expected, [out] if expected else [])
    other, engine, _ = guard("back", record, "c" * 64)
    assert not await other._attempt_revoked(record)


async def test_it_is_not_fetched_not_switched_to_and_not_gone_back_to() -> None:
    one = Switch(Phase.SWITCHING)
    meta = one.bench.step().shared.stored.meta
    meta["revoked"] = {one.bench.step().name: {one.bench.step().attempt.wish.manifest_sha256: WHY}}
    happened = await switching.promote(one.bench.step())
    assert (happened.event, happened.reason) == (Event.GONE, REVOKED)
    assert one.sent("promote") == []
    with pytest.raises(Never) as refused:
        await fetching.fetch(one.bench.step())
    assert refused.value.code == REVOKED
    back = Switch(Phase.RESTORING, "late")
    step = back.bench.step()
    step.shared.stored.meta["revoked"] = {step.name: {step.attempt.wish.manifest_sha256: WHY}}
    with pytest.raises(Never) as refused:
        await switching.restore(back.bench.step())
    assert refused.value.code == REVOKED
    assert back.sent("load") == []


def test_it_is_told_as_what_it_is_and_says_nothing_of_the_bytes() -> None:
    old = UnitRecord(UNIT, Phase.CONFIRMED.value, 7, confirmed=BAD, previous=GOOD)
    seen = {"check": REVOKED, "message": WHY["reason"]}
    leaving = replace(restoring(old, 8, seen), phase=Phase.RESTORING.value)
    happened = Happened(Event.TURNED_BAD, reason=REVOKED, data=seen)
    (said,) = reports(old, leaving, happened, "t")
    assert (said["kind"], said["version"], said["data"]["action"]) == ("revoked", "1.1.0", "revert")
    shared = Shared(cast("Any", None), Config(), "press-7", Stored())
    assert shared.to_remember(old, leaving, happened, "t") == ()  # the same bytes may come under a new version


@pytest.mark.parametrize("policy", ["back", "keep", "stop"])
def test_the_host_is_told_of_releases_that_must_not_answer(policy: str) -> None:
    config = Config.model_validate({"units": {UNIT: {"revoked": policy}}})
    shared = Shared(cast("Any", None), config, "press-7", Stored(meta={"revoked": known("b" * 64)}))
    assert shared.options(UNIT).get("revoked") == (["detector/1.1.0"] if policy == "stop" else None)
    assert "revoked" not in shared.options("another")


async def test_the_front_refuses_for_a_revoked_release_and_answers_for_the_next() -> None:
    said: list[tuple[int, str]] = []

    class Client:
        def fail(self, exchange: Any, status: int, code: str, message: str, retry_after: int = 0) -> None:
            said.append((status, code))

    def asked() -> Any:
        names = ("deadline", "arrived", "alarm", "body", "cancelled", "avoid", "deaths")
        return SimpleNamespace(client=Client(), **dict(zip(names, (0.0, 0.0, None, b"", False, None, 0), strict=True)))

    def worker(release: str) -> Any:
        sent: list[Any] = []
        return SimpleNamespace(
            release=release, idle=[1], busy={}, dead=False, counters={"refused": 0}, sent=sent,
            send=lambda exchange, now: sent.append(exchange),
        )  # fmt: skip

    router = Router(lambda report: None, Limits(revoked=("detector/1.1.0",)))
    bad, good = worker("detector/1.1.0"), worker("detector/1.2.0")
    router.submit(asked())  # nobody is live: it waits
    router.switch(bad, None, drain=False)
    assert said == [(503, "release_revoked")]
    router.submit(asked())
    assert (said, bad.sent, router.ready) == ([(503, "release_revoked")] * 2, [], False)
    router.switch(good, bad, drain=False)
    router.submit(asked())
    assert (len(said), len(good.sent), router.ready) == (2, 1, True)
