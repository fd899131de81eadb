"""The server's disk is stolen: its online keys sign what they like. Nothing foreign runs, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest

from interlock_shared.topics import target_name
from tests.attacks import impostor
from tests.attacks.scene import ROLE, Attack, Scene, rows_of, scene
from tests.attacks.thief import DAYS, metadata_path
from tests.e2e.world import MODEL

pytestmark = pytest.mark.e2e

UNTRUSTED = ("bad_metadata", "metadata_missing", "below_floor")
TORN = dict.fromkeys(("timestamp.json", "snapshot.json", "targets.json", f"{ROLE}.json"), "empty")
ROOT_TORN = {**TORN, "root.json": "empty", "root_history/*.json": "empty"}
PAST = -timedelta(hours=1)


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene() as made:
        made.world.add_model("other")  # targets has a second version
        made.recovers()
        yield made


def _new_target(s: Scene) -> None:
    version = s.world.release()
    s.impostor.instead.update(s.thief.added(target_name(MODEL, "6.6.6"), b"{}"))
    s.refuses_version(version, *UNTRUSTED)


def _changed_target(s: Scene) -> None:
    version = s.world.release()
    s.impostor.instead.update(s.thief.added(target_name(MODEL, version), b'{"schema":"interlock.bundle/1"}'))
    s.refuses_version(version, *UNTRUSTED)


def _resigned(s: Scene) -> None:
    """The role from before the newest release, under a new snapshot and a new timestamp: that release is not in it."""
    version = s.world.release()
    thief = s.thief
    s.impostor.instead.update(thief.files({ROLE: thief.read(thief.name(ROLE)).version - 1}))
    s.refuses_version(version, *UNTRUSTED, "not_signed")


def _frozen(s: Scene, timestamp: timedelta, snapshot: timedelta) -> None:
    version = s.world.release()
    s.impostor.instead.update(s.thief.files(life=timestamp, snapshot_life=snapshot))
    s.waits_version(version, "metadata_expired")


def _mixed(s: Scene, role: str) -> None:
    """The snapshot names the newest; what is served under its name is the one before. It is there before the newest is:
    a device that looks at once must not have got that."""
    before = s.thief.name(role)
    newest = f"{int(before.split('.')[0]) + 1}.{role}.json"
    s.impostor.instead[metadata_path(newest)] = s.thief.raw(before)
    if role == "targets":
        s.world.add_model("one-more")
    version = s.world.release()
    assert s.thief.name(role) == newest
    s.refuses_version(version, *UNTRUSTED)


def _rolled_back(s: Scene, role: str, torn: dict[str, str]) -> None:
    """What was true once is told again, and every signature is genuine."""
    s.sees_all()
    before = {name: s.thief.read(s.thief.name(name)).version for name in ROLES}
    version = s.world.release()
    assert before[role] > 1, "there is something to go back to"
    if role == "timestamp":
        s.impostor.instead.update(s.thief.files(ahead=before[role] - 1 - s.thief.timestamp().version))
    elif role == "snapshot":
        s.impostor.instead.update(s.thief.naming(before[role] - 1))
    else:
        s.impostor.instead.update(s.thief.files({role: before[role] - 1}))
    s.tear(torn)
    s.refuses_version(version, *UNTRUSTED)


def _fast_forwarded(s: Scene) -> None:
    """Versions far ahead, so that nothing of the real server is ever newer; until root takes those keys away."""
    version = s.world.release(width=8)
    s.impostor.instead.update(s.thief.files(ahead=1000))
    s.sees_all(version)
    s.impostor.instead.clear()
    s.refuses(*UNTRUSTED)
    s.world.cli("root", "propose", "--rotate", "timestamp", "--rotate", "snapshot")
    s.sees_all()
    assert s.stored("timestamp") < 1000


def _root_rolled_back(s: Scene, torn: dict[str, str]) -> None:
    """The roots since the first are kept from a device, whose own copies are torn."""
    s.sees_all()
    assert s.stored("root") > 1, "keys were replaced before"
    version = s.world.release()
    s.impostor.behaves.append((r"/v1/metadata/[2-9][0-9]*\.root\.json", impostor.missing))
    s.tear(torn)
    s.refuses_version(version, *UNTRUSTED)


ROLES = ("timestamp", "snapshot", "targets", ROLE)
ATTACKS = (
    Attack("online keys sign a new target", _new_target, "refused: the release role has not signed it"),
    Attack(
        "online keys sign other bytes of a release",
        _changed_target,
        "refused: the release role has not signed it",
        True,
    ),
    Attack("an old state of the release role under new signatures", _resigned, "refused: it does not name the release"),
    Attack(
        "freeze: a timestamp that is not renewed",
        partial(_frozen, timestamp=PAST, snapshot=DAYS),
        "waits: nothing is adopted after its date",
    ),
    Attack(
        "freeze: a snapshot that is not renewed",
        partial(_frozen, timestamp=DAYS, snapshot=PAST),
        "waits: nothing is adopted after its date",
        long=True,
    ),
    *(
        Attack(
            f"mix and match: {name} of another time",
            partial(_mixed, role=role),
            "refused: not what is named",
            role != ROLE,
        )
        for name, role in (("targets", "targets"), ("the release role", ROLE))
    ),
    *(
        Attack(
            f"rollback of {'the release role' if role == ROLE else role}, store {how}",
            partial(_rolled_back, role=role, torn=torn),
            "refused: the floors are in the journal, too",
            long=not torn or role in ("snapshot", "targets"),
        )
        for role in ROLES
        for how, torn in (("intact", {}), ("torn", TORN))
    ),
    Attack(
        "fast-forward of the online roles", _fast_forwarded, "nothing new until root names other keys; then as ever"
    ),
    *(
        Attack(
            f"rollback of root, store {how}",
            partial(_root_rolled_back, torn=torn),
            "refused: its floor is known",
            how == "lost",
        )
        for how, torn in (("torn", ROOT_TORN), ("lost", dict.fromkeys(ROOT_TORN, "gone")))
    ),
)


@pytest.mark.parametrize("attack", rows_of(ATTACKS))
def test_a_stolen_server(stage: Scene, attack: Attack[Scene]) -> None:
    with stage.attack():
        attack.case(stage)


def test_afterwards_the_next_release_is_proven_as_ever(stage: Scene) -> None:
    stage.recovers()
