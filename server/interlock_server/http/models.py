"""Bodies of requests: strict models; an unknown field is a refusal. Their JSON schemas are the OpenAPI document's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from interlock_shared.base import Finite, Name, Sha256, Version

LabelValue = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Labels = Annotated[dict[Name, LabelValue], Field(max_length=64)]
Json = dict[str, Any]


class Body(BaseModel):
    """Base: strict, closed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TrustBody(Body):
    """TUF root and targets metadata, metadata of new delegated roles, and the target `director.json`."""

    root: Json
    targets: Json
    delegated: dict[str, Json] = Field(default_factory=dict, max_length=1024)
    director: Json


class MissingBody(Body):
    """Digests of segments."""

    sha256: list[Sha256] = Field(max_length=65_536)


class ReleaseBody(Body):
    """Base64 of the manifest's canonical bytes, and the release role's next metadata that names it."""

    manifest: str
    metadata: Json


class PermitBody(Body):
    """`devices` null: any device of this fleet."""

    devices: list[Name] | None = Field(default=None, max_length=1000)
    days: int = Field(default=30, ge=1, le=3660)


class DeviceTokenBody(Body):
    """Labels that the device will have, and its id where it is decided already."""

    labels: Labels = Field(default_factory=dict)
    device: Name | None = None
    hours: Finite = Field(default=24.0, gt=0, le=24 * 366)


class KeyBody(Body):
    """A public key in securesystemslib's form."""

    keyid: str = Field(min_length=1, max_length=128)
    key: Json


class EnrolBody(Body):
    """The token authenticates; the private part of the key never leaves the device."""

    token: str = Field(min_length=1, max_length=128)
    key: KeyBody
    name: Name | None = None
    agent: str = Field(default="", max_length=64)


class ToBody(Body):
    """Exactly one of: one device, all devices with these labels, all devices."""

    device: Name | None = None
    labels: Labels | None = Field(default=None, min_length=1)
    all: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> ToBody:
        if sum(value is not None for value in (self.device, self.labels, self.all)) != 1:
            raise ValueError("exactly one of device, labels, all is expected")
        return self


class RolloutBody(Body):
    """What goes where."""

    model: Name
    version: Version
    to: ToBody


class TokenBody(Body):
    """A bearer token's name in the audit log, and its role."""

    name: str = Field(min_length=1, max_length=128)
    role: Literal["viewer", "operator", "publisher", "admin"]
