"""A real Mosquitto outside the server, with the settings that `broker-config` writes: server and agent over it.

What devices get of their neighbours there is in tests/server/test_external_brokers.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from interlock_server.__main__ import main
from interlock_server.adapters.device_ca import DeviceCA
from tests.e2e.world import MODEL, World, eventually, temporary, watched
from tests.rig.fleet import Process, until

pytestmark = pytest.mark.e2e

PROGRAM = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
CONNECTED = "connected to the broker"
MISSING = "NO MOSQUITTO ON THIS MACHINE: the external broker is not tested (apt install mosquitto)"


@pytest.fixture
def mosquitto_there() -> str:
    if PROGRAM is None:
        pytest.skip(MISSING)
    return PROGRAM


class Broker:
    """Mosquitto in a folder of its own, on a loopback port that stays the same."""

    def __init__(self, program: str, folder: Path, data: Path, port: int) -> None:
        self.folder, self.port = folder, port
        words = ["broker-config", "mosquitto", f"--data={data}", f"--output={folder}", "--host=127.0.0.1"]
        data.mkdir(parents=True)
        DeviceCA.open(data / "keys")  # as the first start of the server leaves it
        assert main([*words, f"--listen=127.0.0.1:{port}"]) == 0
        (folder / "conf.d").mkdir()
        shutil.copy(folder / "interlock.conf", folder / "conf.d")
        user = "user root\n" if os.geteuid() == 0 else ""
        (folder / "mosquitto.conf").write_text(
            f"{user}pid_file {folder}/pid\npersistence true\npersistence_location {folder}/\n"
            f"include_dir {folder}/conf.d\n"
        )
        command = [program, "-c", str(folder / "mosquitto.conf")]
        self.process = Process("mosquitto", command, folder / "log", dict(os.environ))
        self.url = f"mqtts://127.0.0.1:{port}"
        self.options = (f"--mosquitto-crl={folder}/crl.pem", f"--mosquitto-pid={folder}/pid")

    def start(self) -> None:
        self.process.start()
        until(self._listens, "mosquitto to listen")

    def _listens(self) -> bool:
        assert self.process.pid
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return (self.folder / "pid").exists()
        return False


@pytest.fixture
def broker(mosquitto_there: str, free_port: Callable[[], int]) -> Iterator[Broker]:
    with temporary() as folder:
        made = Broker(mosquitto_there, folder / "mosquitto", folder / "fleet" / "server", free_port())
        try:
            made.start()
            yield made
        finally:
            made.process.kill()


def test_the_main_path_over_a_mosquitto_that_restarts(broker: Broker) -> None:
    made = World(broker.folder.parent / "fleet", dict(os.environ))
    made.broker = broker.url
    try:
        made.start_server(*broker.options)
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
            heard = made.server.log.read_text().count(CONNECTED)
            made.start_server(*broker.options)
            broker.start()
            # Else the first events go to nobody, and are sent again after half a minute.
            until(lambda: made.server and made.server.log.read_text().count(CONNECTED) > heard, "the server's session")
            one.device.start_agent()
            back = one.wish(first)
            one.settles(first, back)
            eventually(lambda: one.device.ask("status")["outbox"]["waiting"] == 0, "an empty outbox")
            numbers = sorted(event["number"] for event in made.events(one.device))
            assert numbers == list(range(1, len(numbers) + 1))
            before = time.monotonic()
            made.ask("POST", "/v1/devices/press-7/revoke", {"reason": "stolen"})
            until(lambda: not one.device.ask("status")["link"]["connected"], "the session's end")
            assert time.monotonic() - before < 10
            # It tries again, and is refused by the broker; what it serves it goes on serving.
            until(lambda: one.device.ask("status")["link"]["trouble"], "what the broker says")
            assert one.device.ask("status")["units"][MODEL]["running"] == first
            assert not made.ask("GET", "/v1/devices/press-7")["online"]
        one.between.close()
    finally:
        made.stop()
