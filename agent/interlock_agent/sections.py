"""Sections of the owner's configuration: how others are told what is live, and who may ask.

Rules of the file:
- Each says by itself what makes sense; what depends on the rest of a unit, the unit says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A table of the file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SystemdUnit = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,254})?$")]  # a unit of the system


def _with_a_port(url: str) -> str:
    urlsplit(url).port  # noqa: B018  # raises ValueError where it is none
    return url


Url = Annotated[str, Field(pattern=r"^(https?://[^/\s]+\S*)?$"), AfterValidator(_with_a_port)]


def is_one_of_three(command: object, systemd: str, http: str, name: str) -> None:
    """Raises ValueError when none or several are set. `name`: what the first one is called."""
    if sum(bool(one) for one in (command, systemd, http)) != 1:
        raise ValueError(f"one of {name}, systemd and http")


class Hook(Section):
    """How an application that reads the model's files is told that `live` has moved: one of the three. A hook that
    fails is a failed switch, and the device goes back."""

    command: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    systemd: SystemdUnit = ""
    action: Literal["reload", "restart", "reload-or-restart", "try-restart"] = "reload-or-restart"  # for `systemd`
    http: Url = ""  # gets a POST
    timeout_s: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _is_one(self) -> Hook:
        is_one_of_three(self.command, self.systemd, self.http, "command")
        return self


class Triton(Section):
    """A Triton Inference Server that serves the model: docs/reference/triton.md."""

    url: str = Field(pattern=r"^https?://[^/\s]+/?$")
    repository: Path  # its --model-repository, as the host sees it
    name: str = Field(default="", pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,200})?$")  # of the model there; the unit's
    template: Path | None = None  # a folder: config.pbtxt, and files that every version folder gets
    request: Path | None = None  # an inference request in JSON that it must answer after each switch
    answer_ms_max: float = Field(default=0.0, ge=0)  # of that request; 0: no limit
    timeout_s: float = Field(default=10.0, gt=0)  # of a whole switch

    @model_validator(mode="after")
    def _is_absolute(self) -> Triton:
        for path in (self.repository, self.template, self.request):
            if path is not None and not path.is_absolute():
                raise ValueError(f"{path} is no absolute path")
        return self

    def hook(self) -> dict[str, Any]:
        """As the host takes it."""
        said = self.model_dump(mode="json", exclude={"timeout_s"})
        return {"triton": {name: value or "" for name, value in said.items()}, "timeout_s": self.timeout_s}


class Batching(Section):
    """Requests of several applications in one run of the model."""

    max_size: int = Field(ge=2, le=32)  # items of one run
    delay_ms: float = Field(default=0.0, ge=0, le=1000)  # that the first of a batch waits for others, at most

    def option(self) -> dict[str, Any]:
        """As the host takes it."""
        return {"max_size": self.max_size, "delay_s": self.delay_ms / 1000}


class TensorRt(Section):
    """How `runtime = "tensorrt"` builds an engine from ONNX on this device."""

    fp16: bool = False
    workspace_mib: int = Field(default=1024, ge=1)
    max_batch: int = Field(default=1, ge=1)  # items of one request, where the first axis is dynamic
    opt_batch: int = Field(default=1, ge=1)  # that it is fastest with


Account = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\$?$")]


class Access(Section):
    """Who may ask the model; what is set must hold, all of it. Without any: whoever can connect, on this machine."""

    users: tuple[Account, ...] = ()  # of this machine, by name or number
    groups: tuple[Account, ...] = ()  # the same; for Unix sockets
    socket_mode: str = Field(default="", pattern=r"^(0?[0-7]{3})?$")  # of a Unix socket's file; 0666
    socket_group: Account | None = None  # the same
    tokens: Path | None = None  # a file with the SHA-256 of each token
    certificate: Path | None = None  # of the host, with its chain; PEM
    key: Path | None = None  # of the certificate, where it is not in the same file
    client_ca: Path | None = None  # clients need a certificate from one of these
    client_names: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # and one of these names in it

    @model_validator(mode="after")
    def _fits(self) -> Access:
        for path in (self.tokens, self.certificate, self.key, self.client_ca):
            if path is not None and not path.is_absolute():
                raise ValueError(f"access: {path} is no absolute path")
        if (self.key or self.client_ca) and not self.certificate:
            raise ValueError("access.key and access.client_ca need access.certificate")
        if self.client_names and not self.client_ca:
            raise ValueError("access.client_names needs access.client_ca")
        return self

    def told(self) -> dict[str, Any]:
        """As the host takes it: what is set."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value not in (None, "", [])}


class Sideload(Section):
    """What a release from a file may do on this device. See docs/reference/sideload.md."""

    policy: Literal["", "forbid", "once", "pin"] = ""  # "": as the server says, and `once` where it says nothing
    unenrolled: Literal["refuse", "allow"] = "refuse"  # on a device that never met its server
    inbox: Path | None = None  # a folder that is watched for files
    inbox_s: float = Field(default=5.0, ge=0.1)  # how often it is looked at
    inbox_keep: int = Field(default=10, ge=0)  # files that stay in done/, and in refused/; the oldest go
