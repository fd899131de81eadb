"""The settings that `broker-config` writes, in real brokers: what a device gets of its neighbour by a good certificate.

Mosquitto and NATS are run where they are installed; EMQX is not run here, its settings are read only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from interlock_server.__main__ import main
from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.mosquitto import Mosquitto, Place
from interlock_server.core import broker_config
from interlock_shared import topics
from interlock_shared.errors import Unreachable
from tests.server.raw_mqtt import CONNECTED, Card, Peer, connect, dial, publish, subscribe

PATH = "/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", "")
DEVICES = ("edge-1", "edge-2")
OWN = {kind: topics.device_topic(kind, "edge-1") for kind in topics.DEVICE_TOPICS}
THEIRS = {kind: topics.device_topic(kind, "edge-2") for kind in topics.DEVICE_TOPICS}


@dataclass
class Outside:
    """A broker in a folder of its own, started with what was written for it."""

    name: str
    folder: Path
    port: int
    ca: DeviceCA
    cards: dict[str, Card]
    process: subprocess.Popen[bytes]
    peers: list[Peer] = field(default_factory=list)

    def context(self, who: str) -> ssl.SSLContext:
        """What this client connects with."""
        if who in self.cards:
            return self.cards[who].context(self.ca.tls_ca)
        made = ssl.create_default_context(cadata=self.ca.tls_ca.decode())
        made.load_cert_chain(*self.ca.client_files())
        return made

    async def ask(self, who: str, first: bytes = b"") -> tuple[Peer, bytes]:
        """A connection, and what was said to its CONNECT; b"" when it was ended."""
        try:
            peer = await dial(self.port, await asyncio.to_thread(self.context, who))
        except ssl.SSLError:
            return Peer(asyncio.StreamReader(), None), b""  # type: ignore[arg-type]
        self.peers.append(peer)
        peer.say(first or connect(client_id=f"interlock-{who}"))
        return peer, await peer.hear(20)

    async def online(self, who: str) -> Peer:
        """Let in."""
        peer, answer = await self.ask(who)
        assert answer == CONNECTED
        return peer


def program(name: str) -> str:
    """Where it is; skips aloud."""
    found = shutil.which({"mosquitto": "mosquitto", "nats": "nats-server"}[name], path=PATH)
    if found is None:
        pytest.skip(f"NO {name.upper()} ON THIS MACHINE: its settings are not tested (apt install {name})")
    return found


def started(name: str, folder: Path, port: int) -> Outside:
    """As a person does it: the settings written by the command, and the program with them."""
    binary, ca = program(name), DeviceCA.open(folder / "data" / "keys")
    out = folder / "broker"
    words = ["broker-config", name, f"--data={folder}/data", f"--output={out}", "--host=localhost"]
    assert main([*words, f"--listen=127.0.0.1:{port}", *[f"--device={one}" for one in DEVICES]]) == 0
    if name == "mosquitto":
        user = "user root\n" if os.geteuid() == 0 else ""
        main_file = out / "mosquitto.conf"  # what Debian's own says
        main_file.write_text(f"{user}pid_file {out}/pid\npersistence false\ninclude_dir {out}/conf.d\n")
        (out / "conf.d").mkdir()
        shutil.copy(out / "interlock.conf", out / "conf.d")
        command = [binary, "-c", str(main_file)]
    else:
        text = (out / "interlock.conf").read_text()
        text = text.replace("/var/lib/nats/interlock", f"{out}/js").replace("127.0.0.1:4222", "127.0.0.1:-1")
        (out / "interlock.conf").write_text(text)
        command = [binary, "-c", str(out / "interlock.conf"), "-P", str(out / "pid")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    cards = {one: Card(ca, folder, one) for one in (*DEVICES, "edge-3")}
    made = Outside(name, out, port, ca, cards, process)
    end = time.monotonic() + 20
    while True:
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return made
        assert time.monotonic() < end, (folder / "log").read_text()


@pytest.fixture(scope="module", params=["mosquitto", "nats"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with socket.socket() as held:  # bound, not listening: nobody else is given this port, and a broker can listen on it
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        made = started(request.param, tmp_path_factory.mktemp(request.param), held.getsockname()[1])
        try:
            yield made
        finally:
            made.process.kill()
            made.process.wait()


@pytest.fixture
async def outside(running: Outside) -> AsyncIterator[Outside]:
    yield running
    for peer in running.peers:
        peer.close()
    running.peers.clear()


async def message(peer: Peer) -> tuple[str, bytes]:
    """(topic, payload) of the next PUBLISH, acknowledged."""
    while (found := await peer.hear(20)) and found[0] >> 4 != 3:
        pass
    assert found, "the connection has ended"
    size = int.from_bytes(found[1:3], "big")
    at = 3 + size + (2 if found[0] & 6 else 0)
    if found[0] & 6:
        peer.say(b"\x40\x02" + found[3 + size : at])
    return found[3 : 3 + size].decode(), found[at:]


async def test_the_own_topics_work_both_ways(outside: Outside) -> None:
    server, device = await outside.online("@server"), await outside.online("edge-1")
    server.say(subscribe(*[topics.any_device(kind) for kind in topics.DEVICE_MAY_PUBLISH]))
    assert await server.hear() == b"\x90\x00\x01\x01\x01\x01"
    device.say(subscribe(OWN["desired"], OWN["ack"], topics.NOTICE, f"{topics.BLOB_PREFIX}/#"))
    assert await device.hear() == b"\x90\x00\x01\x01\x01\x01\x01"
    for number, kind in enumerate(topics.DEVICE_MAY_PUBLISH, 1):
        device.say(publish(OWN[kind], kind.encode(), number=number, retain=kind != "event"))
        assert await message(server) == (OWN[kind], kind.encode())
    for number, topic in enumerate((OWN["desired"], OWN["ack"], topics.NOTICE, f"{topics.BLOB_PREFIX}/x/0"), 1):
        server.say(publish(topic, b"yes", number=number, retain=topic == OWN["desired"]))
        assert await message(device) == (topic, b"yes")
    again = await outside.online("edge-1")
    again.say(subscribe(OWN["desired"]))
    assert await message(again) == (OWN["desired"], b"yes")  # retained


async def test_a_neighbours_topics_give_nothing(outside: Outside) -> None:
    """Published, retained, as a will, subscribed by name and by wildcard: the neighbour and the server hear nothing."""
    server, victim = await outside.online("@server"), await outside.online("edge-2")
    server.say(subscribe(f"{topics.PREFIX}/#"))
    assert await server.hear() == b"\x90\x00\x01\x01"
    victim.say(subscribe(THEIRS["desired"], THEIRS["ack"], topics.NOTICE))
    assert await victim.hear() == b"\x90\x00\x01\x01\x01\x01"
    server.say(publish(THEIRS["desired"], b"theirs", retain=True))
    assert await message(victim) == (THEIRS["desired"], b"theirs")
    forbidden = [*THEIRS.values(), topics.NOTICE, OWN["desired"], OWN["ack"], f"{topics.BLOB_PREFIX}/x/0"]
    for topic in forbidden:  # as a will: each connection ends the one before, whose will is due then
        await outside.ask("edge-1", connect(client_id="x", will=topic))
    await outside.ask("edge-1", connect(client_id="x"))
    attacker = await outside.online("edge-1")
    for number, topic in enumerate(forbidden, 1):
        attacker.say(publish(topic, b"forged", number=number), publish(topic, b"forged", number=number, retain=True))
    wide = ("#", "+/#", f"{topics.PREFIX}/#", topics.any_device("desired"), "$SYS/#", "$share/g/#")
    for number, one in enumerate((*wide, *THEIRS.values(), OWN["ack"]), 50):
        attacker.say(subscribe(one, number=number))
    attacker.say(publish(OWN["event"], b"fence", number=77))
    heard = [await message(server)]
    while heard[-1] != (OWN["event"], b"fence"):
        heard.append(await message(server))
    assert {payload for _, payload in heard} <= {b"theirs", b"yes", b"fence", *map(str.encode, OWN)}
    server.say(publish(THEIRS["ack"], b"fence"), publish(OWN["ack"], b"fence", number=2))
    assert await message(victim) == (THEIRS["ack"], b"fence")
    while (found := await message(attacker)) != (OWN["ack"], b"fence"):
        assert found[0] in OWN.values()  # a wildcard is granted by Mosquitto, and gives what is its own


async def test_nobody_else_is_let_in(outside: Outside, tmp_path: Path) -> None:
    foreign = await asyncio.to_thread(DeviceCA.open, tmp_path / "foreign")
    bare = ssl.create_default_context(cadata=outside.ca.tls_ca.decode())
    for context in (bare, Card(foreign, tmp_path, "edge-1").context(outside.ca.tls_ca), None):
        with contextlib.suppress(OSError):
            peer = await dial(outside.port, context)
            outside.peers.append(peer)
            peer.say(connect("edge-1", "secret"))
            assert (await peer.hear())[:1] in (b"", b"\x15")
    if outside.name == "nats":
        assert (await outside.ask("edge-3"))[1] == b"\x20\x00\x05"  # enrolled after the settings were written


async def test_a_client_id_takes_over_no_neighbour_with_mosquitto(outside: Outside) -> None:
    if outside.name != "mosquitto":
        pytest.skip("client ids are free on NATS: docs/reference/brokers.md says so")
    victim = await outside.online("edge-2")
    victim.say(subscribe(THEIRS["ack"]))
    assert await victim.hear() == b"\x90\x00\x01\x01"
    for client_id in ("edge-2", "interlock-edge-2"):
        assert (await outside.ask("edge-1", connect(client_id=client_id)))[1] == CONNECTED
    server = await outside.online("@server")
    server.say(publish(THEIRS["ack"], b"still here"))
    assert await message(victim) == (THEIRS["ack"], b"still here")


def keeper(outside: Outside, revoked: dict[str, datetime], pid: Path | None) -> Mosquitto:
    """The server's part."""

    async def read() -> dict[str, datetime]:
        return revoked

    return Mosquitto(Place("localhost", outside.port, outside.folder / "crl.pem", pid), outside.ca, read)


