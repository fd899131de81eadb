"""What stands in the second small file beside the journal, and what of it can be believed. Pure.

    {"schema": "interlock.ledger/1", "spent": {"try:…": 1}, "quarantine": [{…}], "facts": {"floors": {…}, …}}

A file of another shape is as good as a torn one: whoever wrote it, it must not end the agent. Facts that this agent
does not know are a newer one's, and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from interlock_agent.core import revoked
from interlock_agent.core.records import Quarantined
from interlock_agent.core.revoked import REVOKED
from interlock_agent.core.times import seconds
from interlock_shared import floors

SCHEMA = "interlock.ledger/1"


@dataclass(frozen=True)
class Ledger:
    """What was read."""

    spent: dict[str, int]
    quarantine: list[Quarantined]
    facts: dict[str, Any]


EMPTY = Ledger({}, [], {})


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _clock(value: Any) -> bool:
    try:
        return _number(value[0]) and seconds(value[1]) > 0
    except (ValueError, TypeError, LookupError, AttributeError):
        return False


def _director(value: Any) -> bool:
    return isinstance(value, dict) and _number(value.get("epoch")) and isinstance(value.get("keys", {}), dict)


def _revoked(value: Any) -> bool:
    units = value.values() if isinstance(value, dict) else [None]
    releases = [one for unit in units for one in (unit.values() if isinstance(unit, dict) else [None])]
    return all(isinstance(one, dict) and {"version", "reason", "at"} <= one.keys() for one in releases)


FACTS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Any], Any]]] = {
    # facts that must never fall back: what they look like, and which of two holds
    "floors": (floors.plausible, floors.merged),
    "director": (_director, lambda one, two: max(one, two, key=lambda director: int(director["epoch"]))),
    "desired_at": (lambda value: isinstance(value, list) and len(value) == 2 and all(map(_number, value)), max),
    "clock_floor": (_clock, max),
    REVOKED: (_revoked, revoked.merged),
}


def higher(name: str, one: Any, two: Any) -> Any:
    """Of two values of a fact, the one that holds."""
    return FACTS[name][1](one, two)


def of_document(document: Any) -> Ledger:
    """Raises ValueError, which names what is wrong."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"no document of {SCHEMA}")
    spent, quarantine, facts = (document.get(name) for name in ("spent", "quarantine", "facts"))
    if not isinstance(spent, dict) or not all(map(_number, spent.values())):
        raise ValueError("spent")
    if not isinstance(quarantine, list) or not all(map(_quarantined, quarantine)):
        raise ValueError("quarantine")
    if not isinstance(facts, dict):
        raise ValueError("facts")
    known = {name: value for name, value in facts.items() if name in FACTS}
    for name, value in known.items():
        if not FACTS[name][0](value):
            raise ValueError(name)
    return Ledger(spent, [Quarantined(**entry) for entry in quarantine], known)


def _quarantined(entry: Any) -> bool:
    names = {one.name for one in fields(Quarantined)}
    return isinstance(entry, dict) and entry.keys() == names and all(isinstance(one, str) for one in entry.values())
