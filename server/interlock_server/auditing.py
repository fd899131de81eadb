"""The audit log: every change, with who, when and from where, in the transaction that makes it."""

from __future__ import annotations

from typing import Any

from interlock_server.core.access import Actor
from interlock_server.ports import Rows


async def record(rows: Rows, at: str, actor: Actor, action: str, target: str, **detail: Any) -> None:
    """One line; `detail` holds no secret."""
    await rows.insert(
        "audit",
        at=at,
        who=actor.name,
        role=actor.role,
        address=actor.address,
        action=action,
        target=target,
        detail=detail,
    )
