"""The pure half: rollout states by table, acknowledgements by property, selection, access, checks of a publish."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_server.core import access, events, releases, rollout
from interlock_server.core.rollout import Told, Wish
from interlock_shared import canonical
from interlock_shared.errors import Forbidden, InterlockError
from interlock_shared.revocation import Revoked
from tests.server.fleet_fixture import the_manifest

MINE = "a" * 64
WISH = Wish("a-1", 1, "r-1", "edge-1", "detector", "1.0.0", MINE)


def told(*kinds: str, unit: str | None = "detector", digest: str | None = MINE, epoch: str = "e1") -> list[Told]:
    return [Told((1, number), kind, unit, digest, epoch) for number, kind in enumerate(kinds, 1)]


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ((), "offered"),
        (("accepted",), "accepted"),
        (("accepted", "staged"), "gating"),
        (("accepted", "staged", "verdict"), "gating"),
        (("accepted", "staged", "verdict", "switched"), "trial"),
        (("accepted", "staged", "verdict", "switched", "confirmed"), "confirmed"),
        (("accepted", "staged", "verdict", "rejected"), "rejected"),
        (("accepted", "failed"), "failed"),
        (("accepted", "waiting"), "waiting"),
        (("accepted", "waiting", "accepted"), "accepted"),
        (("accepted", "superseded"), "superseded"),
        (("accepted", "cancelled"), "cancelled"),
        (("accepted", "staged", "switched", "reverted"), "reverted"),
        (("accepted", "staged", "switched", "reverted", "quarantined"), "reverted"),
        (("accepted", "staged", "switched", "interrupted"), "waiting"),
        (("accepted", "staged", "switched", "interrupted", "switched", "confirmed"), "confirmed"),
        (("confirmed", "reverted"), "reverted"),  # a late revert reopens the result
        (("confirmed", "rolled_back"), "reverted"),
        (("confirmed", "rolled_back", "accepted", "switched", "confirmed"), "confirmed"),
        (("confirmed", "verdict"), "confirmed"),  # gated again after a driver upgrade
        (("confirmed", "waiting"), "confirmed"),
        (("refused", "state_lost"), "offered"),
        (("from-a-newer-agent",), "offered"),
    ],
)
def test_the_state_follows_from_the_events(kinds: tuple[str, ...], state: str) -> None:
    assert rollout.standing(WISH, told(*kinds), newer=False, report=None).state == state


@pytest.mark.parametrize(
    "strange",
    [{"digest": "b" * 64}, {"digest": None}, {"unit": "other"}, {"unit": None}],
    ids=["other manifest", "no manifest", "other unit", "no unit"],
)
def test_only_the_very_unit_and_manifest_confirm(strange: dict[str, Any]) -> None:
    assert rollout.standing(WISH, told("confirmed", **strange), newer=False, report=None).state == "offered"


@given(st.permutations(told("accepted", "staged", "verdict", "switched", "confirmed", "reverted", "quarantined")))
def test_the_order_of_arrival_changes_nothing(shuffled: list[Told]) -> None:
    assert rollout.standing(WISH, shuffled, newer=False, report=None).state == "reverted"


@given(st.lists(st.sampled_from([*rollout.NEXT, "unknown"]), max_size=12), st.booleans(), st.booleans())
def test_every_history_has_a_state_and_confirmed_needs_the_word(kinds: list[str], newer: bool, cancelled: bool) -> None:
    wish = Wish("a-1", 1, "r-1", "edge-1", "detector", "1.0.0", MINE, cancelled)
    state = rollout.standing(wish, told(*kinds), newer=newer, report=None).state
    assert state in rollout.STATES
    if state == "confirmed":
        assert "confirmed" in kinds


@pytest.mark.parametrize(
    ("kinds", "cancelled", "newer", "state"),
    [
        ((), True, False, "cancelled"),
        (("accepted", "staged"), True, False, "cancelled"),
        (("accepted", "staged", "switched"), True, False, "trial"),  # it had switched before the abort reached it
        (("confirmed",), True, True, "confirmed"),
        ((), False, True, "superseded"),
        (("accepted", "staged", "verdict", "rejected"), False, True, "rejected"),
        (("waiting",), True, True, "cancelled"),
    ],
)
def test_aborts_and_newer_wishes_end_only_what_has_not_switched(
    kinds: tuple[str, ...], cancelled: bool, newer: bool, state: str
) -> None:
    wish = Wish("a-1", 1, "r-1", "edge-1", "detector", "1.0.0", MINE, cancelled)
    assert rollout.standing(wish, told(*kinds), newer=newer, report=None).state == state


@pytest.mark.parametrize(
    ("report", "newer", "state"),
    [
        ({"running": "0.9.0"}, False, "reverted"),
        ({"running": "0.9.0"}, True, "confirmed"),  # a newer wish explains it
        ({"running": "1.0.0"}, False, "confirmed"),
        ({"running": None}, False, "confirmed"),  # the host restarts: nothing else runs
        ({"running": "0.9.0", "outbox_floor": 1}, False, "confirmed"),  # may have been written before
        ({"running": "0.9.0", "outbox_floor": 1, "outbox_epoch": "e2"}, False, "reverted"),
    ],
)
def test_a_device_that_runs_something_else_reopens_its_result(report: dict[str, Any], newer: bool, state: str) -> None:
    document = {
        "outbox_epoch": report.get("outbox_epoch", "e1"),
        "outbox_floor": report.get("outbox_floor", 2),
        "units": {"detector": {"running": report["running"]}},
    }
    assert rollout.standing(WISH, told("confirmed"), newer=newer, report=document).state == state


def test_the_newest_wish_that_was_not_taken_back_is_wanted() -> None:
    wishes = [
        Wish("a-1", 1, "r-1", "d", "detector", "1.0.0", MINE),
        Wish("a-2", 2, "r-2", "d", "detector", "1.1.0", MINE),
        Wish("a-3", 3, "r-3", "d", "detector", "1.2.0", MINE, cancelled=True),
        Wish("a-4", 4, "r-4", "d", "segmenter", "2.0.0", MINE, cancelled=True),
    ]
    random.Random(1).shuffle(wishes)
    assert {unit: wish.id for unit, wish in rollout.wanted(wishes).items()} == {"detector": "a-2"}


@pytest.mark.parametrize(
    ("to", "ids"),
    [
        ({"device": "b"}, ["b"]),
        ({"device": "zz"}, []),
        ({"labels": {"site": "berlin"}}, ["a", "b"]),
        ({"labels": {"site": "berlin", "line": "2"}}, ["b"]),
        ({"all": True}, ["a", "b", "c"]),
    ],
)
def test_a_selector_means_these_devices(to: dict[str, Any], ids: list[str]) -> None:
    devices: list[dict[str, Any]] = [
        {"id": "c", "labels": {}},
        {"id": "b", "labels": {"site": "berlin", "line": "2"}},
        {"id": "a", "labels": {"site": "berlin"}},
    ]
    assert rollout.select(devices, to) == ids


@pytest.mark.parametrize(
    ("ended", "states", "state"),
    [
        ("", ["offered", "confirmed"], "active"),
        ("", ["rejected", "confirmed", "failed"], "finished"),
        ("", ["waiting"], "active"),
        ("aborted", ["trial"], "aborted"),
        ("withdrawn", ["confirmed"], "withdrawn"),
    ],
)
def test_a_rollout_is_active_until_every_device_has_a_result(ended: str, states: list[str], state: str) -> None:
    assert rollout.rollout_state(ended, states) == state


# --- acknowledgements ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), max_size=80), st.randoms())
def test_acknowledged_is_exactly_what_has_no_gap_below(numbers: list[int], dice: random.Random) -> None:
    dice.shuffle(numbers)
    stored: set[int] = set()
    upto = 0
    for number in numbers:
        stored.add(number)
        before, upto = upto, events.advance(upto, [one for one in stored if one > upto])
        assert upto >= before
        assert set(range(1, upto + 1)) <= stored
        assert upto + 1 not in stored


@pytest.mark.parametrize(("upto", "floor", "gap"), [(0, 1, None), (5, 6, None), (5, 3, None), (5, 9, (6, 8))])
def test_what_neither_side_has_is_a_gap(upto: int, floor: int, gap: tuple[int, int] | None) -> None:
    assert events.lost(upto, floor) == gap


# --- access -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "needed", "may"),
    [
        ("viewer", "viewer", True),
        ("viewer", "operator", False),
        ("operator", "publisher", False),
        ("publisher", "operator", True),
        ("admin", "admin", True),
        ("device", "viewer", False),
    ],
)
def test_a_role_includes_the_smaller_ones(role: str, needed: str, may: bool) -> None:
    actor = access.Actor("somebody", role)
    if may:
        access.require(actor, needed)
    else:
        with pytest.raises(Forbidden):
            access.require(actor, needed)


# --- publishing ---------------------------------------------------------------------------------------------------

DATA = b"manifest"
NAME, OLDER = "detector/1.0.0/manifest.json", "detector/0.9.0/manifest.json"
GIVEN = {"length": len(DATA), "hashes": {"sha256": canonical.sha256(DATA)}}
OTHER = {"length": len(DATA), "hashes": {"sha256": "b" * 64}}
WHY = Revoked(manifest_sha256=canonical.sha256(DATA), at="2026-01-01T00:00:00Z", reason="labels were swapped")


def says(
    *names: str, revoked: dict[str, Revoked] | None = None, rest: Any = None, also: Any = None
) -> releases.Content:
    return releases.Content({**dict.fromkeys(names, GIVEN), **(also or {})}, revoked or {}, rest or {})


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (says(), says(NAME), ""),
        (says(OLDER), says(OLDER, NAME), ""),
        (says(NAME), says(NAME), "release_exists"),
        (says(OLDER), says(NAME), "target_changed"),
        (says(OLDER), says(NAME, also={OLDER: OTHER}), "target_changed"),
        (says(OLDER), says(NAME, also={OLDER: {**GIVEN, "custom": {"note": 1}}}), "target_changed"),
        (says(), says(), "foreign_target"),
        (says(), says(NAME, "other/1.0.0/manifest.json"), "foreign_target"),
        (says(), says(also={NAME: OTHER}), "target_mismatch"),
        (says(), says(also={NAME: {**GIVEN, "custom": {}}}), "target_mismatch"),
        (says(), says(NAME, revoked={"0.9.0": WHY}), "target_changed"),
        (says(revoked={"0.9.0": WHY}), says(NAME), "target_changed"),
        (says(revoked={"1.0.0": WHY}), says(NAME, revoked={"1.0.0": WHY}), "release_revoked"),
        (says(revoked={"1.0.0": WHY}), says(NAME), "release_revoked"),
        (says(), says(NAME, rest={"x": 1}), "target_changed"),
    ],
)
def test_a_publish_adds_exactly_its_own_target(old: releases.Content, new: releases.Content, error: str) -> None:
    one = the_manifest("1.0.0")
    if not error:
        releases.check_addition(old, new, one, DATA)
        return
    with pytest.raises(InterlockError) as refused:
        releases.check_addition(old, new, one, DATA)
    assert refused.value.code == error


GONE = {"1.0.0": WHY}


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (says(NAME, OLDER), says(OLDER, revoked=GONE), ""),
        (says(NAME), says(revoked=GONE), ""),
        (says(NAME), says(), "no_record"),  # a removal is a revocation, or nothing
        (says(NAME), says(NAME, revoked=GONE), "target_changed"),
        (says(OLDER), says(OLDER, revoked=GONE), "no_release"),
        (says(revoked=GONE), says(revoked=GONE), "release_revoked"),
        (says(NAME, OLDER), says(revoked=GONE), "target_changed"),
        (says(NAME), says("detector/2.0.0/manifest.json", revoked=GONE), "target_changed"),
        (says(NAME), says(revoked={**GONE, "0.9.0": WHY}), "no_record"),
        (says(NAME, revoked={"0.9.0": WHY}), says(revoked=GONE), "no_record"),
        (says(NAME), says(revoked={"1.0.0": WHY.model_copy(update={"manifest_sha256": MINE})}), "no_record"),
        (says(NAME), says(revoked=GONE, rest={"x": 1}), "target_changed"),
    ],
)
def test_a_revocation_takes_exactly_its_own_target(old: releases.Content, new: releases.Content, error: str) -> None:
    if not error:
        assert releases.check_revocation(old, new, "detector", "1.0.0") == WHY
        return
    with pytest.raises(InterlockError) as refused:
        releases.check_revocation(old, new, "detector", "1.0.0")
    assert refused.value.code == error
