"""Which release for which unit, and how far each assignment has come.

An assignment's state is *derived* from the device's events (append-only), by one table, in the order of their
numbers: whatever order they arrived in gives the same state. Only the device's own `confirmed` event, for this very
unit, manifest and assignment, makes an assignment `confirmed`. A device that runs something else than it confirmed
reopens the result.

    offered → accepted → gating → trial → confirmed
                 rejected · reverted · failed · cancelled · superseded · waiting
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlock_shared.documents import EVENT_KINDS

STATES = (
    "offered",
    "accepted",
    "gating",
    "trial",
    "confirmed",
    "rejected",
    "reverted",
    "failed",
    "cancelled",
    "superseded",
    "waiting",
)

# Event kind → the state that it leads to, from any state but `confirmed`; None: it says nothing about the assignment.
NEXT: dict[str, str | None] = {
    "accepted": "accepted",
    "staged": "gating",
    "verdict": "gating",
    "switched": "trial",
    "confirmed": "confirmed",
    "reverted": "reverted",
    "interrupted": "waiting",
    "failed": "failed",
    "rejected": "rejected",
    "waiting": "waiting",
    "cancelled": "cancelled",
    "superseded": "superseded",
    "quarantined": None,
    "rolled_back": "reverted",
    "unhealthy": None,
    "revoked": None,
    "recovered": None,
    "state_lost": None,
    "refused": None,
    "gap": None,
}
assert NEXT.keys() == EVENT_KINDS.keys()

# What a confirmed assignment hears: only that the device left it again. (Gated anew after a driver upgrade, it sends
# verdicts as well; these change nothing as long as it keeps serving.)
REOPENS = ("reverted", "rolled_back")

# The device has not switched: an abort takes the wish back.
NOT_SWITCHED = ("offered", "accepted", "gating", "waiting", "superseded", "cancelled")
# What becomes of it where a file's release stands in its place: nothing failed, and it is not what runs.
STANDS_BACK = ("offered", "accepted", "waiting", "confirmed", "superseded")
# No further event is needed for a result.
SETTLED = ("confirmed", "rejected", "reverted", "failed", "cancelled", "superseded")


@dataclass(frozen=True)
class Wish:
    """One assignment: what is wanted of one unit of one device. `order` grows with time."""

    id: str
    order: int
    rollout: str
    device: str
    unit: str
    version: str
    manifest_sha256: str
    cancelled: bool = False


@dataclass(frozen=True)
class Told:
    """What an event says of an assignment. `order`: rank of its outbox epoch, then its number."""

    order: tuple[int, int]
    kind: str
    unit: str | None
    manifest_sha256: str | None
    epoch: str
    reason: str = ""


@dataclass(frozen=True)
class Standing:
    """Where an assignment stands, and why."""

    state: str
    reason: str = ""


@dataclass
class _Course:
    state: str = "offered"
    reason: str = ""
    confirmed_at: Told | None = field(default=None)


def _follow(wish: Wish, told: Iterable[Told]) -> _Course:
    course = _Course()
    for event in sorted(told, key=lambda one: one.order):
        following = NEXT.get(event.kind)
        if following is None or event.unit not in {None, wish.unit}:
            continue
        if following == "confirmed" and (event.manifest_sha256, event.unit) != (wish.manifest_sha256, wish.unit):
            continue  # confirmed something else: not this wish
        if course.state == "confirmed" and event.kind not in REOPENS:
            continue
        course.state, course.reason = following, event.reason
        course.confirmed_at = event if following == "confirmed" else None
    return course


def _drifted(wish: Wish, confirmed: Told, report: Mapping[str, Any] | None) -> str | None:
    """Which other version runs by a report that is surely younger than the confirmation, else None.

    Surely: the device has forgotten the acknowledged event, or has another outbox by now.
    """
    unit = (report or {}).get("units", {}).get(wish.unit)
    if report is None or unit is None:
        return None
    if report.get("outbox_epoch") == confirmed.epoch and report.get("outbox_floor", 0) <= confirmed.order[1]:
        return None
    running = unit.get("running")
    return running if running not in {None, wish.version} else None


def standing(
    wish: Wish,
    told: Iterable[Told],
    *,
    newer: bool,
    report: Mapping[str, Any] | None,
    file: str | None = None,
    revoked: bool = False,
) -> Standing:
    """Where the wish stands. `newer`: another wish for the same unit came after it; `report`: the device's newest;
    `file`: the version that a file brought, and for which this wish stands back; `revoked`: the device is, so that no
    result will come, until it is let in again."""
    found = _standing(wish, told, newer, report, file)
    return Standing("cancelled", "device_revoked") if revoked and found.state not in SETTLED else found


def _standing(
    wish: Wish, told: Iterable[Told], newer: bool, report: Mapping[str, Any] | None, file: str | None
) -> Standing:
    course = _follow(wish, told)
    if file is not None and not newer and course.state in STANDS_BACK:
        return Standing("superseded", f"sideload {file}")
    if course.confirmed_at is not None and not newer:
        other = _drifted(wish, course.confirmed_at, report)
        if other is not None:
            return Standing("reverted", f"runs {other}")
    if course.state in NOT_SWITCHED and wish.cancelled:
        return Standing("cancelled", course.reason)
    if course.state in NOT_SWITCHED and newer:
        return Standing("superseded", course.reason)
    return Standing(course.state, course.reason)


def wanted(wishes: Iterable[Wish]) -> dict[str, Wish]:
    """Unit → the newest wish that was not taken back. A unit without one is left alone."""
    newest: dict[str, Wish] = {}
    for wish in wishes:
        if not wish.cancelled and (wish.unit not in newest or wish.order > newest[wish.unit].order):
            newest[wish.unit] = wish
    return newest


def select(devices: Sequence[Mapping[str, Any]], to: Mapping[str, Any]) -> list[str]:
    """Ids of the devices that `{"device": id}`, `{"labels": {…}}` (all of them) or `{"all": true}` means, in order.

    Revoked ones too: the caller says what of these.
    """
    if to.get("device") is not None:
        return [one["id"] for one in devices if one["id"] == to["device"]]
    labels = dict(to.get("labels") or {})
    return sorted(one["id"] for one in devices if labels.items() <= dict(one["labels"]).items())


def counts(states: Iterable[str]) -> dict[str, int]:
    """How many assignments are in each state, states without any left out; `rejected` stands apart from failures."""
    found = Counter(states)
    return {state: found[state] for state in STATES if found[state]}


def rollout_state(ended: str, states: Iterable[str]) -> str:
    """Why it goes no further (`aborted`; `withdrawn`, `revoked`: its release was), else `active` while a device has no
    result, `finished` after."""
    if ended:
        return ended
    return "finished" if all(state in SETTLED for state in states) else "active"
