"""How `interlock-agent install` ends: an exit code for each reason why a file is refused, for scripts in a workshop.

The codes are documented in docs/cli-interlock-agent.md; they never change their meaning.
"""

from __future__ import annotations

from interlock_shared.errors import Forbidden, InterlockError, Invalid, Later, Untrusted

DONE, FAILED, LATER = 0, 1, 3
UNKNOWN_ROOT, EXPIRED, NOT_PERMITTED, OLDER, CORRUPTED, REVOKED, FORBIDDEN, NOT_GENUINE, NO_BUNDLE = range(10, 19)

CODES = {
    "unknown_root": UNKNOWN_ROOT,
    "expired": EXPIRED,
    "metadata_expired": EXPIRED,
    "no_permit": NOT_PERMITTED,
    "other_device": NOT_PERMITTED,
    "other_class": NOT_PERMITTED,
    "permit_for_other_release": NOT_PERMITTED,
    "below_floor": OLDER,
    "segment_mismatch": CORRUPTED,
    "truncated": CORRUPTED,
    "revoked": REVOKED,
    "sideload_forbidden": FORBIDDEN,
    "unenrolled": FORBIDDEN,
    "unit_not_listed": FORBIDDEN,
    "unsigned_bundle": NOT_GENUINE,
    # Found when the head was believed already: an attempt was begun, and only its code is told.
    **dict.fromkeys(("bad_archive", "foreign_member", "not_a_plain_file", "too_large", "wrong_order"), NO_BUNDLE),
    "not_enrolled": UNKNOWN_ROOT,
}


def of_error(error: InterlockError) -> int:
    """The exit code of a refusal."""
    if error.code in CODES:
        return CODES[error.code]
    if isinstance(error, Later):
        return LATER
    if isinstance(error, Untrusted):
        return NOT_GENUINE
    if isinstance(error, Invalid) and error.details.get("field") != "file":
        return NO_BUNDLE
    return FORBIDDEN if isinstance(error, Forbidden) else FAILED


def of_answer(phase: str, reason: str) -> int:
    """The exit code of an attempt that rests."""
    if phase == "confirmed":
        return DONE
    if phase == "waiting":
        return LATER
    return CODES.get(reason, FAILED)
