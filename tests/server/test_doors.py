"""What the server does not take: tokens without TLS, folders and files that it cannot use, devices that are cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from interlock_server.__main__ import main, serve
from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.keys import OnlineKeys
from interlock_server.config import Settings
from interlock_shared import topics
from interlock_shared.errors import InterlockError
from tests.server.fleet_fixture import MODEL, Client, Fleet, csr

ANYWHERE = ("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs in this process, whose logs stay as they are."""
    monkeypatch.setattr("interlock_server.runtime.set_up_logs", lambda form: None)


async def test_nobody_enrols_without_tls(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "server", ANYWHERE, None, ANYWHERE, None, None, plain_listen=ANYWHERE)
    async with serve(settings) as server, aiohttp.ClientSession() as session:
        assert server.plain is not None
        people, nobody = Client(session, server.plain, server.token), Client(session, server.plain, None)
        assert (await people.get(topics.DEVICES))["devices"] == []  # what it is for
        body = {"token": "ilt_whatever", "csr": csr(ec.generate_private_key(ec.SECP256R1())), "agent": "0.1.0"}
        for client in (nobody, people):
            status, refused = await client.ask("POST", topics.ENROL, body)
            assert (status, refused["code"]) == (403, "tls_needed"), refused
            assert server.url in refused["message"]
        renewal = topics.DEVICE_CERTIFICATE.replace("{id}", "edge-1")
        assert (await nobody.ask("POST", renewal, {"csr": body["csr"]}))[0] == 401
        assert (await people.ask("POST", renewal, {"csr": body["csr"]}))[0] == 403


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "updates.example:8080"])
def test_plain_is_for_this_machine_alone(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--plain-listen", address]) == 2
    assert "--plain-listen" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["director.pem", "timestamp.next.pem", "tls_ca.pem", "device_ca.pem", "device_ca.crt"])
@pytest.mark.parametrize("torn", [b"", b"torn", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_broken_key_is_named(name: str, torn: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    OnlineKeys.open(keys)
    DeviceCA.open(keys)
    (keys / name).write_bytes(torn)
    with pytest.raises(InterlockError) as refused:
        (OnlineKeys if name in ("director.pem", "timestamp.next.pem") else DeviceCA).open(keys)
    assert refused.value.code == "broken_store"
    assert str(keys / name) in refused.value.message
    assert main(["run", "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert str(keys / name) in said
    assert "Traceback" not in said


def test_files_that_cannot_be_written_are_told_by_their_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    bad = str(tmp_path / "file" / "one")
    run = ["run", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    assert main([*run, "--broker", "mqtts://127.0.0.1:9", "--mosquitto-crl", bad]) == 1
    said = capsys.readouterr().err
    assert "--mosquitto-crl" in said
    assert "--data" not in said
    run += ["--broker-listen", "127.0.0.1:0"]
    assert main([*run, "--token-file", bad]) == 1
    said = capsys.readouterr().err
    assert "--token-file" in said
    assert "--data" not in said


async def test_an_admin_token_that_could_not_be_written_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    def settings(token_file: Path) -> Settings:
        return Settings(tmp_path / "data", ANYWHERE, None, ANYWHERE, None, token_file)

    with pytest.raises(InterlockError):
        async with serve(settings(tmp_path / "file" / "one")):
            pass
    async with serve(settings(tmp_path / "token")) as server:
        assert server.token == (tmp_path / "token").read_text().strip()


@pytest.mark.parametrize("given", [["--output", "out", "--host", "b.example"], []])
def test_a_wrong_data_folder_gets_no_authorities(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["broker-config", "mosquitto", "--data", "wrong", *given]) == (2 if given else 0)
    assert not list(tmp_path.iterdir())
    if given:
        assert f"{tmp_path}/wrong" in capsys.readouterr().err


async def test_a_rollout_is_not_for_devices_that_are_cut_off(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    for name, site in (("edge-1", "berlin"), ("edge-2", "berlin"), ("edge-3", "paris")):
        await fleet.enrol(name, site=site)
    invitation = await fleet.admin.post(topics.DEVICE_TOKENS, {"labels": {"site": "rome"}, "uses": 2})
    body = {"token": invitation["token"], "csr": csr(ec.generate_private_key(ec.SECP256R1())), "name": "edge-4"}
    assert (await fleet.client(None).ask("POST", topics.ENROL, {**body, "agent": "0.1.0"}))[0] == 202

    async def start(**to: object) -> tuple[int, Any]:
        return await fleet.admin.ask("POST", topics.ROLLOUTS, {"model": MODEL, "version": "1.0.0", "to": to})

    under_way = (await start(device="edge-3"))[1]["id"]
    for name in ("edge-2", "edge-3"):
        await fleet.admin.post(f"/v1/devices/{name}/revoke", {"reason": "stolen"})
    for again, state, told in ((False, "finished", ("cancelled", "device_revoked")), (True, "active", ("offered", ""))):
        if again:  # let in again, what was wanted is wanted
            await fleet.enrol("edge-3")
        shown = await fleet.admin.get(f"/v1/rollouts/{under_way}")
        assert (shown["state"], *((one["state"], one["reason"]) for one in shown["assignments"])) == (state, told)
    await fleet.admin.post("/v1/devices/edge-3/revoke", {"reason": "stolen again"})

    for status, made in (await start(all=True), await start(labels={"site": "berlin"})):
        assert (status, [one["device"] for one in made["assignments"]]) == (201, ["edge-1"])
    for (status, refused), expected in (
        (await start(device="edge-2"), (409, "device_revoked", "edge-2")),
        (await start(labels={"site": "paris"}), (409, "device_revoked", "edge-3")),
        (await start(labels={"site": "rome"}), (404, "no_device", "no device is meant")),
        (await start(device="edge-4"), (404, "no_device", "edge-4 waits for approval")),
    ):
        assert (status, refused["code"]) == expected[:2]
        assert expected[2] in refused["message"]
