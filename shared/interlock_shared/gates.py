"""What a bundle says of rightness and speed: golden data, how it is compared, and the limits of the gate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from interlock_shared.base import FileName, Finite, Signed
from interlock_shared.limits import SLICES_MAX

METRICS: dict[str, Literal["higher", "lower"]] = {
    "top1": "higher",
    "topk": "higher",
    "f1": "higher",
    "map": "higher",
    "mae": "lower",
    "rmse": "lower",
    "wer": "lower",
}
"""What a worker can judge labels by, and which way is better. Any other name is a plug-in's, which the device's owner
must have allowed."""

SliceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._-]{0,62}[A-Za-z0-9])?$")]
Share = Annotated[Finite, Field(ge=0, le=1)]
NotNegative = Annotated[Finite, Field(ge=0)]


class Parity(Signed):
    """How close one output must be to what is expected. What is named is judged; values are compared by `rtol` and
    `atol` only where one of them is named."""

    rtol: NotNegative | None = None
    atol: NotNegative | None = None
    cosine_min: Finite | None = Field(default=None, ge=-1, le=1)  # of an item with what is expected of it; the worst
    top_k: int = Field(default=1, ge=1, le=1000)
    agreement_min: Share | None = None  # share of items whose `top_k` best of the last axis are those expected

    @property
    def by_value(self) -> bool:
        """Whether each value is compared."""
        return self.rtol is not None or self.atol is not None

    @model_validator(mode="after")
    def _says_something(self) -> Parity:
        if not self.by_value and self.cosine_min is None and self.agreement_min is None:
            raise ValueError("name rtol, atol, cosine_min or agreement_min")
        if self.top_k != 1 and self.agreement_min is None:
            raise ValueError("top_k needs agreement_min")
        return self


class Golden(Signed):
    """Golden data in one `.npz`: arrays with the item axis first. Inputs, and expected outputs and/or labels."""

    file: FileName
    inputs: dict[str, str] = Field(min_length=1)  # input name -> array name
    expected: dict[str, str] = Field(default_factory=dict)  # output name -> array name
    parity: dict[str, Parity] = Field(default_factory=dict)  # output name -> how close; else by `rtol` and `atol`
    rtol: Finite = Field(default=1e-3, ge=0)
    atol: Finite = Field(default=1e-4, ge=0)
    labels: str | None = None  # array of what is right: class indices, numbers, words, boxes
    label_output: str | None = None  # output that is compared with the labels
    metric: str = Field(default="top1", pattern=r"^[a-z][a-z0-9_-]{0,63}$")  # one of METRICS, or a plug-in
    top_k: int = Field(default=5, ge=1, le=1000)  # of the metric `topk`
    slices: str | None = None  # array of each item's group: an index into `slice_names`, or the name
    slice_names: tuple[SliceName, ...] = Field(default=(), max_length=SLICES_MAX)
    batch: int = Field(default=32, ge=1, le=4096)

    @model_validator(mode="after")
    def _pairs(self) -> Golden:
        if (self.labels is None) != (self.label_output is None):
            raise ValueError("labels and label_output go together")
        if self.labels is None and (self.metric != "top1" or self.slices is not None):
            raise ValueError("metric and slices are about labels, and there are none")
        if (self.slices is None) != (not self.slice_names):
            raise ValueError("slices and slice_names go together")
        if len(set(self.slice_names)) != len(self.slice_names):
            raise ValueError("a slice's name occurs twice")
        for name, parity in self.parity.items():
            if name not in self.expected and not parity.by_value:
                raise ValueError(f"parity.{name}: nothing is expected of this output")
        return self


Quantile = Annotated[str, Field(pattern=r"^p[1-9][0-9]?(\.[0-9]{1,2})?$")]
"""`p95`: the 0.95 quantile."""
Limit = Annotated[Finite, Field(gt=0)]
Stage = Literal["compatible", "loads", "right", "fast", "small"]
Concurrency = Annotated[str, Field(pattern=r"^([1-9]|[12][0-9]|3[0-2])$")]
"""Inferences at a time, 1 to 32."""


class SliceGates(Signed):
    """Limits of one slice. What is silent takes `slice_drop_max` or `slice_rise_max`."""

    accuracy_min: Share | None = None
    accuracy_drop_max: Share | None = None
    error_max: NotNegative | None = None
    error_rise_max: NotNegative | None = None


class Gates(Signed):
    """The publisher's limits. What is silent takes the default; the device's owner may only make them stricter."""

    accuracy_min: Share | None = None  # of a metric that is a score
    accuracy_drop_max: Share = 0.01  # against the incumbent, on the same items
    error_max: NotNegative | None = None  # of a metric that is an error, in its own unit
    error_rise_max: NotNegative | None = None  # against the incumbent; silent: a twentieth of the incumbent's error
    slice_drop_max: Share | None = None  # of each slice that has none of its own
    slice_rise_max: NotNegative | None = None
    slices: dict[SliceName, SliceGates] = Field(default_factory=dict)
    latency_ms: dict[Quantile, Limit] = Field(default_factory=dict)  # of wall time, e.g. p95
    latency_ratio_max: Finite = Field(default=1.25, gt=0)  # median of paired ratios to the incumbent
    throughput_min: dict[Concurrency, Limit] = Field(default_factory=dict)  # inferences a second, so many at a time
    load_s_max: Limit | None = None  # from the start of the process to its first answer
    memory_max_bytes: int | None = Field(default=None, gt=0)  # peak of the worker
    gpu_memory_max_bytes: int | None = Field(default=None, gt=0)  # the same, on a GPU with memory of its own
    memory_leak_max_bytes_per_1000: int = Field(default=2**20, gt=0)  # growth of the worker over 1,000 inferences
    energy_max_j: Limit | None = None  # of the device, for one inference


def check_gates(gates: Gates, golden: Golden) -> None:
    """Limits are about slices that are there, and in the metric's own words. Raises ValueError."""
    unknown = sorted(set(gates.slices) - set(golden.slice_names))
    if unknown:
        raise ValueError(f"gates: no such slice: {', '.join(unknown)}")
    better = METRICS.get(golden.metric)
    words = {"higher": ("error_max", "error_rise_max"), "lower": ("accuracy_min",)}
    for name in words.get(better or "", ()):
        if any(getattr(one, name) is not None for one in (gates, *gates.slices.values())):
            kind = "a score" if better == "higher" else "an error"
            raise ValueError(f"gates: {name} is not about {golden.metric}, which is {kind}")
