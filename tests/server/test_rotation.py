"""Keys change, and everybody follows: the server's repository, and a device's own trust code that reads from it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Timestamp

from interlock_agent.fetcher.port import ROTATIONS_MAX
from interlock_agent.fetcher.trust import Trust
from interlock_server.adapters.keys import OnlineKeys
from interlock_server.adapters.tuf_repository import TOGETHER, TufRepository
from interlock_server.publisher import ceremony, keys, proposal, status
from interlock_server.publisher.ceremony import Changes
from interlock_server.publisher.keys import KeyFolder
from interlock_server.publisher.proposal import Proposal, State
from interlock_shared import canonical, durable, topics
from interlock_shared.errors import Conflict, InterlockError, Later, Untrusted
from tests.publisher.trusts import person, public
from tests.server.fleet_fixture import Fleet, opened

NOW, RELEASE = datetime.now(UTC).replace(microsecond=0), "release-detector"


@dataclass
class Source:
    """What a device fetches: the repository's files, and what somebody in between puts in their place."""

    folder: Path
    lies: dict[str, bytes] = field(default_factory=dict)

    def metadata(self, name: str, limit: int) -> bytes | None:
        del limit
        path = self.folder / name
        return self.lies.get(name) or (path.read_bytes() if path.exists() else None)

    def director(self, limit: int) -> bytes:
        del limit
        return (self.folder / "target" / "director.json").read_bytes()


class Rig:
    """A repository, its people with their keys, and a device."""

    def __init__(
        self, folder: Path, *people: KeyFolder, thresholds: dict[str, int] | None = None, now: datetime = NOW
    ) -> None:
        self.folder, self.people, self.now = folder, people, now
        self.open()
        made = ceremony.first(self.keys.public(), public(*people), thresholds or {}, now)
        self.state = State((), None, {}, {})
        self.take(made)
        self.source = Source(folder / "tuf")
        self.floors: dict[str, Any] = {}
        self.director: dict[str, Any] = {"epoch": 0}
        self.refresh()

    def open(self) -> None:
        """The server starts."""
        self.keys = OnlineKeys.open(self.folder / "keys")
        self.repository = TufRepository(self.folder / "tuf", self.keys)

    def take(self, made: Proposal, *signers: KeyFolder) -> None:
        """Signed by these (all of them by default), and uploaded."""
        for one in signers or self.people:
            proposal.sign(made, one)
        self.repository.accept_trust(made.upload(), self.now)
        self.state = made.after

    def change(self, *signers: KeyFolder, **changes: Any) -> None:
        """One change, as `interlock root propose` makes it."""
        self.take(ceremony.following(self.state, Changes(**changes), self.now), *signers)

    def fresh(self, *roles: str) -> dict[str, Any]:
        """The server's fresh keys."""
        self.keys.begin(roles)
        found = ceremony.online_keys(self.keys.public())
        return {role: found[role] for role in roles}

    def refresh(self) -> None:
        """The device follows."""
        chain = Trust((self.folder / "tuf" / "1.root.json").read_bytes(), self.folder / "device", self.source,
                      self.now.timestamp())  # fmt: skip
        self.floors = chain.refresh(self.floors)
        self.director = chain.director(self.director["epoch"])


@pytest.fixture
def alice(tmp_path: Path) -> KeyFolder:
    """She has all keys."""
    return person(tmp_path, "alice", "root", "targets", RELEASE)


@pytest.fixture
def rig(tmp_path: Path, alice: KeyFolder) -> Rig:
    return Rig(tmp_path, alice)


def offline_key(role: str) -> Callable[[Rig, Path], dict[str, Any]]:
    """Another person's key in the place of the one that there is."""

    def change(rig: Rig, folder: Path) -> dict[str, Any]:
        other = person(folder, f"other-{role}", role)
        rig.people = (*rig.people, other)
        return {"add": public(other), "remove": {role: ["alice"]}}

    return change


def online_key(role: str) -> Callable[[Rig, Path], dict[str, Any]]:
    return lambda rig, folder: {"online": rig.fresh(role)}


