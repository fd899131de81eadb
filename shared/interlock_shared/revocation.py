"""Where a release role says which of its releases are no longer genuine.

The target of a revoked release is gone from the role's metadata, and a record of it is left in the signed part, under
`x-interlock`. So the reason is signed, the version can never come back, and whoever reads the metadata tells a release
that was revoked from one that it has not heard of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from interlock_shared.base import Sha256, Signed, Timestamp, Version, describe

FIELD = "x-interlock"
LIST = "revoked"
REASON_MAX = 500  # characters

Reason = Annotated[str, StringConstraints(min_length=1, max_length=REASON_MAX)]


class Revoked(Signed):
    """Why a release is no longer genuine, since when, and which manifest it was."""

    manifest_sha256: Sha256
    at: Timestamp
    reason: Reason


Records = dict[str, Revoked]
_LIST: TypeAdapter[Records] = TypeAdapter(Annotated[dict[Version, Revoked], Field(max_length=65_536)])


def records(signed: Mapping[str, Any]) -> Records:
    """The records in the signed part of a release role's metadata, by version. Raises Invalid."""
    ours = signed.get(FIELD)
    found = ours.get(LIST) if isinstance(ours, Mapping) else None
    if found is None:
        return {}
    try:
        return _LIST.validate_python(found)
    except ValidationError as bad:
        raise describe(bad, FIELD) from None


def with_record(field: Any, version: str, record: Revoked) -> dict[str, Any]:
    """The value of `x-interlock` with one more record; what else stands there stays."""
    ours = dict(field) if isinstance(field, Mapping) else {}
    return {**ours, LIST: {**(ours.get(LIST) or {}), version: record.model_dump(mode="json")}}
