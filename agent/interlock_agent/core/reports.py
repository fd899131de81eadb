"""Which transitions the server hears of, and as which event. Derived from the table, never told before it is true."""

from __future__ import annotations

from typing import Any, Protocol

from interlock_agent.core.records import Installed, UnitRecord
from interlock_agent.core.revoked import REVOKED
from interlock_agent.core.states import Event, Phase
from interlock_shared.limits import EVENT_NOTE_MAX

ENTERED: dict[Phase, str] = {
    Phase.ACCEPTED: "accepted",
    Phase.STAGED: "staged",
    Phase.TRIAL: "switched",
    Phase.CONFIRMED: "confirmed",
    Phase.REVERTED: "reverted",
    Phase.INTERRUPTED: "interrupted",
    Phase.FAILED: "failed",
    Phase.REJECTED: "rejected",
    Phase.WAITING: "waiting",
    Phase.CANCELLED: "cancelled",
    Phase.SUPERSEDED: "superseded",
}


class Told(Protocol):
    """What happened, as far as a report needs it."""

    @property
    def event(self) -> Event: ...
    @property
    def reason(self) -> str: ...
    @property
    def data(self) -> dict[str, Any]: ...


def reports(before: UnitRecord, after: UnitRecord, happened: Told, at: str) -> tuple[dict[str, Any], ...]:
    """Outbox entries of a transition: the verdict first, then the phase that was entered."""
    phase = Phase(after.phase)
    entries = []
    if happened.event is Event.TURNED_BAD:
        data = {**happened.data, "action": "revert"}
        bad = told_as(happened.reason)
        entries.append(of_installed(bad, after, before.confirmed, at, happened.reason, data))
    if "envelope" in happened.data:
        entries.append(_entry("verdict", after, happened, at, {"envelope": happened.data["envelope"]}))
    if phase is Phase.GATING and "gap" in happened.data:
        entries.append(_entry("gap", after, happened, at, happened.data["gap"]))
    kind = ENTERED.get(phase)
    if kind and (before.phase != after.phase or before.generation != after.generation):
        if phase is Phase.CONFIRMED and happened.event not in (Event.YES, Event.ALREADY):
            kind = None  # back from judging the live release again: the verdict has told it
        origin = after.attempt.wish.origin if after.attempt is not None else ""
        if kind == "confirmed" and origin == "rollback":
            kind = "rolled_back"
        if kind == "confirmed" and origin == "late":
            entries.append(_left(after, at))
        elif kind:
            data = {key: value for key, value in happened.data.items() if key != "envelope"}
            entries.append(_entry(kind, after, happened, at, data))
    return tuple(entries)


def told_as(check: str) -> str:
    """The event that tells what is wrong with a confirmed release."""
    return REVOKED if check == REVOKED else "unhealthy"


def _left(after: UnitRecord, at: str) -> dict[str, Any]:
    """The confirmed release was taken back, late: told of the one that was left, so that its result is reopened."""
    seen = after.attempt.seen if after.attempt is not None else {}
    serves = after.confirmed.version if after.confirmed else ""
    return of_installed("reverted", after, after.previous, at, str(seen.get("check", "")), {**seen, "serves": serves})


def of_installed(
    kind: str, record: UnitRecord, what: Installed | None, at: str, reason: str, data: dict[str, Any]
) -> dict[str, Any]:
    """An event about a release in a slot, under the server's wish that brought it."""
    entry: dict[str, Any] = {"kind": kind, "at": at, "unit": record.unit, "generation": record.generation}
    entry |= {"reason": reason[:EVENT_NOTE_MAX], "data": data}
    if what is not None:
        entry |= {"version": what.version, "manifest_sha256": what.manifest_sha256}
        entry["assignment"] = what.assignment or None
        entry["origin"] = "rollout" if what.assignment else "sideload"
    return entry


def _entry(kind: str, record: UnitRecord, happened: Told, at: str, data: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"kind": kind, "at": at, "unit": record.unit, "generation": record.generation}
    entry["reason"] = happened.reason[:EVENT_NOTE_MAX]
    entry["data"] = data
    if record.attempt is not None:
        wish = record.attempt.wish
        entry["version"] = wish.version
        entry["manifest_sha256"] = wish.manifest_sha256
        entry["assignment"] = wish.assignment
        entry["origin"] = wish.origin
    return entry
