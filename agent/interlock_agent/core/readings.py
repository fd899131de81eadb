"""What a check reads out of figures that are there anyway: the front's counters, the host's status, a process's memory.

Pure. `READERS` says which check is read how; those that are not here have to be asked (steps/probing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.core.probes import FAIL, PASS, UNAVAILABLE, Probe, Reading

ENOUGH_REQUESTS = 20  # below, one is 5 % or more: a share or a quantile of so few says nothing
ENOUGH_SAMPLES = 10  # of answers that the worker has looked at
CRASHES_S = 600.0
CRASHES_MAX = 2  # in that time: a release that serves for a while between its crashes is not well
MEMORY_SAMPLES = 6  # below, growth cannot be told from warming up
MEMORY_ENDS = 3  # samples at either end that are compared: one peak is no growth
MEMORY_SPAN = {"1000_requests": 1000.0, "hour": 60.0}  # requests, or seconds, that they must be apart


@dataclass(frozen=True)
class Memory:
    """The worker's resident memory: when, after how many requests, bytes."""

    at: float
    requests: int
    resident_bytes: int


@dataclass(frozen=True)
class Word:
    """What the application has said of the release that serves."""

    healthy: bool
    message: str = ""


@dataclass(frozen=True)
class Sight:
    """What is to be seen of the live worker. `since`: the counters that a figure is counted from; empty: from when the
    worker became live. `before`: those of the last look."""

    counters: Mapping[str, Any]
    since: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    live: str = ""  # worker
    crashes: int = 0  # of the confirmed release's worker, one after the other
    crashes_before: int = 0
    crashes_lately: int = 0  # in the last CRASHES_S
    memory: Sequence[Memory] = ()
    incumbent: Mapping[str, float] = field(default_factory=dict)  # latency felt before the switch, ms by quantile
    gpu_faults: int | None = None  # since the watch began; None: this device does not tell
    word: Word | None = None

    def count(self, name: str) -> int:
        """How many since `since`."""
        return int(self.counters.get(name, 0)) - int(self.since.get(name, 0))

    def more(self) -> bool:
        """Whether requests came since the last look."""
        return int(self.counters.get("requests", 0)) != int(self.before.get("requests", 0))


def _limited(figure: float, limit: float, text: str) -> Reading:
    return Reading(FAIL if figure > limit else PASS, figure, limit, text if figure > limit else "")


def _none(why: str) -> Reading:
    return Reading(UNAVAILABLE, message=why)


def worker_alive(probe: Probe, sight: Sight) -> Reading:
    """A worker answers, and none has crashed since the last look, nor again and again."""
    if not sight.live:
        return Reading(FAIL, message="no worker of it answers")
    if sight.crashes > sight.crashes_before:
        return Reading(FAIL, float(sight.crashes), message="its worker ended by itself")
    if sight.crashes_lately > CRASHES_MAX:
        text = f"its worker ended by itself {sight.crashes_lately} times in {CRASHES_S / 60:.0f} minutes"
        return Reading(FAIL, float(sight.crashes_lately), float(CRASHES_MAX), text)
    return Reading(PASS)


def error_rate(probe: Probe, sight: Sight) -> Reading:
    """Answers 5xx of the worker, as a share."""
    requests, errors, limit = sight.count("requests"), sight.count("errors"), float(probe.settings["max"])
    if requests < ENOUGH_REQUESTS:
        return _none(f"{requests} requests: too few to tell")
    rate = errors / requests
    return _limited(rate, limit, f"error rate {rate:.3f} over {requests} requests, {limit:g} allowed")


def non_finite(probe: Probe, sight: Sight) -> Reading:
    """Answers with NaN or Inf that were held back."""
    bad, limit = sight.count("non_finite"), float(probe.settings["max"])
    return _limited(bad, limit, f"{bad} answers were not finite, {limit:g} allowed")


