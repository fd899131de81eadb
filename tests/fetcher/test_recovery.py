"""What a thief has driven up goes with his keys, and with nothing else: versions of roles, and the time."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.fetcher.stored import HISTORY
from interlock_agent.fetcher.trust import Trust
from interlock_shared import floors
from interlock_shared.floors import RoleKeys
from tests.fetcher.simulator import NOW, Simulator
from tests.fetcher.walks import AT, made, never_below, refusal, say, say_alone, torn, walk


@pytest.mark.parametrize("how", ["whole", "gone", "empty", "root gone"])
@pytest.mark.parametrize(
    ("stolen", "rotated", "recovers"),
    [
        ("timestamp", ("timestamp",), True),
        ("snapshot", ("snapshot",), True),
        ("snapshot", ("snapshot", "timestamp"), True),
        ("targets", ("targets",), True),
        ("targets", ("snapshot",), True),
        ("timestamp", ("snapshot",), False),
        ("timestamp", ("root",), False),
        ("snapshot", ("timestamp",), False),
        ("targets", ("timestamp",), False),
    ],
)
def test_only_a_root_that_takes_the_keys_away_takes_the_floor_away(
    tmp_path: Path, stolen: str, rotated: tuple[str, ...], recovers: bool, how: str
) -> None:
    one = made()
    walk(one, tmp_path, {})
    before = one.signed[stolen].version
    one.signed[stolen].version = 2**31  # fast-forward: the thief wants the owner's own to be refused for ever
    say_alone(one, stolen)
    known = walk(one, tmp_path, {})
    assert known[stolen] == 2**31
    one.signed[stolen].version = before + 1
    if how == "root gone":
        torn(tmp_path, "gone", ("root.json", f"{HISTORY}/1.root.json"))
    elif how != "whole":
        torn(tmp_path, how, ("snapshot.json", "timestamp.json", "targets.json", "release-a.json"))
    one.rotate(*rotated)
    one.publish("targets")
    if recovers:
        after = walk(one, tmp_path, known)
        assert after[stolen] < 2**31
        assert after["root"] == 2
        assert walk(one, tmp_path, after) == after
    else:
        assert refusal(lambda: walk(one, tmp_path, known)) in ("below_floor", "bad_metadata")


def driven_up(tmp_path: Path) -> tuple[Simulator, dict[str, Any]]:
    """A thief with a release key has signed version 2^31, and the device has seen it; the owner goes on from before."""
    one = made()
    walk(one, tmp_path, {})
    before = one.signed["release-a"].version
    one.signed["release-a"].version = 2**31
    say(one, "release-a")
    known = walk(one, tmp_path, {})
    assert known["release-a"] == 2**31
    one.signed["release-a"].version = before + 1
    return one, known


@pytest.mark.parametrize("how", ["whole", "empty", "half", "gone", "lost"])
def test_a_release_role_that_was_driven_up_begins_anew_with_other_keys(tmp_path: Path, how: str) -> None:
    one, known = driven_up(tmp_path)
    say(one, "targets", "release-a")
    assert refusal(lambda: walk(one, tmp_path, known)) in ("below_floor", "bad_metadata"), "with the same keys it stays"
    if how == "lost":
        shutil.rmtree(tmp_path)
    elif how != "whole":
        torn(tmp_path, how)
    one.redelegate("release-a")
    one.publish("targets", "release-a")
    after = walk(one, tmp_path, known)
    assert after["release-a"] < 2**31
    assert never_below({**after, "release-a": 2**31}, known), "and no other floor fell"
    assert floors.merged(known, after) == after, "nor does the journal hold on to it"
    assert walk(one, tmp_path, after) == after
    one.signed["release-a"].version -= 1
    say(one, "release-a")
    assert refusal(lambda: walk(one, tmp_path, after)) in ("below_floor", "bad_metadata"), "the new keys have a floor"


def test_new_keys_for_one_release_role_let_no_other_go_back(tmp_path: Path) -> None:
    one = made()
    one.delegate("release-b", "b/*")
    one.add("b/model", b"others", "release-b")
    one.publish()
    one.publish("release-b")
    known = walk(one, tmp_path, {})
    one.redelegate("release-a")
    one.signed["release-b"].version -= 1
    one.publish("targets", "release-a")
    say(one, "release-b")
    assert refusal(lambda: walk(one, tmp_path, known)) == "bad_metadata", "though its own floor was never looked at"
    del one.signed["snapshot"].meta["release-b.json"]
    one.snapshot()
    assert refusal(lambda: walk(one, tmp_path, known)) == "bad_metadata", "nor is it left out"
    one.signed["release-b"].version += 1
    say(one, "release-b")
    assert walk(one, tmp_path, known)["release-a"] >= known["release-a"]


def test_of_two_refreshes_the_one_that_knows_the_newer_keys_of_a_release_role_holds() -> None:
    def at(targets: int, key: str, version: int) -> dict[str, Any]:
        entry = {"targets": targets, "keyids": [key], "threshold": 1}
        return {"root": 1, "targets": targets, "release-a": version, floors.DELEGATED: {"release-a": entry}}

    old, new = at(2, "old", 2**31), at(3, "new", 1)
    assert floors.merged(old, new) == floors.merged(new, old) == new
    blind = {"root": 1, "targets": 3}  # it has looked at another model's role
    both = floors.merged(old, blind)
    assert both["release-a"] == 2**31
    assert floors.relieved(both, {"release-a": RoleKeys(frozenset({"new"}), 1)}, 3)["release-a"] == 0


@pytest.mark.parametrize("how", ["whole", "empty", "gone", "lost"])
def test_a_time_that_a_thief_has_signed_goes_with_his_keys(tmp_path: Path, how: str) -> None:
    """With the keys of timestamp and director he has driven the time floor up, to where root and targets expire; what
    the server signs after he is gone lasts for days."""
    one, store = made(), tmp_path / "store"
    one.signed["timestamp"].expires = NOW + timedelta(days=36_500)
    one.publish()
    known = walk(one, store, {})
    driven = AT + 364 * 86_400
    one.signed["timestamp"].expires = NOW + timedelta(days=7)
    one.publish()

    def at(floor: float) -> dict[str, Any]:
        return Trust(one.root, store, one, floor, AT).refresh(known)

    assert refusal(lambda: at(driven)) == "metadata_expired"
    one.rotate("snapshot")
    one.publish()
    assert refusal(lambda: at(driven)) == "metadata_expired", "other keys than those that say what is fresh"
    if how == "lost":
        shutil.rmtree(store)
    elif how != "whole":
        torn(store, how)
    one.rotate("timestamp")
    one.publish()
    after = at(driven)
    assert (after["root"], after[floors.CLOCK_ROOT]) == (3, 3)
    assert floors.merged(known, after)[floors.CLOCK_ROOT] == 3
    one.rotate("targets")
    one.publish()
    assert walk(one, store, after)[floors.CLOCK_ROOT] == 3, "the root that took them away"
