"""In every phase in which something is done, something fails there, under live traffic: no request fails, the unit ends
as the table says, and what is confirmed serves."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e import stopped
from tests.e2e.stopped import MAGIC, Case, infer
from tests.e2e.world import MODEL, Watcher, rows
from tests.rig.fleet import BIN

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with stopped.device() as found:
        yield found


@pytest.fixture
def case(one: Watcher) -> Iterator[Case]:
    with stopped.case(one) as found:
        yield found


def passed_through(one: Watcher, *phases: str) -> None:
    """The newest attempt was in these phases, in this order."""
    generation = rows(one.device, "SELECT max(generation) FROM history WHERE unit = ?", MODEL)[0][0]
    seen = rows(
        one.device, "SELECT after FROM history WHERE unit = ? AND generation >= ? - 2 ORDER BY id", MODEL, generation
    )
    left = iter(name for (name,) in seen)
    assert all(phase in left for phase in phases), (phases, seen)


def test_a_connection_that_breaks_inside_a_segment_goes_on_there(case: Case) -> None:
    with stopped.fetching(case):
        case.one.web.cut()
        case.release()
    case.settles()


def test_a_server_that_is_away_is_asked_again(case: Case) -> None:
    with stopped.waiting(case):
        case.release()
    case.settles()
    passed_through(case.one, "fetching", "waiting", "fetching", "confirmed")


def test_a_staged_folder_that_is_lost_is_fetched_again(case: Case) -> None:
    with stopped.staged(case):
        shutil.rmtree(case.one.device.state / "incoming" / MODEL)
        case.release()
    case.settles()
    passed_through(case.one, "gating", "waiting", "fetching", "confirmed")


def test_a_host_that_cannot_load_now_is_asked_again(case: Case) -> None:
    case.one.between.fail("load", "io")
    case.start()
    case.settles()
    passed_through(case.one, "gating", "waiting", "gating", "confirmed")


def test_a_candidate_that_dies_in_the_gate_is_rejected(case: Case) -> None:
    with case.one.between.stop("evaluate") as stop:
        case.start()
        stop.wait()
        worker = next(
            w for w in case.one.device.ask("status")["units"][MODEL]["host"]["workers"] if w["role"] == "candidate"
        )
        os.kill(worker["pid"], signal.SIGKILL)
        stop.go.set()
    case.ends, case.serves = "rejected", case.incumbent
    case.settles()
    assert case.one.device.ask("status")["units"][MODEL]["reason"] == "worker_died"


def test_a_disk_that_fails_once_when_the_slot_is_filled(case: Case) -> None:
    (case.one.world.folder / "hook" / "slot").write_text(str(errno.EIO))
    case.start()
    case.settles()
    passed_through(case.one, "passed", "waiting", "passed", "confirmed")


def test_a_host_that_cannot_begin_the_trial(case: Case) -> None:
    case.one.between.fail("promote", "io")
    case.start()
    case.settles()


def test_a_worker_that_dies_in_the_trial(case: Case) -> None:
    with stopped.trial(case):
        host = case.one.device.ask("status")["units"][MODEL]["host"]
        os.kill(next(w["pid"] for w in host["workers"] if w["worker"] == host["live_worker"]), signal.SIGKILL)
    case.ends, case.serves = "reverted", case.incumbent
    case.settles()


def test_a_lease_that_cannot_be_renewed_once(case: Case) -> None:
    case.one.between.fail("renew", "io")
    case.start(trial_s=6.0)  # the lease is renewed every 5 s
    case.settles()
    assert any(order["op"] == "renew" for order in case.one.between.refused)


def test_a_host_that_cannot_confirm_now(case: Case) -> None:
    case.one.between.fail("confirm", "io")
    case.start()
    case.settles()


def test_a_bad_answer_in_the_trial_and_a_host_that_cannot_revert_now(case: Case) -> None:
    case.one.between.fail("revert", "io")
    case.start(trial_s=60.0, nan_on=MAGIC)
    case.one.reaches("trial")
    assert infer(case.one.address(), MAGIC).release.endswith(case.incumbent)  # the standby answers
    case.ends, case.serves = "reverted", case.incumbent
    case.settles()


def test_a_rollback_whose_worker_cannot_be_loaded_leaves_what_serves(case: Case) -> None:
    case.start()
    case.settles()
    case.one.between.fail("load", "load_failed")
    command = [str(BIN / "interlock-agent"), "rollback", MODEL, "--config", str(case.one.device.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done
    assert "load_failed" in done.stdout, done
    assert case.one.device.ask("status")["units"][MODEL]["running"] == case.version
    case.traffic.answered(10)


@pytest.mark.parametrize("harm", [stopped.agent_dies, stopped.host_dies], ids=lambda harm: str(harm.__name__))
def test_a_death_while_the_owner_goes_back(case: Case, harm: object) -> None:
    with stopped.restoring(case):
        assert callable(harm)
        harm(case)
    if case.one.reaches("confirmed", "failed") == "confirmed":
        assert stopped.confirmed(case.one) == case.version
    case.traffic.answered(10)


def test_deaths_and_a_lost_server_while_a_device_waits_for_its_place_in_the_spread(case: Case) -> None:
    made = case.one.world
    assert made.server is not None
    made.server.stop()
    made.start_server("--start-spread", "3600")
    case.start()
    case.one.reaches("accepted")
    generation = case.one.device.ask("status")["units"][MODEL]["generation"]
    stopped.agent_dies(case)
    stopped.host_dies(case)
    made.server.stop()
    made.start_server()
    unit = case.one.device.ask("status")["units"][MODEL]
    assert (unit["phase"], unit["generation"]) == ("accepted", generation)
    case.start()  # a newer wish, without a spread
    case.settles()
