"""What stands: every role with its version, expiry, threshold and keys; and what should worry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tuf.api.metadata import Metadata

from interlock_server.publisher.keys import Held, holder_of
from interlock_server.publisher.proposal import Proposal, State

COLUMNS = ("role", "version", "expires", "days", "threshold", "keys")


def _offline(state: State) -> dict[str, tuple[Metadata[Any], Metadata[Any]]]:
    """Role → (who delegates to it, its metadata)."""
    if state.root is None or state.targets is None:
        return {}
    found: dict[str, tuple[Metadata[Any], Metadata[Any]]] = {
        "root": (state.root, state.root), "targets": (state.root, state.targets),
    }  # fmt: skip
    return found | {role: (state.targets, one) for role, one in state.delegated.items()}


def expiring(state: State, at: datetime) -> list[str]:
    """Offline roles that have expired by then."""
    return [role for role, (_, one) in _offline(state).items() if one.signed.expires <= at]


def roles(state: State, held: Sequence[Held], now: datetime) -> list[dict[str, Any]]:
    """One entry a role; online ones have no expiry that anybody need watch. `mine`: keys that are held here."""
    mine = {one.keyid for one in held}
    found = []
    for role, (delegator, one) in _offline(state).items():
        entry = _keys(delegator, role, mine)
        left = one.signed.expires - now
        expires = one.signed.expires.strftime("%Y-%m-%dT%H:%M:%SZ")
        found.append({"role": role, "version": one.signed.version, "expires": expires, "days": left.days, **entry})
    root, without = state.root, {"version": None, "expires": None, "days": None}
    if root is not None:
        found += [{"role": role, **without, **_keys(root, role, mine)} for role in ("snapshot", "timestamp")]
    return found


def _keys(delegator: Metadata[Any], role: str, mine: set[str]) -> dict[str, Any]:
    known = delegator.signed.get_delegated_role(role)
    names = []
    for keyid in known.keyids:
        key = delegator.signed.get_key(keyid)
        names.append(holder_of(key) + (" (here)" if keyid in mine else ""))
    return {"threshold": known.threshold, "keys": names, "keyids": list(known.keyids)}


def warnings(found: Sequence[dict[str, Any]], days: int) -> list[str]:
    """In words: what has expired, what expires within `days`."""
    words = []
    for one in found:
        if one["days"] is None or one["days"] > days:
            continue
        when = f"expired on {one['expires']}" if one["days"] < 0 else f"expires in {one['days']} days"
        words.append(f"{one['role']} {when}: interlock root renew {one['role']}")
    return words


def needs(proposal: Proposal) -> list[dict[str, Any]]:
    """For programs: who has signed what, who else can."""
    return [
        {
            "document": one.what,
            "by": one.by,
            "threshold": one.threshold,
            "missing": one.missing,
            "signed": {keyid: holder_of(key) for keyid, key in one.signed.items()},
            "unsigned": {keyid: holder_of(key) for keyid, key in one.unsigned.items()},
        }
        for one in proposal.needs()
    ]
