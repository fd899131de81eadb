"""The health checks of a release, in its trial and after it, in the manner of Kubernetes probes: data, never commands.

What would run something on the device (`exec`, `http`, `systemd`) is the owner's to configure; a manifest that names
one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from interlock_shared.base import Finite, Signed

PERIOD_MAX_S = 86_400.0
PERIODS_MAX = 1_000  # failures in a row that a threshold may ask for
GOLDEN_ITEMS_MAX = 256  # of one golden check: it is to be light
CHECKS_MAX = 32

CheckName = Literal[
    "worker_alive",
    "ready",
    "error_rate",
    "non_finite",
    "latency",
    "constant_output",
    "out_of_range",
    "golden",
    "memory_growth",
    "gpu_faults",
]


class Kind(NamedTuple):
    """What a check of a kind is, where its table does not say: seconds, failures in a row, the largest figure that is
    well (None: it has to be named, or there is none); and its own settings with their defaults."""

    period_s: float
    timeout_s: float
    failures: int
    max: float | None = None
    own: Mapping[str, Any] = {}


# The counters are read every second: looking at them costs nothing.
KINDS: dict[str, Kind] = {
    "worker_alive": Kind(1.0, 5.0, 3),
    "ready": Kind(10.0, 5.0, 3),
    "error_rate": Kind(1.0, 5.0, 1, 0.01),
    "non_finite": Kind(1.0, 5.0, 1, 0.0),
    "latency": Kind(5.0, 5.0, 3, None, {"quantile": "p99", "ratio_max": None}),
    "constant_output": Kind(5.0, 5.0, 1, 0.9),
    "out_of_range": Kind(5.0, 5.0, 1, 0.0, {"output": None, "low": None, "high": None}),
    "golden": Kind(30.0, 30.0, 1, None, {"items": 8}),
    "memory_growth": Kind(10.0, 5.0, 3, None, {"per": "1000_requests"}),
    "gpu_faults": Kind(10.0, 5.0, 1, 0.0),
}
NO_MAX = ("worker_alive", "ready", "golden")  # they pass or fail
OWN = ("quantile", "ratio_max", "output", "low", "high", "items", "per")


class Check(Signed):
    """One health check. What its kind has no use for is an error; see docs/reference/bundle.md for the figures."""

    check: CheckName
    max: Finite | None = Field(default=None, ge=0)  # of the figure that the check looks at
    required: bool = True  # one that is not is told, and takes nothing back
    period_s: Finite = Field(default=1.0, ge=0.1, le=PERIOD_MAX_S)
    timeout_s: Finite = Field(default=5.0, ge=0.1, le=PERIOD_MAX_S)
    failure_threshold: int = Field(default=1, ge=1, le=PERIODS_MAX)  # in a row
    success_threshold: int = Field(default=1, ge=1, le=PERIODS_MAX)  # in a row, to be well (again)
    initial_delay_s: Finite = Field(default=0.0, ge=0, le=PERIOD_MAX_S)
    quantile: Literal["p50", "p95", "p99"] | None = None
    ratio_max: Finite | None = Field(default=None, gt=0)  # to the release that served before, on the same traffic
    output: str | None = Field(default=None, min_length=1, max_length=256)
    low: Finite | None = None
    high: Finite | None = None
    items: int | None = Field(default=None, ge=1, le=GOLDEN_ITEMS_MAX)
    per: Literal["1000_requests", "hour"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, given: Any) -> Any:
        kind = KINDS.get(str(given.get("check"))) if isinstance(given, dict) else None
        if kind is None:
            return given
        usual = {"period_s": kind.period_s, "timeout_s": kind.timeout_s, "failure_threshold": kind.failures}
        filled: dict[str, Any] = {**usual, **{k: v for k, v in kind.own.items() if v is not None}, **given}
        # An explicit null is no setting: canonical documents hold every field.
        for name in ("max", *kind.own):
            if filled.get(name) is None and (name == "max" or kind.own[name] is not None):
                filled[name] = kind.max if name == "max" else kind.own[name]
        return filled

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Check:
        own = KINDS[self.check].own
        foreign = [name for name in OWN if name not in own and getattr(self, name) is not None]
        if self.check in NO_MAX and self.max is not None:
            foreign.append("max")
        if foreign:
            raise ValueError(f"{self.check} has no {', '.join(foreign)}")
        if self.check == "latency" and self.max is None and self.ratio_max is None:
            raise ValueError("latency needs max (milliseconds) or ratio_max")
        if self.check == "memory_growth" and self.max is None:
            raise ValueError("memory_growth needs max (bytes)")
        if self.check == "out_of_range":
            if self.output is None or (self.low is None and self.high is None):
                raise ValueError("out_of_range needs output, and low or high")
            if self.low is not None and self.high is not None and self.low > self.high:
                raise ValueError("low is above high")
        return self

    @property
    def name(self) -> str:
        """What it is called where results are told; one of a kind as its kind."""
        about = self.quantile if self.check == "latency" else self.output
        return f"{self.check}_{about}" if about else self.check


DEFAULT_CHECKS = (Check(check="worker_alive"), Check(check="error_rate"), Check(check="non_finite"))


class Health(Signed):
    """The trial: how long, how many requests, and what is watched, then and after it."""

    min_seconds: Finite = Field(default=10.0, ge=0, le=86_400)
    min_requests: int = Field(default=20, ge=0, le=1_000_000)
    checks: tuple[Check, ...] = Field(default=DEFAULT_CHECKS, max_length=CHECKS_MAX)

    @model_validator(mode="after")
    def _each_once(self) -> Health:
        names = [check.name for check in self.checks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"checks: {', '.join(twice)}: more than once")
        return self

    def effective(self) -> tuple[Check, ...]:
        """The checks that hold: those that are always there, as `checks` has them, and the others of `checks`."""
        named = {check.check for check in self.checks}
        return (*(check for check in DEFAULT_CHECKS if check.check not in named), *self.checks)

    def sanity(self) -> dict[str, Any]:
        """What the worker looks for in its answers: `{"constant": bool, "ranges": {output: [low, high]}}`; empty when
        no check asks for it."""
        ranges = {str(one.output): [one.low, one.high] for one in self.checks if one.check == "out_of_range"}
        constant = any(one.check == "constant_output" for one in self.checks)
        return {"constant": constant, "ranges": ranges} if ranges or constant else {}
