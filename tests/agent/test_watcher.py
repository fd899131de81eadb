"""The watch over what serves, with a host that is told what to say: what is asked when, and what follows of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from interlock_agent.config import Config, Unit
from interlock_agent.core.probes import FAILING, PASSING, PENDING, UNAVAILABLE, Probe, of_check
from interlock_agent.core.readings import Word
from interlock_agent.host import messages
from interlock_agent.ports import Ports, Stored
from interlock_agent.steps.base import Shared
from interlock_agent.steps.probing import Watched, Watcher
from interlock_shared.errors import Refused, Unreachable
from interlock_shared.health import Check
from tests.agent.material import the_manifest
from tests.fakes.fetcher import FakeHardware, FakeProbes

NO_GOLDEN = the_manifest()
GOLDEN = the_manifest(golden=True)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time


@dataclass
class Host:
    """Says what the test wants; `status` is None while it is away."""

    status: dict[str, Any] | None = None
    outputs: Any = None  # of an evaluation: what it answers, or raises
    looked: Any = None
    orders: list[Any] = field(default_factory=list)

    async def request(self, order: Any) -> dict[str, Any]:
        self.orders.append(order)
        if self.status is None:
            raise Unreachable("away")
        if isinstance(order, messages.Status):
            return {"units": [self.status]}
        answer = self.outputs if isinstance(order, messages.Evaluate) else self.looked
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return {"outputs": answer} if isinstance(order, messages.Evaluate) else dict(answer)


def status(**more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"unit": "detector", "live": "detector/1.1.0", "live_worker": "w1", "trial": 0}
    usual |= {"generation": 7, "crashes": 0, "counters": {"requests": 0, "errors": 0, "non_finite": 0}, "gap": {}}
    return usual | {"workers": [{"worker": "w1", "pid": 11, "said": ["a line"]}]} | more


class Memory(FakeHardware):
    """A worker that grows by 3 kB each time it is looked at; a GPU that faults when it is told to."""

    size, faults = 0, 0

    def process(self, pid: int) -> dict[str, int]:
        assert pid == 11
        self.size += 3000
        return {"resident_bytes": self.size}

    def gpu_faults(self) -> int | None:
        return self.faults


@dataclass
class Bench:
    """A watcher and its world."""

    host: Host = field(default_factory=lambda: Host(status()))
    clock: Clock = field(default_factory=Clock)
    hardware: Memory = field(default_factory=Memory)
    probes: FakeProbes = field(default_factory=FakeProbes)
    made: list[Watcher] = field(default_factory=list)

    def watch(self, *probes: Probe, manifest: Any = NO_GOLDEN, generation: int = 0) -> Watcher:
        nothing = cast(Any, None)
        ports = Ports(
            cast(Any, self.clock),
            nothing,
            cast(Any, self.host),
            nothing,
            nothing,
            self.hardware,
            nothing,
            nothing,
            self.probes,
        )
        shared = Shared(ports, Config(), "press-7", Stored())
        watcher = Watcher(shared, Unit(), Watched("detector", "1.1.0", manifest, "fp32", generation), probes)
        self.made.append(watcher)
        return watcher

    async def look(self, watcher: Watcher, seconds: float = 1.0, **counters: int) -> dict[str, str]:
        """A look so much later, when the counters are those; the outcomes once everything asked has answered."""
        self.clock.time += seconds
        if counters and self.host.status is not None:
            self.host.status["counters"] = {**self.host.status["counters"], **counters}
        await watcher.look()
        for _ in range(10):
            await asyncio.sleep(0)
        return {name: one.outcome for name, one in watcher.board.standings.items()}


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    for watcher in made.made:
        await watcher.close()


def check(kind: str, **more: Any) -> Probe:
    return of_check(Check(check=cast(Any, kind), **more))


async def test_after_a_confirmation_counters_are_counted_from_look_to_look(bench: Bench) -> None:
    assert bench.host.status is not None
    bench.host.status["counters"] = {"requests": 10_000, "errors": 9_000, "non_finite": 5}  # in a former life
    watcher = bench.watch(check("error_rate"), check("non_finite"))
    assert await bench.look(watcher) == {"error_rate": UNAVAILABLE, "non_finite": PASSING}
    assert (await bench.look(watcher, requests=10_015, errors=9_000))[
        "error_rate"
    ] == UNAVAILABLE  # too few: they add up
    assert (await bench.look(watcher, requests=10_030, errors=9_001))["error_rate"] == FAILING  # 1 of 30
    assert (await bench.look(watcher, requests=10_100, errors=9_001))["error_rate"] == PASSING
    assert (await bench.look(watcher, non_finite=6))["non_finite"] == FAILING
    assert (await bench.look(watcher, requests=10_200))["non_finite"] == PASSING  # none since


async def test_in_a_trial_counters_are_those_of_the_whole_trial(bench: Bench) -> None:
    bench.host.status = status(trial=3, counters={"requests": 100, "errors": 2, "non_finite": 0})
    watcher = bench.watch(check("error_rate"), generation=3)
    assert (await bench.look(watcher))["error_rate"] == FAILING
    assert (await bench.look(watcher, requests=200))["error_rate"] == PASSING


async def test_another_worker_counts_from_nothing(bench: Bench) -> None:
    watcher = bench.watch(check("error_rate"), check("worker_alive", failure_threshold=1))
    await bench.look(watcher, requests=1000, errors=0)
    bench.host.status = status(live_worker="w2", crashes=1, counters={"requests": 40, "errors": 4, "non_finite": 0})
    assert await bench.look(watcher) == {"error_rate": FAILING, "worker_alive": FAILING}
    assert (await bench.look(watcher))["worker_alive"] == PASSING  # it crashed once, not since


async def test_a_worker_that_crashes_again_and_again_is_not_well_in_between(bench: Bench) -> None:
    """Loaded again at once each time, it answers at every other look."""
    bench.host.status = status(crashes=5)  # in a former life of the agent
    watcher = bench.watch(check("worker_alive", failure_threshold=3))
    found = [(await bench.look(watcher, 10.0))["worker_alive"]]
    for crashes in (6, 6, 7, 7, 8, 8, 8):
        bench.host.status = status(crashes=crashes, live_worker=f"w{crashes}")
        found.append((await bench.look(watcher, 10.0))["worker_alive"])
    assert found == [PASSING] * 7 + [FAILING]
    assert watcher.board.message("worker_alive") == "its worker ended by itself 3 times in 10 minutes"
    assert (await bench.look(watcher, 600.0))["worker_alive"] == PASSING
    bench.host.status = status(crashes=1, live_worker="w9")  # one that had served for long
    assert (await bench.look(watcher, 10.0))["worker_alive"] == PASSING


@pytest.mark.parametrize(
    "other",
    [
        None,  # the host is away
        status(unit="other"),
        status(trial=8),  # another one is on trial
        status(live="detector/1.2.0"),
        status(live="", gap={"last_s": 0.0, "left_s": 5.0, "generation": 8}),  # room is made, on purpose
    ],
)
async def test_what_does_not_serve_is_not_judged(bench: Bench, other: dict[str, Any] | None) -> None:
    watcher = bench.watch(check("worker_alive"), check("golden"), manifest=GOLDEN)
    bench.host.status = other
    assert set((await bench.look(watcher)).values()) == {PENDING}
    assert [type(order) for order in bench.host.orders] == [messages.Status]


async def test_golden_items_are_held_against_what_is_expected(bench: Bench) -> None:
    watcher = bench.watch(check("golden", period_s=1.0, items=4), manifest=GOLDEN)
    good = {"name": "y", "compared": True, "outside": 0, "non_finite": 0, "max_abs": 0.0, "max_rel": 0.0}
    bench.host.outputs = [good]
    assert (await bench.look(watcher))["golden"] == PASSING
    asked = next(order for order in bench.host.orders if isinstance(order, messages.Evaluate))
    assert (asked.worker, asked.generation, asked.items) == ("w1", 7, 4)
    bench.host.outputs = [{**good, "outside": 2}]
    assert (await bench.look(watcher))["golden"] == FAILING
    assert "golden_mismatch" in watcher.board.message("golden")
    for code, outcome in (("worker_hung", FAILING), ("no_golden", FAILING), ("stale_generation", FAILING)):
        bench.host.outputs = Refused("no", code=code)
        assert (await bench.look(watcher))["golden"] == outcome, "silence heals nothing"
    bench.host.outputs = [good]
    assert (await bench.look(watcher))["golden"] == PASSING


async def test_what_does_not_answer_in_time_has_failed_and_is_not_asked_twice_meanwhile(bench: Bench) -> None:
    slow = check("golden", period_s=0.1, timeout_s=0.1)
    watcher = bench.watch(slow, manifest=GOLDEN)
    for _ in range(3):
        await bench.look(watcher)
    assert sum(isinstance(order, messages.Evaluate) for order in bench.host.orders) == 1
    async with asyncio.timeout(30):
        while watcher.board.standings["golden"].outcome == PENDING:  # noqa: ASYNC110  # the probe's own timeout
            await asyncio.sleep(0.01)
    assert watcher.board.message("golden") == "no answer within 0.1 s"


async def test_nonsense_is_asked_of_the_worker(bench: Bench) -> None:
    watcher = bench.watch(
        check("constant_output", period_s=1.0), check("out_of_range", output="y", low=0.0, period_s=1.0)
    )
    bench.host.looked = {"looked": 50, "constant": 50, "outside": {"y": 50}}  # before the watch began
    assert await bench.look(watcher) == {"constant_output": UNAVAILABLE, "out_of_range_y": UNAVAILABLE}
    bench.host.looked = {"looked": 100, "constant": 50, "outside": {"y": 51}}
    assert await bench.look(watcher) == {"constant_output": PASSING, "out_of_range_y": FAILING}
    bench.host.looked = Refused("no order 'look'", code="bad_request")  # an older host
    assert await bench.look(watcher) == {"constant_output": UNAVAILABLE, "out_of_range_y": FAILING}


OWNERS = Probe("http_b", "http", 1.0, 1.0, settings={"target": "http://b/"})
WORD = Probe("application", "application", 0.1, 1.0, settings={"must_speak": False})
ON_ITS_WAY = {"live": "", "live_worker": "", "workers": []}


@pytest.mark.parametrize(
    "nobody",
    [
        None,  # the host is away: stopped, or started again
        status(**ON_ITS_WAY),  # it has just been started, and loads what is confirmed
        status(**ON_ITS_WAY, gap={"last_s": 0.0, "left_s": 5.0, "generation": 8}),  # an announced gap
    ],
)
async def test_a_confirmed_release_is_not_to_blame_while_nobody_serves(
    bench: Bench, nobody: dict[str, Any] | None
) -> None:
    watcher = bench.watch(check("worker_alive", failure_threshold=1), OWNERS, WORD)
    await bench.look(watcher)
    bench.probes.wrong["http://b/"] = "HTTP 503"  # an application that has no model
    before, bench.host.status = bench.host.status, nobody
    if nobody is not None:
        watcher._shared.words["detector"] = Word(healthy=False, message="no answers")
    for _ in range(4):
        assert FAILING not in (await bench.look(watcher)).values()
    bench.host.status, bench.probes.wrong = before, {}
    assert FAILING not in (await bench.look(watcher)).values(), "what was said meanwhile was said of no release"
    bench.probes.wrong["http://b/"] = "HTTP 503"
    assert (await bench.look(watcher))["http_b"] == FAILING, "it serves, and is judged"


@pytest.mark.parametrize("more", [{"crashes": 1}, {"trouble": "load_failed: no kernel"}])
async def test_one_that_crashed_or_does_not_load_is_to_blame(bench: Bench, more: dict[str, Any]) -> None:
    watcher = bench.watch(check("worker_alive", failure_threshold=1), WORD)
    await bench.look(watcher)
    bench.host.status = status(**ON_ITS_WAY, **more)
    watcher._shared.words["detector"] = Word(healthy=False, message="no answers")
    assert await bench.look(watcher) == {"worker_alive": FAILING, "application": FAILING}


async def test_an_agent_that_was_stopped_does_not_take_its_own_silence_for_the_models(bench: Bench) -> None:
    bench.host.status = status(trial=7)
    slow = check("golden", period_s=0.1, timeout_s=0.1)
    watcher = bench.watch(slow, manifest=GOLDEN, generation=7)
    await bench.look(watcher)
    bench.clock.time += 3600.0  # suspended, with the question on its way
    await asyncio.wait(list(watcher._asking.values()), timeout=30)
    assert watcher.board.standings["golden"].outcome == PENDING
    await bench.look(watcher)
    assert "golden" in watcher._asking, "it is asked again"


async def test_a_worker_too_busy_to_tell_of_its_answers_has_not_answered_nonsense(bench: Bench) -> None:
    bench.host.status = status(trial=7)
    watcher = bench.watch(check("constant_output", timeout_s=0.1), generation=7)
    await bench.look(watcher)
    await asyncio.wait(list(watcher._asking.values()), timeout=30)
    assert watcher.board.standings["constant_output"].outcome == UNAVAILABLE


async def test_a_probe_that_cannot_be_asked_says_so(bench: Bench) -> None:
    async def full(url: str) -> str:
        raise OSError(24, "Too many open files")

    bench.probes.http = full  # type: ignore[method-assign]
    watcher = bench.watch(OWNERS)
    assert (await bench.look(watcher))["http_b"] == UNAVAILABLE
    assert "Too many open files" in watcher.board.message("http_b")


async def test_a_probe_that_does_not_end_holds_nobody_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interlock_agent.steps.probing.CLOSE_S", 0.1)
    over = asyncio.Event()

    async def stuck(url: str) -> str:
        while not over.is_set():  # a process in the kernel's hands
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()
        return ""

    bench.probes.http = stuck  # type: ignore[method-assign]
    watcher = bench.watch(OWNERS)
    await bench.look(watcher)
    async with asyncio.timeout(30):
        await watcher.close()
    over.set()


async def test_owners_probes_speak_of_what_serves(bench: Bench) -> None:
    """A host that was killed in a trial interrupts it: an application without a model must not condemn the release."""
    bench.host.status = None
    probes = [
        Probe("exec_a", "exec", 1.0, 1.0, settings={"target": ["/bin/a", "-x"]}),
        Probe("http_b", "http", 1.0, 1.0, settings={"target": "http://b/"}),
        Probe("systemd_c", "systemd", 1.0, 1.0, settings={"target": "c.service"}),
    ]
    watcher = bench.watch(*probes, check("ready"), generation=7)
    bench.probes.wrong["http://b/"] = "HTTP 503"
    assert set((await bench.look(watcher)).values()) == {PENDING}
    bench.host.status = status(trial=7)
    found = await bench.look(watcher)
    assert found == {"exec_a": PASSING, "http_b": FAILING, "systemd_c": PASSING, "ready": PASSING}
    assert watcher.board.failing() == "http_b"
    assert bench.probes.asked == ["/bin/a", "http://b/", "c.service", "detector"]


async def test_memory_and_gpu_faults_are_looked_at_from_the_beginning_of_the_watch(bench: Bench) -> None:
    bench.hardware.faults = 5
    grows = check("memory_growth", max=1000.0, period_s=1.0, failure_threshold=1)
    watcher = bench.watch(grows, check("gpu_faults", period_s=1.0))
    for number in range(7):
        found = await bench.look(watcher, requests=500 * number)
    assert found == {"memory_growth": FAILING, "gpu_faults": PASSING}
    bench.hardware.faults = 6
    found = await bench.look(watcher)
    assert found["gpu_faults"] == FAILING
    seen = watcher.seen()
    assert seen["last_words"] == ["a line"]
    rows = {row["check"]: row for row in seen["checks"]}
    assert rows["memory_growth"]["figure"] == pytest.approx(6000.0)
    assert rows["gpu_faults"]["failures"] == 1
    assert {row["outcome"] for row in seen["checks"]} == {FAILING}
    assert (await bench.look(watcher, 3599.0))["gpu_faults"] == FAILING
    assert (await bench.look(watcher))["gpu_faults"] == PASSING, "an alarm over one fault ends an hour later"
    bench.hardware.faults = 7
    assert (await bench.look(watcher))["gpu_faults"] == FAILING
