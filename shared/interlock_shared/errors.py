"""The one tree of errors. A class says what the caller does next.

    InterlockError
    ├── Never            terminal here: not tried again until something else changes
    │   ├── Invalid          the input is malformed; `field` names where
    │   ├── Untrusted        a signature, a hash, a role, a floor or an expiry does not hold
    │   ├── Incompatible     well-formed and genuine, but not for this device or this agent
    │   └── Rejected         the gate or the trial said no
    ├── Later            the same request may succeed by itself
    │   ├── Unreachable      network or peer; resume with backoff
    │   ├── NoSpace          waits for space
    │   └── Busy             something else is in the way (one gate at a time, a trial in progress)
    └── Refused          the caller must change something
        ├── NotFound
        ├── Conflict         it exists already and differs, or an order is stale
        └── Forbidden        who asks may not

Errors do not log and do not exit. `code` is stable and documented; `message` is for people.
"""

from __future__ import annotations

from typing import Any


class InterlockError(Exception):
    """Base of the tree. `code`: a stable snake_case word; `details`: JSON-able facts."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.details = details

    def document(self) -> dict[str, Any]:
        """`{"code", "message", "details"}` as the API, the CLI (`--json`) and the control socket show it."""
        return {"code": self.code, "message": self.message, "details": self.details}


class Never(InterlockError):
    """Terminal here."""

    code = "failed"


class Invalid(Never):
    """The input is malformed; `details["field"]` names where, when it is known."""

    code = "invalid"


class Untrusted(Never):
    """A signature, a hash, a role, a floor or an expiry does not hold."""

    code = "untrusted"


class Incompatible(Never):
    """Well-formed and genuine, but not for this device or this agent."""

    code = "incompatible"


class Rejected(Never):
    """The gate or the trial said no."""

    code = "rejected"


class Later(InterlockError):
    """The same request may succeed by itself."""

    code = "later"


class Unreachable(Later):
    """Network or peer; resume with backoff."""

    code = "unreachable"


class NoSpace(Later):
    """Waits for space."""

    code = "no_space"


class Busy(Later):
    """Something else is in the way."""

    code = "busy"


class Refused(InterlockError):
    """The caller must change something."""

    code = "refused"


class NotFound(Refused):
    """There is no such thing."""

    code = "not_found"


class Conflict(Refused):
    """It exists already and differs, or an order is stale."""

    code = "conflict"


class Forbidden(Refused):
    """Who asks may not."""

    code = "forbidden"


KINDS: dict[str, type[InterlockError]] = {
    kind.__name__: kind
    for kind in (
        Invalid,
        Untrusted,
        Incompatible,
        Rejected,
        Unreachable,
        NoSpace,
        Busy,
        NotFound,
        Conflict,
        Forbidden,
        Never,
        Later,
        Refused,
    )
}


def to_wire(error: InterlockError) -> dict[str, Any]:
    """The document plus the class name, so that the other side raises the same class."""
    return {"kind": type(error).__name__, **error.document()}


def from_wire(document: dict[str, Any]) -> InterlockError:
    """The error that `to_wire` wrote; an unknown kind becomes `Never`."""
    kind = KINDS.get(str(document.get("kind")), Never)
    details = document.get("details")
    own = ("self", "code", "message")  # names of parameters, not of facts
    known = {str(k): v for k, v in details.items() if k not in own} if isinstance(details, dict) else {}
    return kind(str(document.get("message", "")), code=str(document.get("code", kind.code)), **known)
