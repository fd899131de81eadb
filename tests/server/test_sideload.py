"""What stands back for a file's release, and what replaces it: decided once, whatever the device's clock says."""

from __future__ import annotations

from typing import Any

import pytest

from interlock_server.core import rollout, sideload
from interlock_server.core.sideload import Held

WISHES = [("a-1", 1, "2026-01-01"), ("a-2", 2, "2026-02-01"), ("a-3", 3, "2026-03-01")]


@pytest.mark.parametrize(
    ("at", "knew", "older"),
    [
        ("2026-02-15", "", 2),
        ("2026-02-15", "a-1", 2),
        ("2026-02-15", "a-3", 3),  # the clock says that it was before, and the device knew of it
        ("1970-01-01", "a-2", 2),  # a clock without a battery
        ("1970-01-01", "", 0),
        ("2199-01-01", "a-1", 3),
        ("2026-02-15", "a-9", 2),  # of a server before this one
    ],
)
def test_what_the_device_knew_is_older_and_of_the_rest_what_began_before(at: str, knew: str, older: int) -> None:
    assert sideload.older(at, knew, WISHES) == older


@pytest.mark.parametrize(
    ("order", "manifest", "policy", "unpinned", "blocked"),
    [
        (2, "x", "once", False, True),
        (3, "x", "once", False, False),
        (2, "f", "once", False, False),
        (3, "x", "pin", False, True),
        (3, "f", "pin", False, True),
        (2, "x", "pin", True, False),
    ],
)
def test_what_stands_back(order: int, manifest: str, policy: str, unpinned: bool, blocked: bool) -> None:
    assert Held("s-1", "1.5.0", "f", policy, 2, unpinned).blocks(order, manifest) is blocked


def test_only_what_the_newest_report_has_stands() -> None:
    file = {"assignment": "s-1", "version": "1.5.0", "manifest_sha256": "f", "at": "t", "policy": "once"}
    report: dict[str, Any] = {"units": {"detector": {"sideload": file}, "other": {"sideload": None}}}
    kept = {"detector": {"assignment": "s-1", "older": 4, "unpinned": False}}
    assert sideload.held(report, kept) == {"detector": Held("s-1", "1.5.0", "f", "once", 4)}
    assert sideload.held(report, {"detector": {**kept["detector"], "assignment": "s-0"}}) == {}
    assert sideload.held(None, kept) == {}


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        ((), "superseded"),
        (("accepted", "staged", "verdict", "switched", "confirmed"), "superseded"),
        (("accepted", "failed"), "failed"),
        (("accepted", "staged", "rejected"), "rejected"),
        (("accepted", "staged"), "gating"),
    ],
)
def test_a_wish_that_stands_back_did_not_fail(kinds: tuple[str, ...], state: str) -> None:
    wish = rollout.Wish("a-1", 1, "r-1", "press-7", "detector", "1.4.0", "x")
    told = [rollout.Told((1, n), kind, "detector", "x", "e") for n, kind in enumerate(kinds)]
    report = {"outbox_epoch": "later", "units": {"detector": {"running": "1.5.0"}}}
    found = rollout.standing(wish, told, newer=False, report=report, file="1.5.0")
    assert found.state == state
    if state == "superseded":
        assert found.reason == "sideload 1.5.0"
