"""Devices and their certificates, over real TLS: joining, approval, renewal, revocation, clones, what they fetch."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import aiomqtt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from interlock_server.core import clones
from interlock_shared import canonical, topics, trust
from tests.server.fleet_fixture import MODEL, Device, Fleet, PrivateKey, csr, running
from tests.server.test_link import verdict

Json = dict[str, Any]


@dataclass
class Clock:
    """A clock to turn; OpenSSL has its own."""

    at: datetime

    def __call__(self) -> datetime:
        return self.at

    def forward(self, **more: float) -> None:
        """Some time passes."""
        self.at += timedelta(**more)


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime.now(UTC))


@pytest.fixture
async def fleet(tmp_path: Path, clock: Clock) -> AsyncIterator[Fleet]:
    async with running(tmp_path / "server", clock=clock) as one:
        yield one


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


async def token(fleet: Fleet, **more: Any) -> Json:
    return dict(await fleet.admin.post(topics.DEVICE_TOKENS, more))


async def ask(fleet: Fleet, given: str, key: PrivateKey, name: str | None = None) -> tuple[int, Json]:
    """The enrolment of a stranger."""
    body = {"token": given, "csr": csr(key), "name": name, "agent": "0.1.0"}
    return await fleet.client(None).ask("POST", topics.ENROL, body)


async def own_word(fleet: Fleet, device: Device) -> tuple[int, Json]:
    """What the device gets when it asks for its desired document."""
    return await fleet.client(None).ask("GET", f"/v1/devices/{device.id}/desired", ssl=device.tls())


async def detail(fleet: Fleet, device: str) -> Json:
    return dict(await fleet.admin.get(f"/v1/devices/{device}"))


# --- joining ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [new_key(), Ed25519PrivateKey.generate()], ids=["p256", "ed25519"])
async def test_a_token_makes_one_device_that_is_known_by_its_certificate(fleet: Fleet, key: PrivateKey) -> None:
    made = await token(fleet, labels={"site": "berlin"})
    status, identity = await ask(fleet, made["token"], key, "edge-1")
    assert (status, identity["device"], identity["labels"]) == (201, "edge-1", {"site": "berlin"})
    assert (await own_word(fleet, fleet.device(identity, key)))[0] == 200
    for other in (new_key(), new_key()):
        status, refused = await ask(fleet, made["token"], other, "edge-2")
        assert (status, refused["code"]) == (403, "token_used")
    assert [one["id"] for one in (await fleet.admin.get(topics.DEVICES))["devices"]] == ["edge-1"]


async def test_of_many_at_once_one_gets_in(fleet: Fleet) -> None:
    made = await token(fleet)
    answers = await asyncio.gather(*(ask(fleet, made["token"], new_key(), f"edge-{n}") for n in range(5)))
    assert sorted(status for status, _ in answers) == [201, 403, 403, 403, 403]


async def test_a_lost_answer_is_given_again_while_the_token_holds(fleet: Fleet, clock: Clock) -> None:
    made, key = await token(fleet, hours=2), new_key()
    _, first = await ask(fleet, made["token"], key)
    clock.forward(hours=1)
    status, second = await ask(fleet, made["token"], key)
    assert (status, second["certificate"], second["device"]) == (201, first["certificate"], first["device"])
    clock.forward(hours=1)
    status, refused = await ask(fleet, made["token"], key)
    assert (status, refused["code"]) == (403, "token_expired")
    assert (await own_word(fleet, fleet.device(first, key)))[0] == 200


async def test_what_a_token_cannot_be(fleet: Fleet, clock: Clock) -> None:
    assert (await ask(fleet, "ilt_made_up", new_key()))[0] == 401
    made = await token(fleet, hours=1)
    bodies: list[tuple[Any, str]] = [("", "invalid"), ("x", "bad_csr"), (csr(new_key())[:-60], "bad_csr")]
    for wrong, code in bodies:
        status, refused = await fleet.client(None).ask("POST", topics.ENROL, {"token": made["token"], "csr": wrong})
        assert (status, refused["code"]) == (400, code)
    clock.forward(hours=1)
    assert (await ask(fleet, made["token"], new_key()))[1]["code"] == "token_expired"
    taken_back = await token(fleet)
    assert (await fleet.admin.ask("DELETE", f"{topics.DEVICE_TOKENS}?id={taken_back['id']}"))[0] == 200
    assert (await fleet.admin.ask("DELETE", f"{topics.DEVICE_TOKENS}?id={taken_back['id']}"))[0] == 404
    assert (await ask(fleet, taken_back["token"], new_key()))[1]["code"] == "token_revoked"
    listed = (await fleet.admin.get(topics.DEVICE_TOKENS))["tokens"]
    assert [one["state"] for one in listed] == ["revoked", "expired"]
    assert made["token"] not in str(listed)
    assert (await fleet.admin.ask("POST", topics.DEVICE_TOKENS, {"device": "edge-1", "uses": 2}))[0] == 400


async def test_an_id_that_is_taken_needs_a_token_for_it_and_the_former_holder_is_out(fleet: Fleet) -> None:
    before = await fleet.enrol("edge-1")
    assert (await own_word(fleet, before))[0] == 200
    status, refused = await ask(fleet, (await token(fleet))["token"], new_key(), "edge-1")
    assert (status, refused["code"]) == (409, "device_exists")
    after = await fleet.enrol("edge-1")  # by a token for exactly this id
    assert (await own_word(fleet, after))[0] == 200
    status, refused = await own_word(fleet, before)
    assert (status, refused["code"]) == (403, "device_revoked")
    assert {one["reason"] for one in (await detail(fleet, "edge-1"))["certificates"]} == {"", "replaced"}


# --- a batch ---------------------------------------------------------------------------------------------------------


async def test_devices_of_a_batch_wait_for_a_person(fleet: Fleet, clock: Clock) -> None:
    made = await token(fleet, uses=2, hours=1, labels={"site": "hall"})
    first, second, third = new_key(), new_key(), new_key()
    status, waits = await ask(fleet, made["token"], first, "cam-1")
    assert (status, waits["status"], waits["certificate"]) == (202, "waiting", None)
    status, other = await ask(fleet, made["token"], second, "cam-1")  # the same name: a person must tell them apart
    assert (await ask(fleet, made["token"], third))[1]["code"] == "token_used"  # the cap
    listed = (await fleet.admin.get(topics.DEVICES))["waiting"]
    assert [(one["device"], one["keyid"]) for one in listed] == [("cam-1", waits["keyid"]), ("cam-1", other["keyid"])]
    status, refused = await fleet.admin.ask("POST", "/v1/devices/cam-1/approve", {})
    assert (status, refused["code"]) == (409, "ambiguous_key")
    await fleet.admin.post("/v1/devices/cam-1/approve", {"keyid": waits["keyid"][:12]})
    await fleet.admin.post("/v1/devices/cam-1/refuse", {"keyid": other["keyid"]})
    assert (await fleet.admin.ask("POST", "/v1/devices/cam-1/approve", {}))[1]["code"] == "not_waiting"
    clock.forward(hours=20)  # approval may take longer than the token lives
    status, identity = await ask(fleet, made["token"], first, "cam-1")
    assert (status, identity["labels"]) == (201, {"site": "hall"})
    assert (await own_word(fleet, fleet.device(identity, first)))[0] == 200
    assert (await ask(fleet, made["token"], second, "cam-1"))[1]["code"] == "enrolment_refused"


async def test_a_reimaged_device_comes_back_by_an_approval(fleet: Fleet) -> None:
    before = await fleet.enrol("cam-1")
    made, key = await token(fleet, uses=50), new_key()
    assert (await ask(fleet, made["token"], key, "cam-1"))[0] == 202
    assert (await own_word(fleet, before))[0] == 200  # nobody is put out by a question
    assert (await fleet.admin.get(topics.DEVICES))["waiting"][0]["replaces"] is True
    await fleet.admin.post("/v1/devices/cam-1/approve", {})
    _, identity = await ask(fleet, made["token"], key, "cam-1")
    assert (await own_word(fleet, fleet.device(identity, key)))[0] == 200
    assert (await own_word(fleet, before))[1]["code"] == "device_revoked"


async def test_an_approval_does_not_outlive_a_revocation(fleet: Fleet) -> None:
    await fleet.enrol("cam-1")
    made, key = await token(fleet, uses=50), new_key()
    await ask(fleet, made["token"], key, "cam-1")
    await fleet.admin.post("/v1/devices/cam-1/approve", {})
    await fleet.admin.post("/v1/devices/cam-1/revoke", {"reason": "stolen"})
    assert (await ask(fleet, made["token"], key, "cam-1"))[0] == 202
    assert (await detail(fleet, "cam-1"))["revoked_at"] is not None
    await fleet.admin.post("/v1/devices/cam-1/approve", {})  # a person has looked again
    assert (await ask(fleet, made["token"], key, "cam-1"))[0] == 201


# --- afterwards ------------------------------------------------------------------------------------------------------


async def test_a_renewed_device_is_known_by_both_certificates_and_by_both_keys(fleet: Fleet) -> None:
    device, key = await fleet.enrol("edge-1"), new_key()
    route = "/v1/devices/edge-1/certificate"
    answer = await fleet.client(None).post(route, {"csr": csr(key)}, ssl=device.tls())
    listed = (await detail(fleet, "edge-1"))["certificates"]
    assert sorted(one["first_used_at"] is None for one in listed) == [False, True]
    renewed = fleet.device({**answer, "device": "edge-1", "keyid": "renewed-", "broker": "mqtts://x:1"}, key)
    for one in (renewed, device):
        assert (await own_word(fleet, one))[0] == 200
    found = await detail(fleet, "edge-1")
    assert found["keyid"] in {one["keyid"] for one in found["certificates"]}
    neighbour = await fleet.enrol("edge-2")
    status, refused = await fleet.client(None).ask("POST", route, {"csr": csr(new_key())}, ssl=neighbour.tls())
    assert (status, refused["code"]) == (403, "other_device")
    for _ in range(20):
        status, refused = await fleet.client(None).ask("POST", route, {"csr": csr(new_key())}, ssl=device.tls())
    assert (status, refused["code"]) == (503, "too_many_renewals")


async def test_a_revoked_device_is_cut_off_in_the_middle_of_its_connections(fleet: Fleet) -> None:
    device, neighbour = await fleet.enrol("edge-1"), await fleet.enrol("edge-2")
    connector = aiohttp.TCPConnector(ssl=device.tls())
    url = fleet.admin.url + "/v1/devices/edge-1/desired"
    async with aiohttp.ClientSession(connector=connector) as session, device.online() as link:
        async with session.get(url) as answer:
            assert answer.status == 200
            await answer.read()
        lost = asyncio.ensure_future(anext(aiter(link.client.messages)))
        revoked = await fleet.admin.post("/v1/devices/edge-1/revoke", {"reason": "stolen"})
        async with asyncio.timeout(10):
            with pytest.raises(aiomqtt.MqttError):
                await lost
        async with session.get(url) as answer:  # on a new connection: the open one is gone
            assert (answer.status, (await answer.json())["code"]) == (403, "device_revoked")
    with pytest.raises(aiomqtt.MqttError):
        async with device.connection():
            pass
    assert (await own_word(fleet, neighbour))[0] == 200
    found = await detail(fleet, "edge-1")
    assert (found["revoked_at"], found["online"]) == (revoked["revoked_at"], False)
    again = await fleet.admin.post("/v1/devices/edge-1/revoke", {"reason": "stolen"})
    assert again["revoked_at"] == revoked["revoked_at"]
    back = await fleet.enrol("edge-1")
    assert (await own_word(fleet, back))[0] == 200
    assert (await detail(fleet, "edge-1"))["revoked_at"] is None
    assert (await own_word(fleet, device))[1]["code"] == "device_revoked"


async def test_a_stranger_s_certificate_ends_in_the_handshake(fleet: Fleet, tmp_path: Path) -> None:
    async with running(tmp_path / "other") as elsewhere:
        stranger = await elsewhere.enrol("edge-1")
    mixed = ssl.create_default_context(cadata=fleet.online["tls_ca"])
    mixed.load_cert_chain(stranger.pair)
    with pytest.raises(aiohttp.ClientError):
        await fleet.client(None).get("/v1/devices/edge-1/desired", ssl=mixed)
    without = ssl.create_default_context(cadata=fleet.online["tls_ca"])
    status, refused = await fleet.client(None).ask("GET", "/v1/devices/edge-1/desired", ssl=without)
    assert (status, refused["code"]) == (401, "unauthenticated")


# --- what it may fetch -----------------------------------------------------------------------------------------------


async def test_a_device_fetches_what_it_is_offered_and_nothing_else(fleet: Fleet) -> None:
    contents = {"1.0.0": b"first", "2.0.0": b"second"}
    for version, content in contents.items():
        await fleet.publish(version, content)
    mine, other = await fleet.enrol("edge-1"), await fleet.enrol("edge-2")
    await fleet.admin.post(topics.ROLLOUTS, {"model": MODEL, "version": "1.0.0", "to": {"device": "edge-1"}})
    await fleet.admin.post(topics.ROLLOUTS, {"model": MODEL, "version": "2.0.0", "to": {"device": "edge-2"}})

    async def status(device: Device, version: str) -> set[int]:
        paths = (f"/v1/blobs/{canonical.sha256(contents[version])}", f"/v1/releases/{MODEL}/{version}/manifest")
        found = set()
        for path in paths:
            async with fleet.admin.session.get(fleet.admin.url + path, ssl=device.tls()) as answer:
                found.add(answer.status)
        return found

    assert await status(mine, "1.0.0") == {200}
    assert await status(mine, "2.0.0") == {404}
    assert await status(other, "1.0.0") == {404}
    await fleet.admin.post(topics.ROLLOUTS, {"model": MODEL, "version": "2.0.0", "to": {"device": "edge-1"}})
    assert await status(mine, "2.0.0") == {200}
    assert await status(mine, "1.0.0") == {200}  # what it may fall back on


# --- clones ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts", "cloned"),
    [
        ("a", False),
        ("aaa", False),
        ("abcd", False),  # restarts
        ("aabbcc", False),
        ("aba", True),
        ("abab", True),
        ("abcb", True),
    ],
)
def test_an_instance_that_comes_back_is_a_clone(starts: str, cloned: bool) -> None:
    known: list[str] = []
    seen = False
    for one in starts:
        known, came_back = clones.heard(known, one)
        seen = seen or came_back
    assert seen is cloned
    assert clones.heard(known, "") == (known, False)  # an agent that does not say


async def test_two_machines_with_one_identity(fleet: Fleet, clock: Clock) -> None:
    device = await fleet.enrol("edge-1")
    async with device.online() as link:
        for number, start in enumerate(("one", "one", "two", "one"), 1):
            await link.send("reported", device.reported(number, instance=start))
        await link.send("event", device.event("accepted"))
        await link.acked(1)
        found = await detail(fleet, "edge-1")
        assert (found["clone"]["why"], found["clone"]["count"]) == (clones.CAME_BACK, 1)
        await link.send("event", device.event("accepted", 1))
        await link.send("event", device.event("staged", 1))  # another word under the same number
        await link.send("event", device.event("accepted", 2))
        await link.acked(2)
    found = await detail(fleet, "edge-1")
    assert (found["clone"]["why"], found["clone"]["count"]) == (clones.NUMBER_REUSED, 2)
    told = [one for one in (await fleet.admin.get(topics.EVENTS))["events"] if one["kind"] == "cloned"]
    assert len(told) == 1  # once, and again when it is an hour old
    headers = {"Authorization": f"Bearer {fleet.token}"}
    async with fleet.admin.session.get(fleet.admin.url + topics.METRICS, headers=headers) as response:
        assert "interlock_devices_cloned 1.0" in await response.text()
    assert (await detail(fleet, (await fleet.enrol("edge-1")).id))["clone"] is None


async def test_a_certificate_that_was_renewed_long_ago_is_a_clone_s(fleet: Fleet, clock: Clock) -> None:
    device, key = await fleet.enrol("edge-1"), new_key()
    clock.forward(minutes=1)
    answer = await fleet.client(None).post("/v1/devices/edge-1/certificate", {"csr": csr(key)}, ssl=device.tls())
    renewed = fleet.device({**answer, "device": "edge-1", "keyid": "renewed-", "broker": "mqtts://x:1"}, key)
    await own_word(fleet, renewed)
    clock.forward(hours=23)
    await own_word(fleet, device)  # a connection that was open
    assert (await detail(fleet, "edge-1"))["clone"] is None
    clock.forward(hours=2)
    await own_word(fleet, renewed)
    assert (await detail(fleet, "edge-1"))["clone"] is None
    assert (await own_word(fleet, device))[0] == 200  # who is the thief is for a person to say
    assert (await detail(fleet, "edge-1"))["clone"]["why"] == clones.FORMER_CERTIFICATE


async def test_what_was_signed_before_a_renewal_is_still_the_device_s_word(fleet: Fleet) -> None:
    device, key = await fleet.enrol("edge-1"), new_key()
    answer = await fleet.client(None).post("/v1/devices/edge-1/certificate", {"csr": csr(key)}, ssl=device.tls())
    renewed = fleet.device({**answer, "device": "edge-1", "keyid": "renewed-", "broker": "mqtts://x:1"}, key)
    await own_word(fleet, renewed)
    stranger = (await fleet.enrol("edge-2")).key
    async with device.online() as link:
        for signer in (device.key, renewed.key, stranger):
            envelope = trust.seal(verdict(device), trust.VERDICT_TYPE, signer).decode()
            await link.send("event", device.event("verdict", data={"envelope": envelope}))
        await link.acked(3)
    found = (await fleet.admin.get("/v1/devices/edge-1/verdicts"))["verdicts"]
    assert [one["verified"] for one in reversed(found)] == [True, True, False]
