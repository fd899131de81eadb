"""Several models on a device, several devices in a fleet; wishes that change before the switch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import stopped
from tests.e2e.stopped import OTHER, Case
from tests.e2e.world import MODEL, RefusedError, Watcher, rows, watched, world
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with stopped.device() as found:
        yield found


@pytest.fixture
def case(one: Watcher) -> Iterator[Case]:
    with stopped.case(one) as found:
        yield found


def test_two_models_on_a_device_are_judged_one_after_the_other(case: Case) -> None:
    one, made = case.one, case.one.world
    with one.between.stop("evaluate") as stop:
        case.start()
        other = made.release(model=OTHER)
        rollout = made.roll_out(other, {"device": one.device.name}, OTHER)
        stop.wait()
        phases = until(
            lambda: (p := (one.phase(), one.phase(OTHER))) in {("gating", "staged"), ("staged", "gating")} and p,
            "gates",
        )
        stop.go.set()
    case.settles()
    assert one.rests(other, OTHER)["phase"] == "confirmed"
    made.server_says(rollout, "confirmed")
    first, second = (MODEL, OTHER) if phases[0] == "gating" else (OTHER, MODEL)
    ends = rows(one.device, "SELECT max(id) FROM history WHERE unit = ? AND after = 'passed'", first)[0][0]
    begins = rows(one.device, "SELECT max(id) FROM history WHERE unit = ? AND after = 'gating'", second)[0][0]
    assert ends < begins


BEFORE_THE_SWITCH: tuple[Callable[[Case], contextlib.AbstractContextManager[None]], ...] = (
    stopped.fetching,
    stopped.staged,
    stopped.gating,
    stopped.passed,
    stopped.waiting,
)


@pytest.mark.parametrize("phase", BEFORE_THE_SWITCH, ids=lambda phase: str(phase.__name__))
def test_an_abort_before_the_switch_leaves_what_serves(
    case: Case, phase: Callable[[Case], contextlib.AbstractContextManager[None]]
) -> None:
    one, made = case.one, case.one.world
    with phase(case):
        heard = one.device.ask("status")["desired"]
        made.ask("POST", f"/v1/rollouts/{case.rollout}/abort")
        until(lambda: one.device.ask("status")["desired"] != heard, "the newer wish")
        case.release()
    unit = until(
        lambda: (u := one.device.ask("status")["units"][MODEL])["phase"] in {"cancelled", "confirmed"} and u, "rest"
    )
    assert (unit["running"], unit["confirmed"]) == (case.incumbent, case.incumbent)
    assert stopped.confirmed(one) == case.incumbent
    assert made.server_says(case.rollout, "cancelled", "superseded")["state"] in {"cancelled", "superseded"}
    until(lambda: not list((one.device.state / "incoming" / MODEL).glob("*")), "nothing is left beside the slots")
    with pytest.raises(RefusedError):
        made.ask("POST", f"/v1/rollouts/{case.rollout}/abort")


@pytest.mark.parametrize("phase", BEFORE_THE_SWITCH, ids=lambda phase: str(phase.__name__))
def test_a_newer_wish_before_the_switch_takes_the_place(
    case: Case, phase: Callable[[Case], contextlib.AbstractContextManager[None]]
) -> None:
    with phase(case):
        old, rollout = case.version, case.rollout
        heard = case.one.device.ask("status")["desired"]
        case.start()
        until(lambda: case.one.device.ask("status")["desired"] != heard, "the newer wish")
        case.release()
    case.settles()
    case.one.world.server_says(rollout, "superseded")
    seen = {version for _, _, version in case.traffic.load.log}
    assert old not in seen


def test_a_rollout_to_a_label_reaches_who_has_it_and_nobody_else() -> None:
    with world() as made, contextlib.ExitStack() as stack:
        devices = []
        for name, site in (("press-1", "berlin"), ("press-2", "berlin"), ("press-3", "paris")):
            found = watched(made, name, {"listen": "127.0.0.1:0"}, {"site": site})
            stack.enter_context(found.web)
            stack.enter_context(found.broker)
            stack.callback(found.between.close)
            found.device.start()
            devices.append(found)
        version = made.release()
        rollout = made.roll_out(version, {"labels": {"site": "berlin"}})
        for found in devices[:2]:
            made.server_says(rollout, "confirmed", device=found.device.name)
        shown = made.ask("GET", f"/v1/rollouts/{rollout}")
        assert [one["device"] for one in shown["assignments"]] == ["press-1", "press-2"]
        assert shown["counts"]["confirmed"] == 2
        assert devices[2].device.ask("status")["units"] == {}
        with pytest.raises(RefusedError) as refused:
            made.roll_out(version, {"labels": {"site": "rome"}})
        assert refused.value.document["code"] == "no_device"
