"""From a publish to a confirmed assignment, over real sockets."""

from __future__ import annotations

from pathlib import Path

from interlock_shared import topics
from tests.server.fleet_fixture import Fleet, Json, opened, running


async def test_a_release_reaches_a_device_and_is_confirmed_only_by_its_word(fleet: Fleet) -> None:
    release = await fleet.publish("1.0.0")
    device = await fleet.enrol("edge-1", site="berlin")
    async with device.online() as link:
        started = await fleet.admin.post(
            topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"labels": {"site": "berlin"}}}
        )
        assert started["counts"] == {"offered": 1}
        await link.until(lambda one: bool(one.desired))
        desired = opened(link.desired[0], fleet.online, device.id)
        assert desired is not None
        wish = desired.units["detector"]
        assert (wish.version, wish.manifest_sha256) == ("1.0.0", release["manifest_sha256"])

        about: Json = {"unit": "detector", "assignment": wish.assignment, "manifest_sha256": wish.manifest_sha256}
        for kind in ("accepted", "staged", "switched"):
            await link.send("event", device.event(kind, **about))
        await link.acked(3)
        assert (await fleet.admin.get(f"/v1/rollouts/{started['id']}"))["counts"] == {"trial": 1}
        await link.send("event", device.event("confirmed", **about))
        await link.acked(4)
    after = await fleet.admin.get(f"/v1/rollouts/{started['id']}")
    assert (after["counts"], after["state"]) == ({"confirmed": 1}, "finished")
    history = await fleet.admin.get(f"/v1/devices/{device.id}/history")
    assert [one["kind"] for one in history["events"]] == ["confirmed", "switched", "staged", "accepted"]


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    async with running(tmp_path / "server") as first:
        await first.publish("1.0.0")
        device = await first.enrol("edge-1")
        body = {"model": "detector", "version": "1.0.0", "to": {"device": device.id}}
        rollout = await first.admin.post(topics.ROLLOUTS, body)
        status = await first.admin.get(topics.STATUS)
        async with device.online() as link:
            await link.until(lambda one: bool(one.desired))
            envelope = link.desired[0]
    async with running(tmp_path / "server", first.offline, first.token) as second:
        assert (await second.admin.get(topics.STATUS))["trust"] == status["trust"]
        assert second.online == first.online
        assert (await second.admin.get(f"/v1/rollouts/{rollout['id']}"))["counts"] == {"offered": 1}
        assert [one["version"] for one in (await second.admin.get(topics.RELEASES))["releases"]] == ["1.0.0"]
        device.port = second.broker[1]
        async with device.online() as link:  # the same envelope: the device sees that nothing is new
            await link.until(lambda one: bool(one.desired))
            assert link.desired[0] == envelope
        await second.publish("1.1.0", b"better weights")
