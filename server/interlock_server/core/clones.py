"""One identity in use twice at the same time: what gives it away, and what a restart looks like instead.

An agent makes up an instance (boot and random) at each start and says it in every report. After a restart the former
instance is never heard of again; two machines with one identity take the place of each other, so that an instance
comes back after another one was heard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

INSTANCES_MAX = 16  # former starts that are remembered
SUPERSEDED_HOURS = 24  # a connection that began with the former certificate has ended by then

CAME_BACK = "two agents take turns"
NUMBER_REUSED = "one event number stands for two events"
FORMER_CERTIFICATE = "a certificate is used that was renewed long ago"


def heard(instances: Sequence[str], instance: str) -> tuple[list[str], bool]:
    """The newest instances, newest last, and whether this one had been followed by another already."""
    if not instance or (instances and instances[-1] == instance):
        return list(instances), False
    came_back = instance in instances
    return [*(one for one in instances if one != instance), instance][-INSTANCES_MAX:], came_back


def marked(clone: Mapping[str, Any] | None, why: str, at: str, addresses: Sequence[str]) -> dict[str, Any]:
    """What is shown: why, since when, how often, from where."""
    known = clone or {"first_at": at, "count": 0, "addresses": []}
    return {
        "why": why,
        "first_at": known["first_at"],
        "last_at": at,
        "count": known["count"] + 1,
        "addresses": list(addresses) or known["addresses"],
    }
