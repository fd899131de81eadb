"""What every document has in common: strict models, names, and the refusal of what this version does not know."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from interlock_shared import __version__
from interlock_shared.errors import Incompatible, Invalid
from interlock_shared.limits import FILE_NAME_MAX, NAME_MAX

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", max_length=NAME_MAX)]
"""A model, variant, rollout or device id: lower case, so that it is the same in a topic, a path and a file name."""

Version = Annotated[
    str,
    StringConstraints(
        pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z]+([.-][0-9A-Za-z]+)*)?$",
        max_length=NAME_MAX,
    ),
]
"""A semantic version without build metadata."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def _plain_file_name(name: str) -> str:
    if name in {"manifest.json", "seal.json", "live", "confirmed"} or name.startswith("."):
        raise ValueError("this file name is reserved")
    return name


FileName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=FILE_NAME_MAX),
    AfterValidator(_plain_file_name),
]
"""One path component, never a path."""


def _a_moment(text: str) -> str:
    datetime.fromisoformat(text[:19])  # ValueError: a 13th month, a 61st second
    return text


Timestamp = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z$"),
    AfterValidator(_a_moment),
]
"""RFC 3339 in UTC: a time that there is."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Signed(BaseModel):
    """Base of documents that are signed: an unknown field is a refusal, not a surprise."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Report(BaseModel):
    """Base of what a device or a server tells: an unknown field is kept and ignored."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


def version_key(version: str) -> tuple[int, int, int, int, str]:
    """Sort key of a semantic version; a pre-release sorts before its release."""
    core, _, pre = version.partition("-")
    major, minor, patch = (int(part) for part in core.split(".")[:3])
    return major, minor, patch, 0 if pre else 1, pre


# The two complaints that a person's typing error leads to, without pydantic's words.
_PLAIN = {"extra_forbidden": "there is no such field", "missing": "is needed, and missing"}


def describe(error: ValidationError, what: str) -> Invalid:
    """The first problem of a pydantic error as ours, naming the field by its path."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or what
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return Invalid(f"{what}: {field}: {_PLAIN.get(first['type'], first['msg'])}{more}", field=field)


M = TypeVar("M", bound=BaseModel)


def validate(kind: type[M], document: dict[str, Any], what: str) -> M:
    """`document` as `kind`. Raises Invalid, naming the field.

    JSON has no tuples: validation goes through pydantic's JSON mode rules, where lists stand for them.
    """
    try:
        return kind.model_validate_json(_json(document))
    except ValidationError as error:
        raise describe(error, what) from None
    except ValueError as error:  # a number that JSON cannot hold: `1e999` is read as infinity
        raise Invalid(f"{what}: {error}", field=what) from None


def _json(document: dict[str, Any]) -> bytes:
    from interlock_shared.canonical import encode  # here: canonical imports errors alone, base is above it

    return encode(document)


_AGENT = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{0,64})?")


def check_speakable(document: dict[str, Any], schema: str, what: str, *, agent: str = __version__) -> None:
    """Refuse what a newer release engineer wrote for a newer agent, before its fields are looked at.

    Raises Incompatible (`needs_agent`) when `min_agent` is above `agent`, Invalid on another schema.
    """
    wanted = document.get("min_agent")
    if isinstance(wanted, str) and _AGENT.fullmatch(wanted) and version_key(wanted) > version_key(agent):
        raise Incompatible(
            f"{what}: needs agent ≥ {wanted}, this is {agent}", code="needs_agent", needs=wanted, agent=agent
        )
    if document.get("schema") != schema:
        raise Invalid(
            f"{what}: schema {document.get('schema')!r}, {schema!r} is expected", field="schema", code="unknown_schema"
        )
