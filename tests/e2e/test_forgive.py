"""What the gate cannot tell waits for a person, who decides with one command."""

from __future__ import annotations

import pytest

from tests.e2e.test_serving import device
from tests.e2e.world import MODEL, Watcher
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e


def waits_for_a_person(one: Watcher) -> bool:
    unit = one.device.ask("status")["units"].get(MODEL, {})
    return (unit.get("phase"), unit.get("reason")) == ("waiting", "operator")


def test_a_release_that_waits_for_a_person_is_tried_again_when_it_is_forgiven() -> None:
    gate = f"\n[units.{MODEL}.gate]\nbudget_s = 0.000001\ninconclusive_max = 1\n"
    with device({}, gate) as one:
        one.world.first(one.device)
        one.wish(one.world.release())
        until(lambda: waits_for_a_person(one), "a person to be asked")
        payload = one.device.ask("verdict", unit=MODEL)["verdict"]["payload_sha256"]
        done = one.device.cli("forgive", payload)
        assert done.stdout == f"0 entries removed\n{MODEL}: tried again now\n"
        until(
            lambda: (
                [row["event"] for row in one.device.ask("history", unit=MODEL)["history"]].count("inconclusive") == 2
            ),
            "a second judgement",
        )
        until(lambda: waits_for_a_person(one), "a person to be asked again")
        again = one.device.cli("forgive", "0" * 64, check=False)
        assert (again.returncode, "waits for a person" in again.stderr) == (1, True)
