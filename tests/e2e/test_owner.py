"""What a device's owner may do by hand: go back, out of a trial or after it, and forgive. No server is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e import stopped
from tests.e2e.stopped import MAGIC, Case
from tests.e2e.world import MODEL, Watcher, eventually
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


def error_of(one: Watcher, *arguments: str) -> tuple[int, str]:
    """Exit code and error code of `interlock-agent ARGUMENTS --json`."""
    done = one.device.cli(*arguments, "--json", check=False)
    return done.returncode, json.loads(done.stdout).get("error", {}).get("code", "")


def test_there_is_nothing_to_go_back_to_after_a_first_release(one: Watcher) -> None:
    before = one.device.ask("status")["units"][MODEL]
    assert error_of(one, "rollback", MODEL) == (1, "no_previous")
    assert error_of(one, "rollback", "no-such-model") == (1, "unknown_unit")
    assert one.device.ask("status")["units"][MODEL]["generation"] == before["generation"]


def test_out_of_a_trial_at_once(case: Case) -> None:
    case.start(trial_s=60.0)
    case.one.reaches("trial")
    done = case.one.device.cli("rollback", MODEL)
    assert "1" in done.stdout
    case.ends, case.serves = "reverted", case.incumbent
    case.settles()
    assert case.one.device.ask("status")["units"][MODEL]["reason"] == "rolled_back"


def test_after_a_confirmation_to_the_release_before_and_not_again_unless_forgiven(case: Case) -> None:
    one, made = case.one, case.one.world
    case.start()
    case.settles()
    one.web.close()
    one.broker.close()  # it needs no network
    done = one.device.cli("rollback", MODEL, "--json")
    assert json.loads(done.stdout)["version"] == case.incumbent
    assert stopped.confirmed(one) == case.incumbent
    one.web.open()
    one.broker.open()
    made.server_says(case.rollout, "reverted")
    again = one.wish(case.version)
    made.server_says(again, "failed")
    status = one.device.ask("status")
    assert status["units"][MODEL]["reason"] == "quarantined"
    payload = next(q["payload_sha256"] for q in status["quarantine"] if q["version"] == case.version)
    assert "removed" in one.device.cli("forgive", payload).stdout
    assert one.device.cli("forgive", payload, check=False).returncode == 1
    one.device.agent.kill()
    one.device.start_agent()  # forgiven for good
    third = one.wish(case.version)
    one.settles(case.version, third)


def test_a_release_taken_back_for_a_bad_answer_may_be_forgiven_too(case: Case) -> None:
    one = case.one
    case.start(trial_s=1.0, nan_on=MAGIC)
    one.reaches("trial")
    stopped.infer(one.address(), MAGIC)
    case.ends, case.serves = "reverted", case.incumbent
    case.settles()
    quarantine = one.device.ask("status")["quarantine"]
    payload = next(q["payload_sha256"] for q in quarantine if q["version"] == case.version)
    one.device.cli("forgive", payload)
    rollout = one.wish(case.version)  # without the bad input it is as good as any
    one.settles(case.version, rollout)


def test_going_back_in_the_middle_of_a_fetch_is_refused_or_done_never_half(case: Case) -> None:
    with stopped.fetching(case):
        code, _ = error_of(case.one, "rollback", MODEL)
        assert code in {1, 3}
    case.settles()


def test_a_unit_that_was_rolled_back_goes_on_to_newer_releases(case: Case) -> None:
    case.start()
    case.settles()
    case.one.device.cli("rollback", MODEL)
    eventually(lambda: case.one.device.ask("status")["units"][MODEL]["running"] == case.incumbent, "the one before")
    case.start()
    case.settles()
    until(lambda: case.one.device.ask("status")["units"][MODEL]["fallback"] == case.incumbent, "the fallback")