def latency(probe: Probe, sight: Sight) -> Reading:
    """As applications felt it in the last seconds: in milliseconds, or as a ratio to the release before."""
    recent: Mapping[str, Any] = sight.counters.get("recent") or {}
    quantile = str(probe.settings["quantile"])
    if int(recent.get("count", 0)) < ENOUGH_REQUESTS or not sight.more():
        return _none("too few requests in the last seconds to tell")
    if f"{quantile}_ms" not in recent:
        return _none(f"the host does not tell {quantile}: it is older than the agent")
    now, limit, ratio = float(recent[f"{quantile}_ms"]), probe.settings.get("max"), probe.settings.get("ratio_max")
    if limit is not None and now > limit:
        return Reading(FAIL, now, float(limit), f"{quantile} {now:.4g} ms, {limit:g} ms allowed")
    if ratio is None:
        return Reading(PASS, now, limit)
    base = float(sight.incumbent.get(f"{quantile}_ms") or 0.0)
    if not base:
        return _none("nothing was measured before the switch that it could be compared with")
    return _limited(
        now / base, float(ratio), f"{quantile} is {now / base:.2f} times as long as before, {ratio:g} allowed"
    )


def constant_output(probe: Probe, sight: Sight) -> Reading:
    """Of the answers that were looked at, the share that was the same as the one before, though the input was not."""
    looked, same, limit = sight.count("looked"), sight.count("constant"), float(probe.settings["max"])
    if looked < ENOUGH_SAMPLES:
        return _none(f"{looked} answers were looked at: too few to tell")
    share = same / looked
    return _limited(share, limit, f"{same} of {looked} answers were the same for other inputs, {limit:g} allowed")


def out_of_range(probe: Probe, sight: Sight) -> Reading:
    """Of the answers that were looked at, the share that had a value outside the range."""
    output = str(probe.settings["output"])
    outside: Mapping[str, int] = sight.counters.get("outside") or {}
    outside_before: Mapping[str, int] = sight.since.get("outside") or {}
    looked, limit = sight.count("looked"), float(probe.settings["max"])
    if looked < ENOUGH_SAMPLES:
        return _none(f"{looked} answers were looked at: too few to tell")
    bad = int(outside.get(output, 0)) - int(outside_before.get(output, 0))
    share = bad / looked
    return _limited(share, limit, f"{bad} of {looked} answers had {output} out of its range, {limit:g} allowed")


def memory_growth(probe: Probe, sight: Sight) -> Reading:
    """Bytes per 1,000 requests, or per hour: from the largest of the first samples to the smallest of the last ones, so
    that a peak is no growth."""
    samples, per = sight.memory, str(probe.settings["per"])
    if len(samples) < MEMORY_SAMPLES:
        return _none("too few samples of its memory to tell")
    first, last = samples[:MEMORY_ENDS], samples[-MEMORY_ENDS:]
    by_time = per == "hour"
    span = last[0].at - first[-1].at if by_time else last[0].requests - first[-1].requests
    if span < MEMORY_SPAN[per]:
        return _none(f"{span:g} {'seconds' if by_time else 'requests'} between samples: too few to tell")
    grown = min(one.resident_bytes for one in last) - max(one.resident_bytes for one in first)
    rate = max(0.0, grown / span * (3600.0 if by_time else 1000.0))
    limit, unit = float(probe.settings["max"]), "hour" if by_time else "1,000 requests"
    return _limited(rate, limit, f"its memory grows by {rate:.0f} bytes per {unit}, {limit:.0f} allowed")


def gpu_faults(probe: Probe, sight: Sight) -> Reading:
    """Critical faults (Xid) that the driver has told of."""
    if sight.gpu_faults is None:
        return _none("this device does not tell of GPU faults")
    limit = float(probe.settings["max"])
    return _limited(sight.gpu_faults, limit, f"{sight.gpu_faults} faults of the GPU (Xid), {limit:g} allowed")


def application(probe: Probe, sight: Sight) -> Reading | None:
    """What the application says through the local API; where its word is required, silence is waited for."""
    if sight.word is None:
        return None if probe.settings["must_speak"] else _none("it has said nothing")
    said = sight.word.message
    return Reading(PASS, message=said) if sight.word.healthy else Reading(FAIL, message=said or "it says: unhealthy")


READERS: dict[str, Callable[[Probe, Sight], Reading | None]] = {  # None: nothing to say yet
    "worker_alive": worker_alive,
    "error_rate": error_rate,
    "non_finite": non_finite,
    "latency": latency,
    "constant_output": constant_output,
    "out_of_range": out_of_range,
    "memory_growth": memory_growth,
    "gpu_faults": gpu_faults,
    "application": application,
}
