"""A release that is taken back: withdrawn, the server moves its devices; revoked, each device acts by its owner's word.

One server, two devices: their owners say `back` and `stop`. (`keep` is in tests/agent/test_revoked.py.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from interlock_server.publisher import signing
from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import KeyFolder
from tests.e2e.world import MODEL, World, world
from tests.host import clients
from tests.rig.fleet import Device, until

pytestmark = pytest.mark.e2e

POLICIES = ("back", "stop")


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as found:
        for policy in POLICIES:
            device = found.device(policy, {"revoked": policy})
            device.start()
        yield found


def unit(device: Device) -> dict[str, Any]:
    """As the agent tells it."""
    return dict(device.ask("status")["units"].get(MODEL) or {})


def everywhere(made: World, version: str) -> str:
    """Roll out, until every device has confirmed it; the rollout."""
    rollout = made.roll_out(version)
    for device in made.devices:
        made.server_says(rollout, "confirmed", device=device.name)
    return rollout


def revoke(made: World, version: str, reason: str) -> None:
    """By the release role."""

    async def work() -> None:
        async with Api(made.url, made.token, made.ca) as api:
            folder = KeyFolder(made.keys)
            await signing.revoke(api, folder, MODEL, version, reason, datetime.now(UTC), lambda _: None)

    asyncio.run(work())


def answer(device: Device) -> tuple[int, str]:
    """(status, release) of one request."""
    reply = asyncio.run(clients.infer(unit(device)["address"]))
    return reply.status, reply.headers.get("interlock-release", "")


def runs(device: Device, version: str) -> dict[str, Any]:
    """Wait until it has confirmed that version, and it is the one that serves."""
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(unit(device))
        return (found.get("confirmed"), found.get("running"), found["phase"]) == (version, version, "confirmed")

    until(look, f"{device.name} to run {version}")
    return found


def alarmed(device: Device) -> str:
    """Wait for the alarm; why it stays."""
    return str(
        until(lambda: (unit(device).get("alarmed") or {}).get("check") == "revoked" and unit(device), "alarm")[
            "alarmed"
        ]["why"]
    )


def test_revoked_each_owner_is_obeyed(made: World) -> None:
    good, bad = made.release(), made.release()
    everywhere(made, good)
    everywhere(made, bad)
    back, stop = made.devices
    revoke(made, bad, "labels were swapped")
    runs(back, good)
    assert answer(back) == (200, f"{MODEL}/{good}")
    assert alarmed(stop) == "stop"
    assert [(one["version"], one["reason"]) for one in unit(back)["revoked"]] == [(bad, "labels were swapped")]
    reply = asyncio.run(clients.infer(unit(stop)["address"]))
    assert (reply.status, json.loads(reply.body)["code"]) == (503, "release_revoked")

    def holds() -> bool:
        shown = made.ask("GET", f"/v1/releases/{MODEL}/{bad}")
        held = {one["device"] for one in shown["devices"] if one["confirmed"]}
        return shown["state"] == "revoked" and held == {"stop"}

    until(holds, "the server's list")

    def told() -> list[tuple[str, str, str]]:
        kinds = ("revoked", "reverted")
        return [(one["kind"], one["version"], one["reason"]) for one in made.events(back) if one["kind"] in kinds]

    until(lambda: len(told()) == 2, "the device's events")
    assert told() == [("revoked", bad, "revoked"), ("reverted", bad, "revoked")]


def test_what_arrived_needs_no_server_and_a_good_release_serves_again(made: World) -> None:
    back, stop = made.devices
    assert made.server is not None
    made.server.stop()
    for process in (stop.agent, stop.host):
        process.kill()
    stop.start_host()
    assert answer_of(stop) == 503  # the host alone knows
    stop.start_agent()
    until(lambda: unit(stop).get("running"), "the host's word")
    assert (answer(stop)[0], alarmed(stop)) == (503, "stop")
    previous = back.cli("rollback", MODEL, "--json", check=False)  # to the revoked one, by hand: no
    assert json.loads(previous.stdout)["error"]["code"] == "revoked"
    made.start_server()
    fresh = made.release()
    everywhere(made, fresh)
    for device in made.devices:
        well(device, fresh)
        assert answer(device) == (200, f"{MODEL}/{fresh}")


def test_withdrawn_devices_are_moved_to_the_release_before(made: World) -> None:
    good, fresh = "1.1.0", "1.3.0"
    withdrawn = made.ask("POST", f"/v1/releases/{MODEL}/{fresh}/withdraw", {"reason": "too slow at night"})
    assert sorted(withdrawn["moved"]) == sorted(POLICIES)
    for device in made.devices:
        assert runs(device, good)["offered"] == good
    moving, ended = made.ask("GET", "/v1/rollouts")["rollouts"][:2]
    assert (moving["version"], moving["to"]) == (good, {"instead_of": fresh})
    assert (ended["version"], ended["state"]) == (fresh, "withdrawn")


def well(device: Device, version: str) -> None:
    """Wait for the end of the alarm."""
    until(lambda: not runs(device, version).get("alarm"), "the end of the alarm")


def answer_of(device: Device) -> int:
    """The status of a request, asked without the agent."""
    address = json.loads((device.state / "host" / f"{MODEL}.json").read_text())["address"]
    return asyncio.run(clients.infer(address)).status
