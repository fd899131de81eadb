"""Events and acknowledgements over a real broker: duplicates, reordering, gaps, hostile messages, restarts."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.embedded_broker import EmbeddedBroker
from interlock_shared import canonical, plot, topics, trust
from interlock_shared.documents import Distributions, Sketch, Verdict
from tests.rig.broker_tls import tls_context
from tests.server.fleet_fixture import Device, Fleet, Json, opened, running


async def numbers(fleet: Fleet, device: Device) -> list[int]:
    found = await fleet.admin.get(f"/v1/devices/{device.id}/history?limit=1000")
    return sorted(one["number"] for one in found["events"])


async def test_duplicates_and_any_order_give_each_event_once(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    async with device.online() as link:
        for number in (3, 1, 1, 2, 3, 5, 2):
            await link.send("event", device.event("accepted", number))
        await link.acked(3)
        assert max(upto for _, upto in link.acks) == 3  # 4 is missing: 5 is not acknowledged
        await link.send("event", device.event("accepted", 4))
        await link.acked(5)
        link.acks.clear()
        await link.send("event", device.event("accepted", 2))  # the acknowledgement was lost: it is given again
        await link.acked(5)
    assert await numbers(fleet, device) == [1, 2, 3, 4, 5]


async def test_another_outbox_is_not_taken_for_duplicates(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    async with device.online() as link:
        await link.send("event", device.event("accepted", 1))
        await link.acked(1)
        device.epoch = "epoch-0002"
        await link.send("event", device.event("state_lost", 1))
        await link.acked(1)
    assert await numbers(fleet, device) == [1, 1]


async def test_what_neither_side_has_is_shown_and_does_not_stop_the_rest(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1")
    async with device.online() as link:
        await link.send("event", device.event("accepted", 1))
        await link.send("event", device.event("accepted", 9))
        await link.acked(1)
        await link.send("reported", device.reported(1, outbox_floor=9))
        await link.acked(9)
    detail = await fleet.admin.get(f"/v1/devices/{device.id}")
    assert detail["events_gap"] == [{"epoch": device.epoch, "first": 2, "last": 8}]


def _foreign(device: Device) -> bytes:
    return replace(device, id="edge-9").event("confirmed")


HOSTILE: list[Any] = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"{}",
    b'{"a":1,"a":2}',
    b"[" * 100_000,
    b'{"device":"edge-1","x":"\\ud800"}',
    _foreign,
    lambda device: device.event("x" * 65, 1),
    lambda device: device.event("accepted", 0),
    lambda device: device.event("accepted", 2**53),
    lambda device: device.event("accepted", 1, at="yesterday"),
    lambda device: device.event("accepted", 1, reason="\\ud800").replace(b"\\\\ud800", b"\\ud800"),
    lambda device: device.event("accepted", 1, epoch="short"),
    lambda device: device.event("accepted", 1, schema="interlock.event/9"),
    lambda device: device.event("accepted", 1).replace(b'"number":1', b'"number":' + b"9" * 5000),
]


async def test_hostile_messages_are_counted_and_logged_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    device = await fleet.enrol("edge-1")
    with caplog.at_level(logging.WARNING):
        async with device.online() as link:
            for hostile in HOSTILE:
                await link.send("event", hostile(device) if callable(hostile) else hostile)
            await link.send("reported", device.reported(1, outbox_floor=2**60))
            await link.send("reported", device.reported(1, outbox_epoch="x"))
            await link.send("presence", b"{}")
            await link.send("event", device.event("accepted", 1))
            await link.acked(1)
    assert await numbers(fleet, device) == [1]
    detail = await fleet.admin.get(f"/v1/devices/{device.id}")
    assert detail["refused_messages"] == len(HOSTILE) + 3
    assert len([one for one in caplog.records if "edge-1 sent" in one.getMessage()]) == 1


def verdict(device: Device, **more: Any) -> Verdict:
    facts: dict[str, Any] = {"distributions": Distributions()} | more
    return Verdict(
        device=device.id,
        model="detector",
        version="1.0.0",
        manifest_sha256="a" * 64,
        payload_sha256="b" * 64,
        variant="fp32",
        generation=1,
        outcome="accept",
        reason="ok",
        message="fit",
        started_at="2025-01-01T00:00:00Z",
        ended_at="2025-01-01T00:00:09Z",
        agent="0.1.0",
        runtime="onnxruntime",
        fingerprint={},
        fingerprint_sha256="c" * 64,
        limits={},
        limits_sha256="d" * 64,
        incumbent=None,
        stages=(),
        environment={},
        samples_sha256=None,
        **facts,
    )


async def test_verdicts_are_checked_with_the_devices_key(fleet: Fleet) -> None:
    device, neighbour = await fleet.enrol("edge-1"), await fleet.enrol("edge-2")
    good = trust.seal(verdict(device), trust.VERDICT_TYPE, device.key)
    forged = trust.seal(verdict(device), trust.VERDICT_TYPE, neighbour.key)
    foreign = trust.seal(verdict(neighbour), trust.VERDICT_TYPE, device.key)
    async with device.online() as link:
        for envelope in (
            canonical.decode(good, limit=10**6, what="v"),
            good.decode(),
            forged.decode(),
            foreign.decode(),
            7,
        ):
            await link.send("event", device.event("verdict", data={"envelope": envelope}))
        await link.acked(5)
    found = (await fleet.admin.get(f"/v1/devices/{device.id}/verdicts"))["verdicts"]
    assert [one["verified"] for one in found] == [False, False, False, True, True]
    assert found[-1]["verdict"]["outcome"] == "accept"


async def test_a_verdict_can_be_looked_at_as_a_picture(fleet: Fleet) -> None:
    device, neighbour = await fleet.enrol("edge-1"), await fleet.enrol("edge-2")
    measured = Sketch(samples=200, quantiles_ms=tuple(5 + k / 10 for k in range(101)))
    told = verdict(device, distributions=Distributions(candidate=measured))
    async with device.online() as link:
        for signer in (device.key, neighbour.key):
            envelope = trust.seal(told, trust.VERDICT_TYPE, signer).decode()
            await link.send("event", device.event("verdict", data={"envelope": envelope}))
        await link.acked(2)
    forged, good = (await fleet.admin.get(f"/v1/devices/{device.id}/verdicts"))["verdicts"]
    route = f"/v1/devices/{device.id}/verdicts"
    headers = {"Authorization": f"Bearer {fleet.token}"}
    async with fleet.admin.session.get(f"{fleet.admin.url}{route}/{good['id']}.svg", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "image/svg+xml")
        assert "script" not in response.headers["Content-Security-Policy"]
        text = await response.text()
    assert text == plot.svg(good["verdict"])
    assert "detector 1.0.0 (fp32): accept" in ET.fromstring(text)[0].itertext()
    for device_id, number in ((device.id, forged["id"]), (neighbour.id, good["id"]), (device.id, 10**9)):
        status, document = await fleet.admin.ask("GET", f"/v1/devices/{device_id}/verdicts/{number}.svg")
        assert (status, document["code"]) == (404, "no_verdict")


async def test_presence_and_reports_are_shown(fleet: Fleet) -> None:
    device = await fleet.enrol("edge-1", site="berlin")
    unit = {
        "phase": "confirmed",
        "generation": 3,
        "offered": "1.0.0",
        "installed": {"a": "1.0.0", "b": None},
        "confirmed": "1.0.0",
        "running": "1.0.0",
    }

    async def view() -> Json:
        return dict((await fleet.admin.get("/v1/devices?label=site%3Dberlin"))["devices"][0])

    async with device.online() as link:
        await link.send("presence", b'{"schema":"interlock.presence/1","online":true}')
        await link.send("reported", device.reported(2, units={"detector": unit}))
        await link.send("reported", device.reported(1))  # late: changes nothing
        await link.send("event", device.event("accepted", 1))
        await link.acked(1)
        seen = await view()
    assert seen["online"]
    facts = ("offered", "installed", "confirmed", "running", "phase")
    assert {name: seen["units"]["detector"][name] for name in facts} == {name: unit[name] for name in facts}
    assert (await fleet.admin.get("/v1/devices?label=site%3Dparis"))["devices"] == []


async def test_a_device_that_runs_something_else_reopens_its_result(fleet: Fleet) -> None:
    release = await fleet.publish("1.0.0")
    device = await fleet.enrol("edge-1")
    started = await fleet.admin.post(topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"all": True}})
    about = {
        "unit": "detector",
        "assignment": started["assignments"][0]["assignment"],
        "manifest_sha256": release["manifest_sha256"],
    }
    unit = {"phase": "confirmed", "generation": 1, "offered": None, "installed": {}, "confirmed": "1.0.0"}
    async with device.online() as link:
        await link.send("event", device.event("confirmed", **about))
        await link.acked(1)
        for number, (running_now, state) in enumerate((("1.0.0", "confirmed"), ("0.9.0", "reverted")), 1):
            units = {"detector": {**unit, "running": running_now}}
            await link.send("reported", device.reported(number, outbox_floor=device.number + 1, units=units))
            await link.send("event", device.event("refused"))
            await link.acked(device.number)
            view = await fleet.admin.get(f"/v1/rollouts/{started['id']}")
            assert view["assignments"][0]["state"] == state


async def test_an_abort_brings_the_wish_before_back(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    await fleet.publish("1.1.0", b"better weights")
    device = await fleet.enrol("edge-1")
    body = {"model": "detector", "version": "1.0.0", "to": {"device": "edge-1"}}
    async with device.online() as link:
        first = await fleet.admin.post(topics.ROLLOUTS, body)
        await link.until(lambda one: len(one.desired) == 1)
        second = await fleet.admin.post(topics.ROLLOUTS, {**body, "version": "1.1.0"})
        await link.until(lambda one: len(one.desired) == 2)
        assert (await fleet.admin.get(f"/v1/rollouts/{first['id']}"))["counts"] == {"superseded": 1}
        await fleet.admin.post(f"/v1/rollouts/{second['id']}/abort")
        await link.until(lambda one: len(one.desired) == 3)
        status, document = await fleet.admin.ask("POST", f"/v1/rollouts/{second['id']}/abort")
        assert (status, document["code"]) == (409, "rollout_aborted")
        await fleet.admin.post(f"/v1/rollouts/{first['id']}/abort")
        await link.until(lambda one: len(one.desired) == 4)
    documents, last = [], (0, 0)
    for envelope in link.desired:
        document = opened(envelope, fleet.online, device.id, last)
        assert document is not None
        last = (document.epoch, document.counter)
        documents.append(document)
    assert [one.counter for one in documents] == [1, 2, 3, 4]
    wishes = [one.units.get("detector") for one in documents]
    assert [one and one.version for one in wishes] == ["1.0.0", "1.1.0", "1.0.0", None]
    assert wishes[0] == wishes[2]  # the same wish has the same assignment
    assert (await fleet.admin.get(f"/v1/rollouts/{second['id']}"))["counts"] == {"cancelled": 1}


async def test_the_poll_gives_the_same_envelope_as_the_broker(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    device, neighbour = await fleet.enrol("edge-1"), await fleet.enrol("edge-2")
    await fleet.admin.post(topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"device": "edge-1"}})
    async with device.online() as link:
        await link.until(lambda one: bool(one.desired))
    anyone = fleet.client(None)
    mine = {"ssl": device.tls()}
    polled = await anyone.get(f"/v1/devices/{device.id}/desired", **mine)
    assert polled["desired"] == link.desired[0]
    status, document = await anyone.ask("GET", f"/v1/devices/{neighbour.id}/desired", **mine)
    assert (status, document["code"]) == (403, "other_device")
    assert (await anyone.get(f"/v1/devices/{neighbour.id}/desired", ssl=neighbour.tls()))["desired"] is None


async def test_a_device_ahead_of_a_restored_server_is_continued_from_its_counter(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    device = await fleet.enrol("edge-1")
    async with device.online() as link:
        await link.send("reported", device.reported(1, desired=[1, 41]))
        await link.send("event", device.event("accepted", 1))
        await link.acked(1)
        await fleet.admin.post(topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"all": True}})
        await link.until(lambda one: bool(one.desired))
    document = opened(link.desired[0], fleet.online, device.id, (1, 41))
    assert document is not None
    assert document.counter == 42


async def test_restarts_in_any_order_converge_and_lose_no_event(tmp_path: Path, free_port: Any) -> None:
    """The server with its broker restarts twice while a device goes on sending; each time everything is there."""
    ports = (free_port(), free_port())
    async with running(tmp_path / "server", ports=ports) as fleet:
        await fleet.publish("1.0.0")
        device = await fleet.enrol("edge-1")
    unacknowledged = [device.event("accepted") for _ in range(20)]
    seen: list[int] = []

    async def outbox() -> None:
        """As the agent does: send what is not acknowledged, reconnect when the broker goes."""
        import aiomqtt

        while not seen or seen[-1] < 20:
            try:
                async with device.online(timeout=1) as link:
                    for event in unacknowledged[seen[-1] if seen else 0 :]:
                        await link.send("event", event)
                    await link.until(lambda one: bool(one.acks))
                    seen.append(max(upto for _, upto in link.acks))
            except (aiomqtt.MqttError, TimeoutError):
                await asyncio.sleep(0.05)

    sending = asyncio.create_task(outbox())
    for _ in range(2):
        async with running(tmp_path / "server", fleet.offline, fleet.token, ports) as fleet2:
            await fleet2.admin.get(topics.STATUS)
    async with running(tmp_path / "server", fleet.offline, fleet.token, ports) as fleet3:
        await asyncio.wait_for(sending, 30)
        assert await numbers(fleet3, device) == list(range(1, 21))
        body = {"model": "detector", "version": "1.0.0", "to": {"all": True}}
        async with device.online() as link:
            await fleet3.admin.post(topics.ROLLOUTS, body)
            await link.until(lambda one: bool(one.desired))


async def test_a_broker_that_restarts_gets_everything_again(tmp_path: Path, free_port: Any) -> None:
    """A broker outside that forgot what was retained, while the server goes on: both reconnect and converge."""
    port = free_port()

    def context() -> ssl.SSLContext:
        ca = DeviceCA.open(tmp_path / "server" / "keys")
        (tmp_path / "broker.pem").write_bytes(ca.broker_pem(["localhost"]))
        return tls_context(tmp_path / "broker.pem", tmp_path / "broker.pem", ca.device_ca)

    tls = await asyncio.to_thread(context)

    async def knows(name: str, serial: str) -> bool:
        return bool(name and serial)  # an outside broker: whoever has a certificate

    async def broker() -> EmbeddedBroker:
        one = EmbeddedBroker(knows, tls)
        await one.start("localhost", port)
        return one

    outside = await broker()
    url = f"mqtts://localhost:{port}"
    async with running(tmp_path / "server", broker=url) as fleet:
        assert (await fleet.admin.get(topics.STATUS))["broker"] == url
        await fleet.publish("1.0.0")
        device = await fleet.enrol("edge-1")
        assert device.port == port
        await fleet.admin.post(topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"all": True}})
        async with device.online() as link:
            await link.until(lambda one: bool(one.desired))
            before = link.desired[0]
        await outside.stop()
        status, _ = await fleet.admin.ask("GET", topics.STATUS)
        assert status == 200  # the API does not care
        outside = await broker()
        async with device.online() as link:
            await link.until(lambda one: bool(one.desired))
            assert link.desired[0] == before
            await link.send("event", device.event("accepted"))
            await link.acked(1)
    await outside.stop()


async def test_a_device_ahead_of_a_restored_server_is_left_alone_until_it_is_reconciled(fleet: Fleet) -> None:
    for version in ("1.0.0", "1.1.0"):
        await fleet.publish(version)
    device, ask = await fleet.enrol("edge-1"), fleet.admin
    rollout = {"model": "detector", "to": {"device": "edge-1"}}
    where = f"/v1/devices/{device.id}"
    async with device.online() as link:
        await ask.post(topics.ROLLOUTS, {**rollout, "version": "1.0.0"})
        await link.until(lambda one: bool(one.desired))
        assert (await ask.ask("POST", f"{where}/reconcile", {}))[1]["code"] == "not_ahead"
        # What the device says now, the database of a backup would not know.
        refused = {"desired:older": 2, "nobodys:own": 1}
        await link.send("reported", device.reported(1, desired=[1, 41], refused=refused))
        await link.send("event", device.event("accepted", 1))
        await link.acked(1)
        seen = len(link.desired)
        await ask.post(topics.ROLLOUTS, {**rollout, "version": "1.1.0"})
        assert (await ask.get(where))["ahead"] is True
        bearer = {"Authorization": f"Bearer {ask.token}"}
        async with ask.session.get(ask.url + topics.METRICS, headers=bearer) as answer:
            figures = await answer.text()
        assert "interlock_devices_ahead 1.0" in figures
        assert 'interlock_device_documents_refused_total{document="desired",reason="older"} 2.0' in figures
        assert "nobodys" not in figures, "no device makes up series"
        done = await ask.post(f"{where}/reconcile", {})
        assert done == {"device": "edge-1", "counter": 41}
        await link.until(lambda one: len(one.desired) > seen)
    document = opened(link.desired[-1], fleet.online, device.id, (1, 41))
    assert document is not None
    assert (document.counter, document.units["detector"].version) == (42, "1.1.0")
    assert (await ask.get(where))["ahead"] is False
    audit = await ask.get("/v1/audit")
    assert "device.reconcile" in str(audit)
