"""What devices tell: is it well-formed, is it theirs, and up to which number is there no gap.

A device sends an event again until it is acknowledged, so duplicates and any order are normal and change nothing.
The acknowledgement is one number for each outbox epoch: all events up to it are in the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from interlock_shared import canonical
from interlock_shared.base import Report, validate
from interlock_shared.documents import EVENT_SCHEMA, REPORTED_SCHEMA, Event, Presence, Reported
from interlock_shared.errors import Forbidden, Invalid
from interlock_shared.limits import DOCUMENT_MAX_BYTES

R = TypeVar("R", bound=Report)

EPOCHS_MAX = 64  # outbox epochs of one device; a device is re-imaged a few times in its life, not more often
NUMBER_MAX = 2**53  # as in events: what JSON carries everywhere


def advance(upto: int, numbers: Iterable[int]) -> int:
    """The highest number without a gap below it, given that all up to `upto` are there, and `numbers` too."""
    present = set(numbers)
    while upto + 1 in present:
        upto += 1
    return upto


def lost(upto: int, floor: int) -> tuple[int, int] | None:
    """The events (first, last) that the device no longer has and the server never got; None when there are none.

    Happens after a server was restored from a backup: it acknowledged more than it now knows of.
    """
    return (upto + 1, floor - 1) if floor > upto + 1 else None


def _parse(kind: type[R], schema: str, payload: bytes, what: str) -> R:
    document = canonical.decode(payload, limit=DOCUMENT_MAX_BYTES, what=what)
    if document.get("schema", schema) != schema:
        said = f"{what}: schema {document.get('schema')!r}, {schema!r} is expected"
        raise Invalid(said[:500], code="unknown_schema", field="schema")
    try:
        return validate(kind, document, what)
    except UnicodeEncodeError:  # half of a surrogate pair is no text
        raise Invalid(f"{what}: not Unicode") from None


def _own(document_device: str, device: str, what: str) -> None:
    if document_device != device:
        raise Forbidden(f"{what}: names {document_device}, {device} sent it", code="other_device")


def parse_event(device: str, payload: bytes) -> Event:
    """The event in a message on the device's topic. Raises Invalid, Forbidden (`other_device`)."""
    event = _parse(Event, EVENT_SCHEMA, payload, "event")
    _own(event.device, device, "event")
    return event


def parse_reported(device: str, payload: bytes) -> Reported:
    """The report in a message on the device's topic. Raises Invalid, Forbidden (`other_device`)."""
    reported = _parse(Reported, REPORTED_SCHEMA, payload, "reported")
    _own(reported.device, device, "reported")
    if not 0 <= reported.outbox_floor < NUMBER_MAX or not 0 <= reported.number < NUMBER_MAX:
        raise Invalid("reported: a number is out of range")
    if not 8 <= len(reported.outbox_epoch) <= 64:
        raise Invalid("reported: an outbox epoch has 8 to 64 characters")
    return reported


def parse_presence(payload: bytes) -> bool:
    """Whether the device says it is online. Raises Invalid."""
    return _parse(Presence, "interlock.presence/1", payload, "presence").online


def newer_report(known: dict[str, Any] | None, reported: Reported) -> bool:
    """Whether a report replaces the known one. A new outbox epoch always does: its numbers begin again."""
    if known is None or known.get("outbox_epoch") != reported.outbox_epoch:
        return True
    return bool(reported.number > known.get("number", -1))
