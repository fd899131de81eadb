"""Bodies of requests: strict models; an unknown field is a refusal. Their JSON schemas are the OpenAPI document's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from interlock_shared.base import Finite, Name, Sha256, Version
from interlock_shared.classes import SELECTORS_MAX
from interlock_shared.documents import Selector
from interlock_shared.limits import PERMIT_MAX_S
from interlock_shared.revocation import Reason

LabelValue = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Labels = Annotated[dict[Name, LabelValue], Field(max_length=64)]
Json = dict[str, Any]


class Body(BaseModel):
    """Base: strict, closed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TrustBody(Body):
    """TUF root and targets metadata, metadata of new delegated roles, and the target `director.json`. `chain`: roots
    between the server's and `root`, oldest first.
    """

    chain: list[Json] = Field(default_factory=list, max_length=256)
    root: Json
    targets: Json
    delegated: dict[str, Json] = Field(default_factory=dict, max_length=1024)
    director: Json


class RotateBody(Body):
    """Which online keys are to be replaced."""

    roles: list[Literal["snapshot", "timestamp", "director"]] = Field(min_length=1, max_length=3)


class MissingBody(Body):
    """Digests of segments."""

    sha256: list[Sha256] = Field(max_length=65_536)


class ReleaseBody(Body):
    """Base64 of the manifest's canonical bytes, and the release role's next metadata that names it."""

    manifest: str
    metadata: Json


class MetadataBody(Body):
    """A release role's next metadata: one more signature of what is pending, or what revokes a release."""

    metadata: Json


class ReasonBody(Body):
    """Why."""

    reason: Reason


class PermitBody(Body):
    """Ids of devices, classes of devices; both null: any device of this fleet."""

    devices: list[Name] | None = Field(default=None, min_length=1, max_length=1000)
    classes: list[Selector] | None = Field(default=None, min_length=1, max_length=SELECTORS_MAX)
    valid_for_s: int = Field(default=30 * 86_400, gt=0, le=PERMIT_MAX_S)


class UnpinBody(Body):
    """A model on the device."""

    model: Name


class DeviceTokenBody(Body):
    """Labels that the device will have, and its id where it is decided already. `uses` above 1 is for imaging a batch:
    each of its devices waits for approval."""

    labels: Labels = Field(default_factory=dict)
    device: Name | None = None
    hours: Finite = Field(default=24.0, gt=0, le=24 * 366)
    uses: int = Field(default=1, ge=1, le=10_000)


class EnrolBody(Body):
    """The token authenticates; the signing request (PEM) proves the key, whose private part never leaves the device."""

    token: str = Field(min_length=1, max_length=128)
    csr: str = Field(min_length=1, max_length=16_384)
    name: Name | None = None
    agent: str = Field(default="", max_length=64)


class RenewBody(Body):
    """A signing request (PEM) of a fresh key."""

    csr: str = Field(min_length=1, max_length=16_384)


class DecideBody(Body):
    """The key id, or its beginning, where several devices wait under one id."""

    keyid: str | None = Field(default=None, min_length=1, max_length=128)


class RevokeBody(Body):
    """Why, for the audit log."""

    reason: str = Field(min_length=1, max_length=500)


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
