"""What is wanted against where a unit stands: the decision, and the records that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from interlock_agent.core.records import GOES_BACK, Attempt, Installed, UnitRecord, Wish
from interlock_agent.core.sideloads import ONCE, stands
from interlock_agent.core.states import BEFORE_SWITCH, RESTING, Event, Phase
from interlock_shared.documents import Assignment

DONE_MAX = 64  # answered wishes that are remembered; the server goes back by one or a few


@dataclass(frozen=True)
class Choice:
    """An order for the engine."""

    event: Event
    wish: Wish | None = None


def choose(record: UnitRecord, wanted: Assignment | None, spread_s: float, policy: str = ONCE) -> Choice | None:
    """What to do now; None: nothing. A unit past its switch is left to finish; it is asked again when it rests. What a
    file brought stays, as `policy` has it."""
    if stands(record.confirmed, wanted, policy):
        wanted = None
    phase = Phase(record.phase)
    attempt = record.attempt
    in_flight = phase in BEFORE_SWITCH or phase is Phase.INTERRUPTED
    if wanted is None:
        if in_flight and attempt is not None and attempt.wish.origin == "rollout":
            return Choice(Event.CANCEL)
        return None
    wish = Wish(
        version=wanted.version,
        manifest_sha256=wanted.manifest_sha256,
        assignment=wanted.assignment,
        rollout=wanted.rollout,
        spread_s=spread_s,
    )
    answered = wish.assignment in record.done  # repeating a wish, or going back to one, tries nothing again
    if in_flight and attempt is not None:
        if attempt.wish.assignment == wish.assignment:
            return None
        if attempt.wish.origin != "rollout":  # a file that a person put in is finished first
            return Choice(Event.SUPERSEDE, wish) if phase is Phase.WAITING and not answered else None
        return Choice(Event.CANCEL) if answered else Choice(Event.SUPERSEDE, wish)
    if phase in RESTING and not answered:
        return Choice(Event.WISH, wish)
    return None


def ended(record: UnitRecord) -> UnitRecord:
    """The record when an attempt rests: a wish of the server's is remembered as answered."""
    attempt = record.attempt
    if attempt is None or attempt.wish.origin != "rollout" or attempt.wish.assignment in record.done:
        return record
    return replace(record, done=(*record.done, attempt.wish.assignment)[-DONE_MAX:])


def from_seals(unit: str, seals: dict[str, dict[str, Any]], confirmed_slot: str) -> UnitRecord | None:
    """The record of a unit that only its folders know: what `confirmed` points at is confirmed. None without one."""
    seal = seals.get(confirmed_slot)
    if seal is None:
        return None
    now = Installed(seal["version"], seal["manifest_sha256"], seal["payload_sha256"], confirmed_slot)
    generation = max(int(one.get("generation", 0)) for one in seals.values())
    return UnitRecord(unit, phase=Phase.CONFIRMED.value, generation=generation, confirmed=now, reason="rebuilt")


def restoring(record: UnitRecord, generation: int, seen: dict[str, Any] | None = None) -> UnitRecord:
    """The record on its way back to the previous confirmed release, from the spare slot: a new generation. `seen`: what
    was found wrong with the release that is left; None where the owner wants it so."""
    previous = record.previous
    if previous is None:
        raise ValueError(f"{record.unit}: nothing to go back to")
    origin = "rollback" if seen is None else "late"
    wish = Wish(
        version=previous.version,
        manifest_sha256=previous.manifest_sha256,
        assignment=f"{origin}-{generation}",
        origin=origin,
    )
    attempt = Attempt(wish, payload_sha256=previous.payload_sha256, slot=previous.slot, seen=seen or {})
    return replace(record, attempt=attempt, generation=generation)


def confirmed(record: UnitRecord, fingerprint_sha256: str, at: str = "", known: Assignment | None = None) -> UnitRecord:
    """The record after the host confirmed: what was confirmed before is the previous one, in the spare slot. `at`: the
    time; `known`: what the server wants of the unit, as far as the device knows."""
    attempt = record.attempt
    if attempt is None:
        return record
    wish = attempt.wish
    now = Installed(
        version=wish.version,
        manifest_sha256=wish.manifest_sha256,
        payload_sha256=attempt.payload_sha256,
        slot=attempt.slot,
        fingerprint=fingerprint_sha256,
        assignment=wish.assignment if wish.origin == "rollout" else "",
        felt=attempt.felt,
        sideload=_brought(record, wish, at, known),
    )
    before = record.confirmed if record.confirmed and record.confirmed.slot != now.slot else None
    return replace(record, confirmed=now, previous=before, fingerprint=fingerprint_sha256)


def _brought(record: UnitRecord, wish: Wish, at: str, known: Assignment | None) -> dict[str, str]:
    """The file that brought it; where it is gone back to, the one that brought it then."""
    if wish.origin == "sideload":
        return {"assignment": wish.assignment, "at": at, "knew": known.assignment if known is not None else ""}
    previous = record.previous
    back = wish.origin in GOES_BACK and previous is not None and previous.manifest_sha256 == wish.manifest_sha256
    return dict(previous.sideload) if back and previous is not None else {}


def budget_key(record: UnitRecord, budget: str) -> tuple[str, str] | None:
    """(budget, key): attempts are counted for each unit, payload digest and assignment, across generations."""
    if record.attempt is None:
        return None
    return budget, f"{record.unit}:{record.attempt.payload_sha256}:{record.attempt.wish.assignment}"