@pytest.mark.parametrize(
    ("change", "versions"),
    [
        (offline_key("root"), (2, 1, 1)),
        (offline_key("targets"), (2, 2, 1)),
        (offline_key(RELEASE), (1, 2, 2)),
        (online_key("snapshot"), (2, 1, 1)),
        (online_key("timestamp"), (2, 1, 1)),
        (online_key("director"), (1, 2, 1)),
    ],
    ids=["root", "targets", "release", "snapshot", "timestamp", "director"],
)
def test_every_role_rotates(rig: Rig, tmp_path: Path, change: Any, versions: tuple[int, int, int]) -> None:
    rig.change(**change(rig, tmp_path))
    rig.refresh()
    root, targets, release = versions
    assert (rig.floors["root"], rig.floors["targets"]) == (root, targets)
    assert rig.state.delegated[RELEASE].signed.version == release
    rig.open()  # and after a restart
    rig.change(renew={"root", "targets", RELEASE})
    rig.refresh()
    assert (rig.floors["root"], rig.floors["targets"]) == (root + 1, targets + 1)


def test_a_stolen_directors_documents_count_no_longer(rig: Rig) -> None:
    before = rig.keys.candidates("director")[0].public_key.keyid
    rig.change(online=rig.fresh("director"))
    rig.refresh()
    assert rig.director["epoch"] == rig.keys.epoch == 2
    assert before not in rig.director["keys"]
    assert list(rig.director["keys"]) == [one.public_key.keyid for one in rig.keys.candidates("director")]
    assert [path.name for path in sorted((rig.folder / "keys").iterdir())] == [
        "director.pem", "snapshot.pem", "timestamp.pem",
    ]  # fmt: skip


def test_a_root_of_two_of_three_outlives_a_lost_key_and_a_stolen_one(tmp_path: Path) -> None:
    alice = person(tmp_path, "alice", "root", "targets", RELEASE)
    bob, carol, dave = (person(tmp_path, name, "root") for name in ("bob", "carol", "dave"))
    rig = Rig(tmp_path, alice, bob, carol, thresholds={"root": 2})
    lost = ceremony.following(rig.state, Changes(add=public(dave), remove={"root": ["carol"]}), NOW)
    proposal.sign(lost, alice)
    with pytest.raises(Untrusted, match="1 of 2, signed by alice; 1 more of: bob, carol"):
        lost.upload()
    copy = proposal.parse(lost.to_bytes())
    proposal.sign(copy, dave)  # the new root counts him, the old one does not
    assert [one.missing for one in copy.needs()] == [1, 0]
    proposal.sign(copy, bob)
    rig.take(copy, bob)
    rig.refresh()
    stolen = ceremony.following(rig.state, Changes(remove={"root": ["alice"]}), NOW)
    rig.take(stolen, bob, dave)
    rig.refresh()
    assert rig.floors["root"] == 3
    with pytest.raises(Untrusted, match="nobody"):
        rig.take(ceremony.following(rig.state, Changes(renew={"root"}), NOW), alice)


def test_a_release_role_of_two_people(tmp_path: Path) -> None:
    alice = person(tmp_path, "alice", "root", "targets", RELEASE)
    bob = person(tmp_path, "bob", RELEASE)
    rig = Rig(tmp_path, alice, bob, thresholds={RELEASE: 2})
    rig.refresh()
    with pytest.raises(InterlockError, match="3 of 2 keys"):
        rig.change(thresholds={RELEASE: 3})
    carol = person(tmp_path, "carol", RELEASE)
    rig.change(alice, bob, carol, add=public(carol), thresholds={RELEASE: 3})
    rig.refresh()
    assert rig.state.targets is not None
    assert rig.state.targets.signed.get_delegated_role(RELEASE).threshold == 3


def test_a_device_that_slept_through_many_rotations_catches_up(rig: Rig) -> None:
    state, count = rig.state, ROTATIONS_MAX + 12
    roots: list[Metadata[Root]] = []
    for _ in range(count):
        made = ceremony.following(state, Changes(renew={"root"}), NOW)
        proposal.sign(made, rig.people[0])
        roots, state = [*roots, *made.roots], made.after
    rig.take(Proposal(rig.state, tuple(roots), None, {}, rig.state.director))
    with pytest.raises(Later, match="more"):
        rig.refresh()
    rig.refresh()
    assert rig.floors["root"] == count + 1


