"""When a gate may begin, by the clock on the wall."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from interlock_agent.config import Config, UnitGate
from interlock_agent.core.gate.window import next_opening, parse
from interlock_agent.core.states import ROWS, Effect, Event, Phase
from interlock_agent.steps import gating
from tests.agent.material import UNIT
from tests.agent.test_gating import NOW, Bench

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


@pytest.mark.parametrize(
    ("windows", "now", "opens"),
    [
        ([], "2026-05-04 12:00", "2026-05-04 12:00"),
        (["01:00-05:00"], "2026-05-04 00:59:59", "2026-05-04 01:00"),
        (["01:00-05:00"], "2026-05-04 01:00", "2026-05-04 01:00"),
        (["01:00-05:00"], "2026-05-04 04:59:59", "2026-05-04 04:59:59"),
        (["01:00-05:00"], "2026-05-04 05:00", "2026-05-05 01:00"),
        (["22:00-04:00"], "2026-05-04 21:00", "2026-05-04 22:00"),
        (["22:00-04:00"], "2026-05-04 23:30", "2026-05-04 23:30"),
        (["22:00-04:00"], "2026-05-05 03:59", "2026-05-05 03:59"),
        (["22:00-04:00"], "2026-05-05 04:00", "2026-05-05 22:00"),
        (["01:00-02:00", "12:30-13:00"], "2026-05-04 02:00", "2026-05-04 12:30"),
        (["01:00-02:00", "12:30-13:00"], "2026-05-04 13:00", "2026-05-05 01:00"),
        (["20:00-24:00"], "2026-05-04 23:59", "2026-05-04 23:59"),
        (["20:00-24:00"], "2026-05-05 00:00", "2026-05-05 20:00"),
    ],
)
def test_the_next_opening(windows: list[str], now: str, opens: str) -> None:
    assert next_opening(windows, at(now), BERLIN) == at(opens)


def test_a_clock_that_is_set_forward_shortens_the_window_or_leaps_over_it() -> None:
    assert next_opening(["01:00-05:00"], at("2026-03-28 12:00"), BERLIN) == at("2026-03-29 01:00")
    assert next_opening(["01:00-05:00"], at("2026-03-29 04:59"), BERLIN) == at("2026-03-29 04:59")
    assert next_opening(["02:00-03:00"], at("2026-03-28 12:00"), BERLIN) == at("2026-03-30 02:00")


def test_a_clock_that_is_set_back_shows_the_window_twice() -> None:
    assert next_opening(["02:00-02:30"], at("2026-10-24 12:00"), BERLIN) == at("2026-10-25 02:00")
    assert next_opening(["02:00-02:30"], at("2026-10-25 02:40"), BERLIN) == at("2026-10-25 02:00", fold=1)
    assert next_opening(["02:00-02:30"], at("2026-10-25 02:40", fold=1), BERLIN) == at("2026-10-26 02:00")


def test_the_devices_own_clock_is_the_one_on_its_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for day in ("2026-03-28 12:00", "2026-05-04 12:00", "2026-10-24 12:00", "2026-10-25 02:40"):
            for windows in (["01:00-05:00"], ["02:00-02:30"], ["22:00-04:00"]):
                assert next_opening(windows, at(day)) == next_opening(windows, at(day), BERLIN)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "1:00-5:00", "01:00", "25:00-26:00", "01:60-02:00", "01:00-01:00", "01:00-24:30"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"window|ends where"):
        parse(text)
    with pytest.raises(ValidationError):
        UnitGate(window=text)


def test_one_or_several() -> None:
    assert UnitGate.model_validate({"window": "01:00-05:00"}).window == ("01:00-05:00",)
    assert UnitGate.model_validate({"window": ["01:00-05:00", "22:00-23:00"]}).window == ("01:00-05:00", "22:00-23:00")


def in_hours(hours: int) -> str:
    begin = datetime.fromtimestamp(NOW, UTC).astimezone() + timedelta(hours=hours)
    return f"{begin:%H:%M}-{begin + timedelta(hours=1):%H:%M}"


def bench(window: str) -> Bench:
    return Bench(config=Config.model_validate({"units": {UNIT: {"gate": {"window": window}}}}))


async def test_outside_the_window_the_attempt_waits_and_the_gate_is_free() -> None:
    closed = bench(in_hours(2))
    happened = await gating.await_gate(closed.step())
    assert (happened.event, happened.reason) == (Event.LATER, "window")
    assert NOW < happened.changes["until"] <= NOW + 2 * 3600
    assert (closed.shared.gate_owner, closed.shared.gate_lock.locked()) == ("", False)
    assert closed.host.orders == []
    row = ROWS[Phase.STAGED, Event.LATER]
    assert (row.next, row.effects, row.spends) == (Phase.WAITING, (Effect.WAKE,), "")


async def test_inside_the_window_it_is_its_turn() -> None:
    assert (await gating.await_gate(bench(in_hours(0)).step())).event is Event.GATE_FREE


async def test_a_window_that_closes_while_another_model_is_judged_is_closed() -> None:
    waits = bench(in_hours(0))
    clock = waits.shared.ports.clock

    class Slow:
        """A turn at the gate that comes two hours later."""

        async def acquire(self) -> None:
            clock.now = lambda: NOW + 7200  # type: ignore[method-assign]

        def release(self) -> None:
            clock.released = True  # type: ignore[attr-defined]

    waits.shared.gate_lock = Slow()  # type: ignore[assignment]
    happened = await gating.await_gate(waits.step())
    assert (happened.event, happened.reason) == (Event.LATER, "window")
    assert (waits.shared.gate_owner, clock.released) == ("", True)  # type: ignore[attr-defined]
