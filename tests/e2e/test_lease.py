"""An agent that is away longer than its lease, and a candidate that takes the host with it, under live traffic."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import stopped
from tests.e2e.stopped import Case
from tests.e2e.world import MODEL, Watcher, rows, watched, world
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e

LEASE_S = 1.5
SCRIPT = Path(__file__).parents[1] / "host" / "misbehaving.py"


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with world() as made:
        script = made.folder / "python"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@"\n')
        script.chmod(0o755)
        unit = {"listen": "127.0.0.1:0", "worker_python": str(script), "trial.lease_s": LEASE_S}
        found = watched(made, "press-7", unit)
        with found.web, found.broker:
            found.device.start()
            made.first(found.device)
            yield found
            found.between.close()


@pytest.fixture
def case(one: Watcher) -> Iterator[Case]:
    with stopped.case(one) as found:
        yield found


def outcome(one: Watcher) -> tuple[str, str]:
    """Of the last trial, as the host recorded it."""
    found = json.loads((one.device.state / "host" / f"{MODEL}.json").read_text())["outcome"] or {}
    return str(found.get("outcome")), str(found.get("reason"))


def was_interrupted_and_not_condemned(case: Case) -> None:
    """The new release is tried again, and confirmed in the end."""
    case.settles()
    generation = rows(case.one.device, "SELECT max(generation) FROM history WHERE unit = ?", MODEL)[0][0]
    phases = [
        phase
        for (phase,) in rows(
            case.one.device,
            "SELECT after FROM history WHERE unit = ? AND generation >= ? - 1 ORDER BY id",
            MODEL,
            generation,
        )
    ]
    assert "interrupted" in phases
    assert "reverted" not in phases
    assert rows(case.one.device, "SELECT count(*) FROM quarantine")[0][0] == 0


def test_an_agent_that_is_stopped_for_two_leases_and_goes_on(case: Case) -> None:
    with stopped.trial(case):
        agent = case.one.device.agent
        agent.signal(signal.SIGSTOP)
        until(lambda: outcome(case.one) == ("interrupted", "lease_lapsed"), "the lease to lapse")
        case.traffic.answered(20)
        assert stopped.confirmed(case.one) == case.incumbent
        agent.signal(signal.SIGCONT)
    was_interrupted_and_not_condemned(case)


def test_an_agent_that_is_upgraded_in_a_trial(case: Case) -> None:
    """It ends as systemd ends it, and takes longer than its lease to come back."""
    with stopped.trial(case):
        assert case.one.device.agent.stop() == 0
        until(lambda: outcome(case.one) == ("interrupted", "lease_lapsed"), "the lease to lapse")
        case.traffic.answered(20)
        case.one.device.start_agent()
    was_interrupted_and_not_condemned(case)


def test_a_candidate_whose_load_kills_the_host_is_tried_three_times(case: Case) -> None:
    one = case.one
    with one.between.stop("load", matches=lambda order: order["role"] == "candidate") as stop:
        case.start()
        folder = Path(stop.wait()["folder"])
        folder.with_name(folder.name + ".how").write_text("load host")
        stop.go.set()
    deaths = 0
    with case.traffic.gap("the host dies again and again"):
        while one.phase() != "failed":
            until(lambda: not runs(one) or one.phase() == "failed", "the host to be killed, or the tries to end")
            if not runs(one):
                deaths += 1
                one.device.host.start()
    case.ends, case.serves = "failed", case.incumbent
    case.settles()
    assert deaths == 3
    assert stopped.confirmed(one) == case.incumbent


def runs(one: Watcher) -> bool:
    """Whether the host is alive."""
    popen = one.device.host.popen
    return popen is not None and popen.poll() is None