def lie(rig: Rig, roles: tuple[str, ...], version: int) -> None:
    """What a thief of the online keys signs, in between: a count that nobody will ever reach."""
    state = rig.repository._state
    assert state.snapshot is not None
    snapshot = Snapshot(version=version, expires=keys.expires(NOW), meta=state.snapshot.signed.meta)
    theirs = state.snapshot.signed.version if "snapshot" not in roles else version
    timestamp = Timestamp(version=version, expires=keys.expires(NOW), snapshot_meta=MetaFile(theirs))
    for name, signed in ((f"{version}.snapshot", snapshot), ("timestamp", timestamp)):
        role = name.rpartition(".")[2]
        envelope: Metadata[Any] = Metadata(signed)
        envelope.sign(rig.keys.candidates(role)[0])
        rig.source.lies[f"{name}.json"] = canonical.encode(envelope.to_dict())


@pytest.mark.parametrize("roles", [("timestamp",), ("snapshot", "timestamp")], ids="-".join)
def test_a_thief_of_online_keys_strands_no_device(rig: Rig, roles: tuple[str, ...]) -> None:
    """Fast-forward recovery: after the rotation versions begin lower than the thief's, on devices and their floors."""
    lie(rig, roles, 2**31)
    rig.refresh()
    assert rig.floors["timestamp"] == 2**31
    rig.source.lies.clear()
    with pytest.raises(Untrusted):
        rig.refresh()
    rig.change(online=rig.fresh(*roles))
    rig.refresh()
    assert rig.floors["timestamp"] < 10


def test_several_roots_are_uploaded_at_once_and_again(rig: Rig, alice: KeyFolder, tmp_path: Path) -> None:
    bob = person(tmp_path, "bob", "root")
    second = ceremony.following(rig.state, Changes(add=public(bob), remove={"root": ["alice"]}), NOW)
    for one in (alice, bob):
        proposal.sign(second, one)
    third = ceremony.on_top(second, Changes(online=rig.fresh("timestamp")), NOW)
    rig.take(third, bob)
    rig.refresh()
    assert rig.floors["root"] == 3
    rig.repository.accept_trust(third.upload(), NOW)  # a repetition is no error
    upload = third.upload()
    with pytest.raises(Conflict, match="version 3, 2 is expected"):
        Rig(tmp_path / "b", alice).repository.accept_trust({**upload, "chain": []}, NOW)


def foreign_online(rig: Rig) -> dict[str, Any]:
    return {"online": {"timestamp": CryptoSigner.generate_ed25519().public_key}}


def foreign_director(rig: Rig) -> dict[str, Any]:
    return {"online": {"director": CryptoSigner.generate_ed25519().public_key}}


def test_what_has_expired_is_renewed_and_devices_go_on(tmp_path: Path, alice: KeyFolder) -> None:
    rig = Rig(tmp_path, alice, now=NOW - timedelta(days=400))
    rig.now = NOW
    rig.repository.refresh(NOW)
    with pytest.raises(Untrusted, match="expired"):
        rig.refresh()
    with pytest.raises(Untrusted, match="targets: expired"):
        rig.change(renew={"root"})
    rig.change(renew=set(status.expiring(rig.state, NOW)))
    rig.refresh()
    assert (rig.floors["root"], rig.floors["targets"]) == (2, 2)


@pytest.mark.parametrize("changes", [foreign_online, foreign_director])
def test_another_servers_keys_are_refused_and_nothing_changes(rig: Rig, changes: Any) -> None:
    before = {path: path.read_bytes() for path in (rig.folder / "tuf").rglob("*.json")}
    with pytest.raises(Untrusted) as refused:
        rig.change(**changes(rig))
    assert refused.value.code == "foreign_online_key"
    assert {path: path.read_bytes() for path in (rig.folder / "tuf").rglob("*.json")} == before


def test_a_director_of_the_former_epoch_is_refused(rig: Rig) -> None:
    state = rig.state
    rig.change(online=rig.fresh("director"))
    made = ceremony.following(rig.state, Changes(renew={"targets"}), NOW)
    assert made.targets is not None
    back = Proposal(made.former, (), made.targets, {}, {**made.director, "epoch": 1})
    ceremony._name_director(made.targets.signed, back.director)
    with pytest.raises(Conflict, match="epoch 1 is before 2"):
        rig.take(back)
    with pytest.raises(InterlockError):
        rig.take(ceremony.following(state, Changes(renew={"targets"}), NOW))


class CutError(Exception):
    """The power is gone."""


