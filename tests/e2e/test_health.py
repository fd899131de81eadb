"""A device whose owner and whose application have a say: a trial waits for them, and a confirmed release that turns bad
goes back, once; then it alarms. Real processes, one device for the whole of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_serving import device
from tests.e2e.world import MODEL, Watcher, rows
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e

CHECKS = """
[[health.checks]]
check = "ready"
period_s = 0.2

[[health.checks]]
check = "golden"
period_s = 0.5
items = 4

[[health.checks]]
check = "out_of_range"
output = "y"
low = -1e6
high = 1e6
required = false

[[health.checks]]
check = "gpu_faults"
period_s = 0.2
"""

OWNERS = """
[units.{model}.health]
application = "required"
late_period_s = 0.3
late_failures = 2

[[units.{model}.health.probes]]
name = "flag"
exec = ["/usr/bin/test", "!", "-e", "{flag}"]
period_s = 0.2
failure_threshold = 2
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watcher, Path]]:
    flag = tmp_path_factory.mktemp("owner") / "broken"
    with device({}, OWNERS.format(model=MODEL, flag=flag)) as found:
        yield found, flag


def unit(watcher: Watcher) -> dict[str, Any]:
    return dict(watcher.device.ask("status")["units"][MODEL])


def checks(watcher: Watcher) -> dict[str, str]:
    return {row["check"]: row["outcome"] for row in unit(watcher)["checks"]}


def release(watcher: Watcher) -> tuple[str, str]:
    """Publish one with all those checks, and roll it out: its version and the rollout."""
    version = watcher.world.release(more=CHECKS)
    return version, watcher.wish(version)


def say(watcher: Watcher, word: str, message: str = "") -> None:
    watcher.device.cli("health", MODEL, word, "--message", message)


def event(watcher: Watcher, kind: str, version: str) -> dict[str, Any]:
    """The newest of that kind, as the server has it."""

    def look() -> dict[str, Any] | None:
        found = [e for e in watcher.world.events(watcher.device) if (e["kind"], e["version"]) == (kind, version)]
        return found[-1] if found else None

    return dict(until(look, f"{kind} {version}"))


def test_owner_and_application_have_their_say(one: tuple[Watcher, Path]) -> None:
    watcher, flag = one
    first, rollout = release(watcher)
    watcher.reaches("trial")
    awaited = {"application": "pending", "exec_flag": "passing", "golden": "passing", "ready": "passing"}
    until(lambda: awaited.items() <= checks(watcher).items(), "everything but the application's word")
    assert checks(watcher)["gpu_faults"] in ("unavailable", "passing")  # told, where there is no GPU
    table = watcher.device.cli("status").stdout
    assert "application" in table
    assert "pending" in table
    say(watcher, "ok")
    watcher.settles(first, rollout)

    # A failing probe takes the trial back, and what was seen is told.
    flag.touch()
    second, rollout = release(watcher)
    watcher.settles(second, rollout, "reverted", runs=first)
    told = event(watcher, "reverted", second)
    assert told["reason"] == "exec_flag"
    seen = {row["check"]: row for row in told["data"]["checks"]}
    assert (seen["exec_flag"]["outcome"], seen["exec_flag"]["message"]) == ("failing", "exit 1: it said nothing")
    assert seen["golden"]["outcome"] in ("passing", "pending")
    flag.unlink()


def test_a_confirmed_release_that_turns_bad_goes_back_and_the_next_one_alarms(one: tuple[Watcher, Path]) -> None:
    watcher, _ = one
    before = unit(watcher)["confirmed"]
    version, rollout = release(watcher)
    watcher.reaches("trial")
    say(watcher, "ok")
    watcher.settles(version, rollout)
    say(watcher, "bad", "no detections for 60 s")
    until(lambda: unit(watcher)["confirmed"] == before, "the release before")
    told = event(watcher, "unhealthy", version)
    assert (told["reason"], told["data"]["message"]) == ("application", "no detections for 60 s")
    assert told["data"]["action"] == "revert"
    watcher.world.server_says(rollout, "reverted")  # reopened, by what runs or by what it says: it says more
    until(lambda: watcher.world.assignment(rollout)["reason"] == "application", "why it was taken back")
    assert event(watcher, "reverted", version)["data"]["serves"] == before
    journaled = rows(watcher.device, "SELECT detail FROM history WHERE event = 'turned-bad'")
    assert json.loads(journaled[0][0])["checks"], "what was seen is in the journal with the transition"

    # The one that is back turns bad, too: what was left is in quarantine. It stays, and alarms, also after a restart.
    say(watcher, "bad", "still none")
    until(lambda: unit(watcher)["alarm"] == "application", "the alarm")
    assert unit(watcher)["alarmed"]["why"] == "fallback_quarantined"
    assert unit(watcher)["confirmed"] == before
    until(lambda: _reported(watcher)["alarm"] == "application", "the server to show it")
    watcher.device.agent.kill()
    watcher.device.start_agent()
    assert "still none" in watcher.device.cli("status").stdout
    say(watcher, "ok")
    until(lambda: unit(watcher)["alarm"] is None, "the end of the alarm")
    event(watcher, "recovered", before)


def _reported(watcher: Watcher) -> dict[str, Any]:
    return dict(watcher.world.ask("GET", f"/v1/devices/{watcher.device.name}")["units"][MODEL])
