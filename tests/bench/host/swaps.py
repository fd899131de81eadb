"""A thousand swaps, 10 ms apart, in rounds; the workers are loaded before each series, so that a swap is a swap.

Two releases take turns in the two slots. Of each request it is known when it was asked, so that what is counted is:
failed; answered by the other release although it was asked after `promote` had returned, and answered before the next
began; and how long it took, by whether it was under way while a swap went on, or asked in the quiet seconds around it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from interlock_agent.host import messages
from tests.bench.host.crowd import Seen, asking
from tests.bench.host.slots import VERSIONS, serve
from tests.bench.result import Figure, quantile
from tests.host.rig import UNIT, Rig, running

SWAPS, ROUNDS = 1000, 5
SERIES = 20  # swaps with workers that were loaded together
APART_S = 0.01
QUIET_S = 1.0  # before a series, and after it
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass
class Times:
    """Of one round, by the monotonic clock. `swaps`: began, ended, the version that serves from then on."""

    swaps: list[tuple[float, float, str]] = field(default_factory=list)
    before: list[tuple[float, float]] = field(default_factory=list)
    after: list[tuple[float, float]] = field(default_factory=list)


async def _series(rig: Rig, generation: int, count: int, times: Times) -> None:
    """Load `count` workers of both releases in turn, be quiet, swap."""
    status = await rig.agent.status()
    slots = {"a": "b", "b": "a"}
    slot, workers = slots[status["confirmed_slot"]], []
    for _ in range(count):
        folder = str(rig.slots / slot)
        loaded = await rig.agent.order(messages.Load(UNIT, generation, folder, "candidate", {}))
        workers.append((loaded["worker"], slot))
        slot = slots[slot]
    versions = dict(zip(("a", "b"), VERSIONS, strict=True))
    began = time.monotonic()
    await asyncio.sleep(QUIET_S)
    times.before.append((began, time.monotonic()))
    for worker, slot in workers:
        began = time.monotonic()
        await rig.agent.order(messages.Promote(UNIT, generation, worker, slot))
        times.swaps.append((began, time.monotonic(), versions[slot]))
        await rig.agent.order(messages.Confirm(UNIT, generation))
        await asyncio.sleep(APART_S)
    began = time.monotonic()
    await asyncio.sleep(QUIET_S)
    times.after.append((began, time.monotonic()))


async def _rounds(folder: Path, rounds: int, swaps: int) -> tuple[list[Times], Seen]:
    done = []
    async with running(folder, guarded=False) as rig:
        await serve(rig)
        async with asking(rig.address, folder) as seen:
            generation = 1
            for number in range(rounds):
                times = Times()
                while len(times.swaps) < swaps:
                    generation += 1
                    await _series(rig, generation, min(SERIES, swaps - len(times.swaps)), times)
                done.append(times)
                print(f"  swaps: round {number + 1} of {rounds}", flush=True)
    return done, seen


def _wrong(rounds: list[Times], seen: Seen) -> int:
    """Answers of the other release to what was asked and answered between the end of a swap and the next one."""
    swaps = [swap for times in rounds for swap in times.swaps]
    ends = [began for began, _, _ in swaps[1:]] + [float("inf")]
    answers = sorted(seen.answers)
    place, wrong = 0, 0
    for (_, ended, version), until in zip(swaps, ends, strict=True):
        while place < len(answers) and answers[place][0] <= ended:
            place += 1
        while place < len(answers) and answers[place][0] < until:
            wrong += answers[place][1] < until and answers[place][2] != version
            place += 1
    return wrong


def _took(seen: Seen, times: list[tuple[float, float]]) -> list[float]:
    return [ms for began, ended in times for ms in seen.asked_in(began, ended)]


def _inside(seen: Seen, times: Times) -> list[float]:
    """What was under way while a swap went on."""
    swaps = iter(sorted((began, ended) for began, ended, _ in times.swaps))
    first, last = times.swaps[0][0], times.swaps[-1][1]
    answers = sorted(one for one in seen.answers if one[1] >= first and one[0] <= last)
    return list(_overlapping(answers, list(swaps)))


def _overlapping(answers: list[tuple[float, float, str, str]], spans: list[tuple[float, float]]) -> Iterator[float]:
    start = 0
    for asked, answered, _, _ in answers:
        while start < len(spans) and spans[start][1] < asked:
            start += 1
        if start < len(spans) and spans[start][0] <= answered:
            yield (answered - asked) * 1000


def figures(folder: Path, scale: float) -> list[Figure]:
    """The swaps. `scale`: a fraction of the thousand."""
    rounds, seen = asyncio.run(_rounds(folder, ROUNDS, max(2, int(SWAPS * scale) // ROUNDS)))
    when = {
        "before": [_took(seen, times.before) for times in rounds],
        "during": [_inside(seen, times) for times in rounds],
        "after": [_took(seen, times.after) for times in rounds],
    }
    swaps = [(ended - began) * 1000 for times in rounds for began, ended, _ in times.swaps]
    rows = [
        Figure("swaps", "count", [float(len(swaps))]),
        Figure("swaps: requests", "count", [float(len(seen.answers))]),
        Figure("swaps: failed requests", "count", [float(len(seen.failures))]).at_most(0),
        Figure("swaps: answers from the wrong release", "count", [float(_wrong(rounds, seen))]).at_most(0),
        Figure("swaps: promote", "ms", swaps),
    ]
    for name, q in QUANTILES.items():
        rows += [
            Figure(f"swaps: {name} {part}", "ms", [quantile(one, q) for one in took]) for part, took in when.items()
        ]
    steady = [one + two for one, two in zip(when["before"], when["after"], strict=True)]
    ratios = [quantile(d, 0.999) / quantile(s, 0.999) for d, s in zip(when["during"], steady, strict=True)]
    rows.append(Figure("swaps: p99.9 during / steady", "ratio", ratios).at_most(2))
    for _, _, kind, what in seen.failures[:5]:
        print(f"  failed: {kind}: {what}")
    return rows
