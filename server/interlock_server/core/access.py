"""Who may do what: roles, and secrets of which only a digest is kept.

Every secret that this server gives away is 256 random bits, so that a plain SHA-256 of it can be stored: there is
nothing to guess, hence nothing that a slow hash would slow down, and checking one does not hold up the event loop.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from interlock_shared.errors import Forbidden, Invalid

# A role may do what a smaller one may.
ROLES = {"viewer": 1, "operator": 2, "publisher": 3, "admin": 4}

API_TOKEN = "ilk_"  # noqa: S105 - prefixes, so that a leaked token is recognised by scanners
DEVICE_TOKEN = "ilt_"  # noqa: S105


@dataclass(frozen=True)
class Actor:
    """Who asks: the name in the audit log, a role of ROLES or `device`, and from where."""

    name: str
    role: str
    address: str = ""


def check_role(role: str) -> None:
    """Raises Invalid for a word that is no role."""
    if role not in ROLES:
        raise Invalid(f"role: {role!r} is none of {', '.join(ROLES)}", field="role")


def require(actor: Actor, role: str) -> None:
    """Raises Forbidden (`role_needed`) unless the actor's role includes `role`."""
    if ROLES.get(actor.role, 0) < ROLES[role]:
        raise Forbidden(f"the role {role} is needed, {actor.name} has {actor.role}", code="role_needed", needs=role)


def digest(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, stored: str) -> bool:
    """Whether the secret is the one of which `stored` is the digest, in constant time."""
    return hmac.compare_digest(digest(secret), stored)
