"""Two releases with no room for both, for real: server, agent and host; told, judged alone, switched, taken back."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.e2e.test_serving import device
from tests.e2e.world import MODEL, Watcher
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e


def event(watcher: Watcher, kind: str, version: str) -> dict[str, Any]:
    """Of that release, as the server has it."""

    def look() -> list[dict[str, Any]]:
        return [e for e in watcher.world.events(watcher.device) if (e["kind"], e["version"]) == (kind, version)]

    return dict(until(look, f"{kind} {version}")[-1])


def test_one_makes_room_for_the_other_and_comes_back() -> None:
    with device({"policy": "memory", "gap_max_s": 60.0}) as one:
        first = one.world.release()
        one.settles(first, one.wish(first))
        with one.traffic() as traffic:
            traffic.answered()
            second = one.world.release()
            one.settles(second, one.wish(second))
            told, done = event(one, "gap", second)["data"], event(one, "switched", second)["data"]
            assert (told["why"], told["at_most_s"]) == ("policy", 60.0)
            assert 0 < done["gap_s"] < 60.0
            traffic.answered()
            status = one.device.ask("status")["units"][MODEL]["host"]
            assert [worker["role"] for worker in status["workers"]] == ["live"]
            third = one.world.release(trial_s=600.0)
            rollout = one.wish(third)
            one.reaches("trial")
            (worker,) = one.device.ask("status")["units"][MODEL]["host"]["workers"]
            os.kill(worker["pid"], signal.SIGKILL)  # nothing stands by: the confirmed release is loaded
            one.settles(third, rollout, "reverted", runs=second)
            traffic.answered()
        print(
            f"expected {told['expected_s']} s, it was {done['gap_s']} s; {sum(traffic.load.answers.values())} requests"
        )
        assert traffic.failures() == []