def cuts(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Only so many files are written from now on."""
    left = iter(range(after))
    original = durable.replace_file

    def replace(*arguments: Any, **more: Any) -> None:
        if next(left, None) is None:
            raise CutError
        original(*arguments, **more)

    monkeypatch.setattr(durable, "replace_file", replace)


def everything(rig: Rig, tmp_path: Path) -> Proposal:
    """New keys for everybody, signed."""
    other = person(tmp_path, "other", "root", "targets", RELEASE)
    changes = Changes(
        add=public(other),
        remove={role: ["alice"] for role in ("root", "targets", RELEASE)},
        online=rig.fresh("snapshot", "timestamp", "director"),
    )
    made = ceremony.following(rig.state, changes, NOW)
    for one in (*rig.people, other):
        proposal.sign(made, one)
    return made


@pytest.mark.parametrize("restarted", [True, False], ids=["power cut", "full disk"])
@pytest.mark.parametrize("after", range(10))
def test_an_upload_that_ends_at_any_write_leaves_a_repository_that_serves(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, restarted: bool
) -> None:
    made = everything(rig, tmp_path)
    with monkeypatch.context() as patch:
        cuts(patch, after)
        with pytest.raises(CutError):
            rig.repository.accept_trust(made.upload(), NOW)
    if restarted:
        rig.open()
    else:
        rig.repository.refresh(NOW)
    rig.refresh()
    assert not (rig.folder / "tuf" / TOGETHER).exists()
    assert rig.floors["root"] == (1 if after == 0 else 2)
    rig.repository.accept_trust(made.upload(), NOW)
    rig.refresh()
    assert (rig.floors["root"], rig.director["epoch"]) == (2, 2)
    assert not list((rig.folder / "keys").glob("*.next.pem"))


def test_a_server_that_has_lost_its_keys_says_so_and_gets_fresh_ones(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (tmp_path / "keys").iterdir():
        path.unlink()
    rig.open()
    assert [one.args for one in caplog.records] == [("snapshot",), ("timestamp",), ("director",)]
    with pytest.raises(Untrusted, match="put keys/ back or `interlock root propose --rotate") as refused:
        rig.repository.refresh(NOW + timedelta(days=2))
    assert refused.value.code == "foreign_online_key"
    rig.change(online=rig.fresh("snapshot", "timestamp", "director"))
    rig.refresh()
    assert (rig.floors["root"], rig.director["epoch"]) == (2, 2)


# --- the whole server -------------------------------------------------------------------------------------------------


def epoch_of(envelope: dict[str, Any]) -> int:
    return int(json.loads(base64.b64decode(envelope["payload"]))["epoch"])


async def test_a_rotated_director_wants_everything_anew_at_once(fleet: Fleet) -> None:
    """Under the next epoch, counted from one: neither the thief's counter nor his documents hold a device up."""
    await fleet.publish("1.0.0")
    device = await fleet.enrol("edge-1")
    async with device.online() as link:
        await fleet.admin.post(topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"all": True}})
        await link.until(lambda one: bool(one.desired))
        await link.send("reported", device.reported(1, desired=[1, 2**31]))  # a thief has counted
        body = fleet.offline.trust(fleet.online)
        fresh = (await fleet.admin.post(topics.ONLINE_KEYS, {"roles": ["director"]}))["director"]["next"]
        director = {"schema": "interlock.director/1", "epoch": 2, "keys": {fresh["keyid"]: fresh["key"]}}
        targets = fleet.offline.targets(director, version=2)
        await fleet.admin.post(
            topics.TRUST, {"root": body["root"], "targets": targets, "delegated": {}, "director": director}
        )
        await link.until(lambda one: epoch_of(one.desired[-1]) == 2)
    online = await fleet.admin.get(topics.ONLINE_KEYS)
    assert (online["director"], online["director_epoch"]) == (fresh, 2)
    document = opened(link.desired[-1], online, device.id, (1, 2**31))
    assert document is not None
    assert (document.epoch, document.counter) == (2, 1)
    assert document.units["detector"].version == "1.0.0"
    audit = await fleet.admin.get(topics.AUDIT)
    assert {"trust.rotate", "trust.update"} <= {one["action"] for one in audit["audit"]}


@pytest.mark.parametrize("body", [{}, {"roles": []}, {"roles": ["root"]}, {"roles": ["snapshot"], "x": 1}])
async def test_what_is_no_online_role_is_not_rotated(fleet: Fleet, body: dict[str, Any]) -> None:
    status, document = await fleet.admin.ask("POST", topics.ONLINE_KEYS, body)
    assert (status, document["code"]) == (400, "invalid")
    assert await fleet.admin.get(topics.ONLINE_KEYS) == fleet.online
