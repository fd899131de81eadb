"""Probes: what is asked of a release that serves, how often, and when its answers are a judgement.

Pure, in the manner of Kubernetes: a result and a time in, a standing out.

- A probe is due first after its delay, then every period, counted from when it was asked.
- It fails after `failure_threshold` results in a row that are bad, and is well (again) after `success_threshold` good
  ones. What could not be read is neither: it is told as `unavailable`, and never counts as well.
- A trial is not confirmed while a required probe is `pending` or `failing`, nor while its last result is bad: the next
  ones say which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from interlock_shared.health import OWN, Check

PASS, FAIL, UNAVAILABLE = "pass", "fail", "unavailable"  # of a result
APPLICATION = "application"  # the kind of probe that is its word
PENDING, PASSING, FAILING = "pending", "passing", "failing"  # of a standing, beside `unavailable`


@dataclass(frozen=True)
class Probe:
    """`settings`: what only its kind has. Times in seconds."""

    name: str
    kind: str
    period_s: float
    timeout_s: float
    failure_threshold: int = 1
    success_threshold: int = 1
    initial_delay_s: float = 0.0
    required: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


def of_check(check: Check) -> Probe:
    """A check of a manifest."""
    own = check.model_dump(mode="json", include={"max", *OWN})
    return Probe(
        name=check.name,
        kind=check.check,
        period_s=check.period_s,
        timeout_s=check.timeout_s,
        failure_threshold=check.failure_threshold,
        success_threshold=check.success_threshold,
        initial_delay_s=check.initial_delay_s,
        required=check.required,
        settings={name: value for name, value in own.items() if value is not None},
    )


def after_confirmation(probes: Iterable[Probe], period_s: float, failures: int) -> tuple[Probe, ...]:
    """The same probes for as long as the release serves: asked no more often than every `period_s`, and bad only after
    so many results in a row, so that one answer among millions takes nothing back. The application's word holds at
    once, as ever."""

    def cheaper(probe: Probe) -> Probe:
        if probe.kind == APPLICATION:
            return probe
        return replace(
            probe,
            period_s=max(probe.period_s, period_s),
            failure_threshold=max(probe.failure_threshold, failures),
            initial_delay_s=max(probe.initial_delay_s, period_s),
        )

    return tuple(cheaper(probe) for probe in probes)


@dataclass(frozen=True)
class Reading:
    """One result. `figure` and `limit` in the check's unit; `message`: what is wrong, or why it is not to be had."""

    outcome: str
    figure: float | None = None
    limit: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Standing:
    """Where a probe stands. `due`, `at`: seconds of a clock that only goes on."""

    due: float
    outcome: str = PENDING
    failures: int = 0  # in a row
    successes: int = 0  # in a row
    last: Reading | None = None
    at: float = 0.0


def take(probe: Probe, before: Standing, reading: Reading, asked: float, now: float) -> Standing:
    """The standing after a result that was asked for at `asked` and came at `now`."""
    outcome, failures, successes = before.outcome, before.failures, before.successes
    if reading.outcome == PASS:
        failures, successes = 0, successes + 1
        if successes >= probe.success_threshold:
            outcome = PASSING
    elif reading.outcome == FAIL:
        failures, successes = failures + 1, 0
        if failures >= probe.failure_threshold:
            outcome = FAILING
    elif outcome != FAILING:
        outcome = UNAVAILABLE
    return Standing(max(asked + probe.period_s, now), outcome, failures, successes, reading, now)


class Board:
    """The standings of all probes of one release."""

    def __init__(self, probes: Iterable[Probe], now: float) -> None:
        self.probes = {probe.name: probe for probe in probes}
        self.standings = {name: Standing(now + probe.initial_delay_s) for name, probe in self.probes.items()}

    def due(self, now: float) -> list[Probe]:
        """Those that are to be asked now."""
        return [probe for name, probe in self.probes.items() if self.standings[name].due <= now]

    def take(self, name: str, reading: Reading, asked: float, now: float) -> None:
        """A result."""
        self.standings[name] = take(self.probes[name], self.standings[name], reading, asked, now)

    def _required(self, outcome: str) -> list[str]:
        return [n for n, one in self.standings.items() if one.outcome == outcome and self.probes[n].required]

    def failing(self) -> str:
        """The first required probe that fails, "" when none does."""
        return next(iter(self._required(FAILING)), "")

    def pending(self) -> list[str]:
        """Required probes that have not said yet how it is, or whose last result was bad, though not often enough."""
        doubted = [n for n, one in self.standings.items() if one.last is not None and one.last.outcome == FAIL]
        doubted = [n for n in doubted if self.probes[n].required and self.standings[n].outcome != FAILING]
        return [*self._required(PENDING), *(n for n in doubted if self.standings[n].outcome != PENDING)]

    def message(self, name: str) -> str:
        """What its last result says."""
        last = self.standings[name].last
        return last.message if last else ""

    def rows(self, now: float) -> list[dict[str, Any]]:
        """For people and for the journal: each with its last result, how many seconds ago that was."""
        found = []
        for name, probe in self.probes.items():
            one = self.standings[name]
            row: dict[str, Any] = {"check": name, "outcome": one.outcome, "required": probe.required}
            row["failures"] = one.failures
            if one.last is not None:
                row |= {"figure": one.last.figure, "limit": one.last.limit, "message": one.last.message}
                row["seconds_ago"] = round(now - one.at, 1)
            found.append(row)
        return found
