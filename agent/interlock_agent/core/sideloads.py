"""A release from a file against what the server wants: whether a file may be installed, and whether it stands.

forbid   no file is installed
once     what a file brought stays until the server wants something newer
pin      it stays until a person unpins it
"""

from __future__ import annotations

FORBID, ONCE, PIN = "forbid", "once", "pin"


def effective(owner: str, server: str) -> str:
    """The policy that holds. `forbid` from either side holds; else the owner's word, then the server's, then `once`."""
    if FORBID in (owner, server):
        return FORBID
    return owner or server or ONCE