async def test_a_revoked_device_is_out_within_ten_seconds_and_stays_out(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    if outside.name != "mosquitto":
        await nats_forgets(outside)
        return
    revoked: dict[str, datetime] = {}
    device, neighbour = await outside.online("edge-3"), await outside.online("edge-2")
    mosquitto = keeper(outside, revoked, outside.folder / "pid")
    await mosquitto.start()
    revoked[outside.cards["edge-3"].serial] = datetime.now(UTC)
    before = time.monotonic()
    await mosquitto.cut("edge-3")
    assert await device.hear() == b""
    assert time.monotonic() - before < 10
    assert (await outside.ask("edge-3"))[1] == b""
    neighbour.say(b"\xc0\x00")
    assert await neighbour.hear() == b"\xd0"
    await mosquitto.cut("edge-3")  # again, and of one that is not connected
    assert mosquitto.uncertain == set()
    # A broker that is not told: the cut is not believed, but shown.
    deaf = keeper(outside, revoked, None)
    monkeypatch.setattr("interlock_server.adapters.mosquitto.CUT_S", 1.0)
    revoked[outside.cards["edge-1"].serial] = datetime.now(UTC)
    with pytest.raises(Unreachable, match="may still serve edge-1"):
        await deaf.cut("edge-1")
    assert deaf.uncertain == {"edge-1"}
    revoked.pop(outside.cards["edge-1"].serial)
    await mosquitto.start()


async def nats_forgets(outside: Outside) -> None:
    """NATS: the user is gone with the next reload, and so is its session."""
    device, neighbour = await outside.online("edge-1"), await outside.online("edge-2")
    path = outside.folder / "interlock.conf"
    before = await asyncio.to_thread(path.read_text)
    fewer = "".join(line for line in before.splitlines(keepends=True) if '"CN=edge-1"' not in line)
    await asyncio.to_thread(path.write_text, fewer)
    os.kill(outside.process.pid, signal.SIGHUP)
    assert await device.hear(20) == b""
    assert (await outside.ask("edge-1"))[1] == b"\x20\x00\x05"
    neighbour.say(b"\xc0\x00")
    assert await neighbour.hear() == b"\xd0"
    await asyncio.to_thread(path.write_text, before)
    os.kill(outside.process.pid, signal.SIGHUP)


# --- the texts -------------------------------------------------------------------------------------------------------


def test_the_settings_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in broker_config.BROKERS:
        assert main(["broker-config", name, f"--data={tmp_path}/none"]) == 0
        assert f"# ---- {broker_config.FOLDERS[name]}/" in capsys.readouterr().out
        assert main(["broker-config", name, f"--data={tmp_path}/none", f"--output={tmp_path}/x"]) == 2
        assert "--host" in capsys.readouterr().err
    assert main(["broker-config", "nats", f"--data={tmp_path}/none", "--device=../x"]) == 2
    assert "no device's id" in capsys.readouterr().err
    out = tmp_path / "emqx"
    DeviceCA.open(tmp_path / "data" / "keys")  # what a server has made
    words = ["broker-config", "emqx", f"--data={tmp_path}/data", f"--output={out}", "--host=broker.example"]
    assert main([*words, "--folder=/opt/there"]) == 0
    assert sorted(one.name for one in out.iterdir()) == sorted(
        ["acl.conf", "interlock.hocon", "broker.pem", "device_ca.pem", "crl.pem"]
    )
    assert (out / "broker.pem").stat().st_mode & 0o777 == 0o640
    text = (out / "interlock.hocon").read_text()
    assert 'path = "/opt/there/acl.conf"' in text
    assert text.count("{") == text.count("}")
    assert (out / "acl.conf").read_text().splitlines()[-1] == "{deny, all}."


def test_topics_become_subjects() -> None:
    assert broker_config.subjects("interlock/v1/device/a.b/event") == ["interlock.v1.device.a//b.event"]
    assert broker_config.subjects("a/+/#") == ["a.*", "a.*.>"]
