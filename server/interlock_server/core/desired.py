"""Is a device ahead of this server? So it is after the server was restored from a backup: the device has accepted
desired documents that the database knows nothing of. It is left alone, and shown, until a person has looked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlock_shared.errors import Conflict
from interlock_shared.trust import COUNTER_JUMP_MAX


def accepted(reported: Mapping[str, Any] | None) -> tuple[int, int]:
    """(epoch, counter) of the newest desired document that the device says it has accepted; (0, 0): none."""
    epoch, counter = (reported or {}).get("desired") or (0, 0)
    return int(epoch), int(counter)


def ahead(sent: tuple[int, int], reported: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """What the device has accepted, where that is newer than what was `sent` (epoch, counter); else None. A device
    that was never sent anything here is not: there is nothing that it could be pushed back to."""
    known = accepted(reported)
    return known if sent[1] > 0 and known > sent else None


def goes_on_from(sent: tuple[int, int], reported: Mapping[str, Any] | None) -> int:
    """The counter that the next document is numbered after. Raises Conflict (`director_epoch`, `counter_jump`) where
    this server's director can say nothing that the device would take up."""
    epoch, counter = accepted(reported)
    if epoch > sent[0]:
        raise Conflict(
            f"the device follows director epoch {epoch}, {sent[0]} is this server's: put its key back, or rotate",
            code="director_epoch",
        )
    if epoch < sent[0] or counter <= sent[1]:
        return sent[1]
    if counter - sent[1] > COUNTER_JUMP_MAX:
        raise Conflict(
            f"the device says {counter}, {sent[1]} was sent: too far to be true; rotate the director key",
            code="counter_jump",
        )
    return counter
