"""What a file brought against what the server wants: pure, no clocks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from interlock_agent.core import sideloads, wishes
from interlock_agent.core.records import Attempt, Installed, UnitRecord, Wish
from interlock_agent.core.states import Event
from interlock_shared.documents import Assignment
from interlock_shared.errors import NotFound

FILE, OTHER = "f" * 64, "0" * 64
BROUGHT = Installed("1.5.0", FILE, "p", "a", sideload={"assignment": "sideload-1", "at": "t", "knew": "a-1"})
ROLLED = replace(BROUGHT, sideload={})


def wanted(over: str | None = None, *, unpinned: bool = False, manifest: str = OTHER) -> Assignment:
    return Assignment(
        version="1.4.0", manifest_sha256=manifest, assignment="a-2", rollout="r", over=over, unpinned=unpinned
    )


@pytest.mark.parametrize(
    ("confirmed", "wish", "policy", "stays"),
    [
        (BROUGHT, wanted(), "once", True),
        (BROUGHT, wanted("sideload-0"), "once", True),  # of a file before
        (BROUGHT, wanted("sideload-1"), "once", False),
        (BROUGHT, wanted(manifest=FILE), "once", False),  # the very same release: taken over
        (BROUGHT, wanted("sideload-1"), "pin", True),
        (BROUGHT, wanted(manifest=FILE), "pin", True),
        (BROUGHT, wanted("sideload-1", unpinned=True), "pin", False),
        (BROUGHT, wanted("sideload-0", unpinned=True), "pin", True),
        (BROUGHT, wanted(), "forbid", True),  # it was allowed when it came
        (ROLLED, wanted(), "pin", False),
        (None, wanted(), "pin", False),
        (BROUGHT, None, "pin", False),
    ],
)
def test_what_a_file_brought_stays(
    confirmed: Installed | None, wish: Assignment | None, policy: str, stays: bool
) -> None:
    assert sideloads.stands(confirmed, wish, policy) is stays


def test_a_wish_that_does_not_know_of_the_file_is_not_taken_up() -> None:
    record = UnitRecord("detector", phase="confirmed", confirmed=BROUGHT)
    assert wishes.choose(record, wanted(), 0.0, "once") is None
    taken = wishes.choose(record, wanted("sideload-1"), 0.0, "once")
    assert taken is not None
    assert taken.event is Event.WISH


def test_a_file_is_remembered_when_it_is_confirmed_and_when_it_is_gone_back_to() -> None:
    attempt = Attempt(Wish("1.5.0", FILE, "sideload-1", origin="sideload"), slot="a")
    first = wishes.confirmed(UnitRecord("detector", attempt=attempt), "fp", "t", wanted())
    assert first.confirmed is not None
    assert first.confirmed.sideload == {"assignment": "sideload-1", "at": "t", "knew": "a-2"}
    rollout = Attempt(Wish("1.6.0", OTHER, "a-3"), slot="b")
    second = wishes.confirmed(replace(first, attempt=rollout), "fp", "u")
    assert second.confirmed is not None
    assert second.confirmed.sideload == {}
    back = wishes.confirmed(wishes.restoring(second, 9), "fp", "v")
    assert back.confirmed is not None
    assert back.confirmed.sideload == first.confirmed.sideload


def test_unpinned_it_is_the_servers_to_replace() -> None:
    record = sideloads.unpinned(UnitRecord("detector", confirmed=BROUGHT))
    assert not sideloads.stands(record.confirmed, wanted(), "pin")
    assert sideloads.report(record.confirmed, "pin") is None
    with pytest.raises(NotFound, match="not brought by a file"):
        sideloads.unpinned(record)
