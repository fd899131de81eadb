"""A real Mosquitto outside the server, with password file and access list kept by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import aiomqtt
import pytest

from interlock_server.adapters import mosquitto
from interlock_shared import topics
from tests.e2e.world import MODEL, World, eventually, temporary, watched
from tests.rig.fleet import Process, until

pytestmark = pytest.mark.e2e

PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
MISSING = "NO MOSQUITTO ON THIS MACHINE: the external broker is not tested (apt install mosquitto)"


@pytest.fixture
def mosquitto_there() -> str:
    if PROGRAM is None:
        pytest.skip(MISSING)
    return PROGRAM


class Broker:
    """Mosquitto in a folder of its own, on a loopback port that stays the same."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        folder.mkdir()
        (folder / "passwd").write_text("somebody:$7$101$AAAA$AAAA\n")
        (folder / "acl").touch()
        for name in ("passwd", "acl"):
            (folder / name).chmod(0o600)
        user = "user root\n" if os.geteuid() == 0 else ""
        (folder / "mosquitto.conf").write_text(
            f"listener {port} 127.0.0.1\n{user}allow_anonymous false\npassword_file {folder}/passwd\n"
            f"acl_file {folder}/acl\npid_file {folder}/pid\npersistence true\npersistence_location {folder}/\n"
        )
        command = [program, "-c", str(folder / "mosquitto.conf")]
        self.process = Process("mosquitto", command, folder / "log", dict(os.environ))

    def start(self) -> None:
        self.process.start()
        until(self._listens, "mosquitto to listen")

    def _listens(self) -> bool:
        assert self.process.pid
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return (self.folder / "pid").exists()
        return False

    def options(self) -> tuple[str, ...]:
        """What the server is told of it."""
        names = {"passwd": "passwd", "acl": "acl", "pid": "pid"}
        return tuple(f"--mosquitto-{option}={self.folder / file}" for option, file in names.items())


@pytest.fixture
def broker(mosquitto_there: str, free_port: Callable[[], int]) -> Iterator[Broker]:
    with temporary() as folder:
        made = Broker(mosquitto_there, folder / "mosquitto", free_port())
        try:
            made.start()
            yield made
        finally:
            made.process.kill()


def test_the_main_path_over_a_mosquitto_that_restarts(broker: Broker) -> None:
    made = World(broker.folder / "fleet", dict(os.environ))
    password = secrets.token_urlsafe(12)
    made.broker = f"mqtt://interlock:{password}@127.0.0.1:{broker.port}"
    try:
        made.start_server(*broker.options())
        made.trust(MODEL)
        one = watched(made, "press-7", {"listen": "127.0.0.1:0"})
        with one.web, one.broker:
            one.device.start()
            first = made.first(one.device)
            with one.between.stop("evaluate") as stop:
                version = made.release()
                rollout = one.wish(version)
                stop.wait()
                broker.process.kill()
            broker.start()
            one.settles(version, rollout)
            assert made.server is not None
            made.server.kill()
            broker.process.kill()
            one.device.agent.kill()
            made.start_server(*broker.options())
            one.device.start_agent()
            broker.start()
            back = one.wish(first)
            one.settles(first, back)
            eventually(lambda: one.device.ask("status")["outbox"]["waiting"] == 0, "an empty outbox")
            numbers = sorted(event["number"] for event in made.events(one.device))
            assert numbers == list(range(1, len(numbers) + 1))
            asyncio.run(outsiders(broker.port, one.device.state))
        one.between.close()
        lines = (broker.folder / "passwd").read_text().splitlines()
        assert [line.partition(":")[0] for line in lines] == ["somebody", "interlock", "press-7"]
        assert password not in "".join(lines)
        assert oct((broker.folder / "passwd").stat().st_mode & 0o777) == "0o600"
    finally:
        made.stop()


async def outsiders(port: int, state: Path) -> None:
    """Nobody gets in without a password; a device sees and says what is its own."""
    facts = json.loads(await asyncio.to_thread((state / "identity" / "identity.json").read_text))
    for username, password in ((None, None), (facts["device"], "wrong"), ("press-8", facts["broker_password"])):
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", port, username=username, password=password):
                pass
    mine = aiomqtt.Client(
        "127.0.0.1", port, username=facts["device"], password=facts["broker_password"], identifier="another"
    )
    async with mine as client:
        await client.subscribe(topics.any_device("desired"), qos=1)
        await client.subscribe(topics.device_topic("reported", "press-7"), qos=1)
        foreign = topics.device_topic("desired", "press-8")
        await client.publish(foreign, b"forged", qos=1, retain=True)
        await client.subscribe(topics.device_topic("ack", "press-7"), qos=1)
        await client.subscribe(topics.device_topic("desired", "press-7"), qos=1)
        message = await asyncio.wait_for(anext(aiter(client.messages)), 20)
        assert str(message.topic) == topics.device_topic("desired", "press-7")


def test_a_device_that_enrols_again_has_one_line_with_the_new_password(tmp_path: Path) -> None:
    passwords, acl = tmp_path / "passwd", tmp_path / "acl"
    files = mosquitto.Mosquitto(passwords, acl, tmp_path / "no-such-pid")

    async def enrol() -> None:
        await files.start("interlock", "first")
        await files.joined("press-7", "one")
        await files.joined("press-7", "two")
        await files.joined("press-7", "two")

    asyncio.run(enrol())
    lines = dict(line.split(":") for line in passwords.read_text().splitlines())
    assert list(lines) == ["interlock", "press-7"]
    assert mosquitto.holds(lines["press-7"], "two")
    assert not mosquitto.holds(lines["press-7"], "one")
    assert "pattern read interlock/v1/device/%u/desired" in acl.read_text()
    assert oct(passwords.stat().st_mode & 0o777) == "0o640"


def test_the_hash_is_mosquittos(tmp_path: Path) -> None:
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip(MISSING)
    done = Process("passwd", [program, "-c", "-b", str(tmp_path / "p"), "a", "secret"], tmp_path / "log", os.environ)
    done.start()
    assert done.popen is not None
    assert done.popen.wait(30) == 0
    assert mosquitto.holds((tmp_path / "p").read_text().strip().partition(":")[2], "secret")
