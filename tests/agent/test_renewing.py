"""When a certificate is renewed, and what is said while it is not."""

from __future__ import annotations

import pytest

from interlock_agent.renewing import AGAIN_S, Renewing
from interlock_shared.errors import Forbidden, InterlockError, Unreachable

DAY = 86_400.0
START = 1_700_000_000.0


class Clock:
    """Time that a test turns."""

    def __init__(self) -> None:
        self.at, self.up = START, 0.0

    def now(self) -> float:
        return self.at

    def floor(self) -> float:
        return 0.0

    def raise_floor(self, seconds: float) -> None:
        raise AssertionError(seconds)

    def forget_floor(self) -> None:
        raise AssertionError

    def behind(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return self.up

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)

    def dice(self) -> float:
        return 0.5

    def forward(self, seconds: float) -> None:
        """Both clocks go on."""
        self.at += seconds
        self.up += seconds


class Certificate:
    """90 days from its renewal on, as the server sees it."""

    def __init__(self) -> None:
        self.start, self.reloads = START, 0

    def lifetime(self) -> tuple[float, float, float] | None:
        return self.start, self.start + 60 * DAY, self.start + 90 * DAY

    def reload(self) -> None:
        self.reloads += 1


class Bench:
    """`error`: what the server says."""

    def __init__(self) -> None:
        self.clock, self.certificate, self.renewals = Clock(), Certificate(), 0
        self.error: InterlockError | None = None
        self.renewing = Renewing(self.certificate, self.renew, self.clock)

    async def renew(self) -> None:
        if self.error is not None:
            raise self.error
        self.renewals += 1
        self.certificate.start = self.clock.now()


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_two_thirds_of_its_life_pass_first(bench: Bench) -> None:
    bench.clock.forward(60 * DAY - 1)
    assert not bench.renewing.due()
    bench.clock.forward(1)
    assert bench.renewing.due()
    assert await bench.renewing.once()
    assert (bench.renewals, bench.certificate.reloads) == (1, 1)
    assert not bench.renewing.due()
    assert bench.renewing.note() == ""


async def test_a_clock_that_is_years_ahead_renews_once_a_day_and_not_without_end(bench: Bench) -> None:
    bench.clock.at += 3650 * DAY
    assert bench.renewing.due()
    assert await bench.renewing.once()
    bench.certificate.start = START  # the server's clock is right: the new one looks old at once
    assert not bench.renewing.due()
    bench.clock.forward(AGAIN_S)
    assert bench.renewing.due()


async def test_what_is_in_the_way_is_told(bench: Bench) -> None:
    bench.clock.forward(61 * DAY)
    bench.error = Unreachable("no network")
    assert not await bench.renewing.once()
    assert bench.renewing.due()
    assert "expires at 2024-02-12" in bench.renewing.note()
    bench.clock.forward(30 * DAY)
    bench.error = Forbidden("the certificate of edge-1 expired", code="certificate_expired")
    assert not await bench.renewing.once()
    assert "expired at 2024-02-12" in bench.renewing.note()
    assert "enrol --again" in bench.renewing.note()
    described = bench.renewing.describe()
    assert described is not None
    assert described["trouble"] == "the certificate of edge-1 expired"
    bench.error = None
    assert await bench.renewing.once()
    assert bench.renewing.note() == ""


async def test_what_lies_there_and_cannot_be_read_is_told_and_ends_nothing(bench: Bench) -> None:
    def unreadable() -> None:
        raise ValueError("not a key")

    bench.clock.forward(61 * DAY)
    bench.certificate.reload = unreadable  # type: ignore[method-assign]
    assert not await bench.renewing.once()
    assert bench.renewing.trouble == "not a key"
