"""A device's disk is stolen, somebody waits for new devices, or hands out files: against a real fleet whose device
serves live requests all the while."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata

from interlock_agent.fetcher import enrolment
from interlock_agent.fetcher.messages import Job
from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.publisher.keys import KeyFolder
from interlock_shared import canonical, topics
from interlock_shared.archive import Head
from tests.attacks.impostor import Impostor
from tests.attacks.scene import DEVICE, ROLE, Attack, rows_of
from tests.attacks.thief import encoded
from tests.e2e.test_sideload import exported, install
from tests.e2e.traffic import Traffic
from tests.e2e.world import MODEL, Watcher, World, watched, world
from tests.fetcher.repository import Repository
from tests.rig.fleet import Device, until
from tests.server.raw_mqtt import CONNECTED, connect, dial

pytestmark = pytest.mark.e2e

CUT_S = 10.0
NEIGHBOUR = "press-8"


@dataclass
class Hall:
    """A device that serves, and a neighbour that is enrolled and switched off."""

    one: Watcher
    neighbour: Device
    traffic: Traffic

    @property
    def world(self) -> World:
        """The real fleet."""
        return self.one.world

    def shown(self, device: str = DEVICE) -> dict[str, Any]:
        """A device as the server shows it."""
        return self.world.ask("GET", f"/v1/devices/{device}")

    def port(self) -> int:
        """Of the real broker."""
        return int(self.one.broker.target.rpartition(":")[2])

    def link(self) -> dict[str, Any]:
        """The device's session, by its own word."""
        return dict(self.one.device.ask("status")["link"])

    def connected(self) -> bool:
        """Whether it has one."""
        return bool(self.link()["connected"])

    def serves(self) -> str:
        """What answers requests; it does while this looks."""
        self.traffic.answered(3)
        return str(self.one.device.ask("status")["units"][MODEL]["running"])

    def stick(self) -> ssl.SSLContext:
        """What somebody connects with who has the device's disk."""
        made = ssl.create_default_context(cadata=self.world.ca)
        made.load_cert_chain(self.one.device.state / "identity" / "device.pem")
        return made

    def newcomer(self, name: str) -> Device:
        """A machine that was never enrolled, with an agent's configuration."""
        folder = self.world.folder / name
        (folder / "state").mkdir(parents=True)
        shutil.copy(self.one.device.config, folder / "agent.toml")
        text = (folder / "agent.toml").read_text().replace(str(self.one.device.folder), str(folder))
        (folder / "agent.toml").write_text(text)
        (folder / "run").mkdir()
        bare = self.one.device
        agent = replace(bare.agent, command=[*bare.agent.command[:-1], str(folder / "agent.toml")], popen=None)
        return replace(bare, folder=folder, config=folder / "agent.toml", agent=replace(agent, log=folder / "log"))

    def enrols(self, made: Device, token: dict[str, Any], name: str, url: str = "") -> tuple[int, str]:
        """`interlock-agent enrol`, as a technician types it: exit code, and what it says."""
        words = ("--token", token["token"], "--root-sha256", token["root_sha256"], "--name", name, "--no-wait")
        done = made.cli("enrol", "--server", url or self.world.url, *words, check=False)
        return done.returncode, done.stderr

    def token(self, **more: Any) -> dict[str, Any]:
        """An enrolment token."""
        return self.world.ask("POST", "/v1/device-tokens", more)


@pytest.fixture(scope="module")
def hall() -> Iterator[Hall]:
    with world(MODEL) as made:
        one = watched(made, DEVICE, {"listen": "127.0.0.1:0"})
        neighbour = made.device(NEIGHBOUR)
        with one.web, one.broker:
            one.device.start()
            made.first(one.device)
            with one.traffic() as traffic:
                yield Hall(one, neighbour, traffic)
            one.between.close()


# --- the disk --------------------------------------------------------------------------------------------------------


def _will(h: Hall) -> None:
    async def tries() -> list[bytes]:
        port, answers = h.port(), list[bytes]()
        for topic in ("presence", "event", "desired"):
            peer = await dial(port, h.stick())
            peer.say(connect(will=f"interlock/v1/device/{NEIGHBOUR}/{topic}", client_id="thief"))
            answers.append(await peer.hear())
            peer.close()
        return answers

    assert not [one for one in asyncio.run(tries()) if one.startswith(CONNECTED)]
    assert h.shown(NEIGHBOUR)["online"] is False
    assert h.connected(), "who is refused takes nothing over"


def _expired(h: Hall) -> None:
    """What the server has written down of the certificate's end is moved: its clock cannot be."""
    path = h.world.data / "server.db"

    def ends(at: str) -> str:
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as db, db:
            (before,) = db.execute("SELECT expires_at FROM certificates WHERE device = ?", (DEVICE,)).fetchone()
            db.execute("UPDATE certificates SET expires_at = ? WHERE device = ?", (at, DEVICE))
        return str(before)

    before = ends("2026-01-01T00:00:00.000000Z")
    h.one.broker.cut()
    until(lambda: "does not let" in h.link()["trouble"], "what the server says")
    assert not h.connected()
    ends(before)
    until(h.connected, "its session, with the certificate that holds")


def _cloned(h: Hall) -> None:
    copy = h.newcomer("copy")
    shutil.copytree(h.one.device.state, copy.state, dirs_exist_ok=True)
    copy.start_agent()
    try:
        found = until(lambda: h.shown()["clone"], "the clone to be seen")
    finally:
        copy.agent.kill()
    assert found["count"] >= 1, found
    until(h.connected, "the session of the one that is left")


def _reimaged(h: Hall) -> None:
    token = h.token(uses=2)
    code, said = h.enrols(h.newcomer("reimaged"), token, DEVICE)
    assert (code, "waiting_for_approval" in said) == (3, True), said
    assert [one["device"] for one in h.world.api("/v1/devices")["waiting"]] == [DEVICE]
    assert h.connected(), "the one that has the id keeps it"
    h.world.ask("POST", f"/v1/devices/{DEVICE}/refuse", {})


def _revoked(h: Hall) -> None:
    h.world.ask("POST", f"/v1/devices/{DEVICE}/revoke", {"reason": "stolen"})
    until(lambda: not h.connected(), "the end of its session", CUT_S)

    async def answer() -> bytes:
        peer = await dial(h.port(), h.stick())
        peer.say(connect(client_id=DEVICE))
        found = await peer.hear()
        peer.close()
        return found

    assert not asyncio.run(answer()).startswith(CONNECTED)
    token = h.token(device=DEVICE)
    wanted = Job("enrol", "", str(h.one.device.state), 0.0, "", server=h.world.url, name=DEVICE)
    facts = h.one.device.state / "identity" / "identity.json"
    doors = json.loads(facts.read_text())
    enrolment.enrol(replace(wanted, token=token["token"], root_sha256=token["root_sha256"]))
    fresh = json.loads(facts.read_text())
    facts.write_text(json.dumps({**fresh, "server": doors["server"], "broker": doors["broker"]}))
    h.one.device.agent.stop()
    h.one.device.start_agent()
    until(h.connected, "its return")
    assert h.shown()["clone"] is None, "a new identity"


# --- enrolment -------------------------------------------------------------------------------------------------------


def _used_token(h: Hall) -> None:
    token = h.token()
    assert h.enrols(h.newcomer("first"), token, "press-9")[0] == 0
    code, said = h.enrols(h.newcomer("second"), token, "press-10")
    assert (code, "token" in said) == (1, True), said
    assert "press-10" not in {one["id"] for one in h.world.api("/v1/devices")["devices"]}


def _in_the_middle(h: Hall) -> None:
    """He passes everything on; his certificate is by an authority of his own."""
    own = DeviceCA.open(h.world.folder / "his")
    own.server_files(["127.0.0.1"])
    keys = h.world.data / "keys"
    token, victim = h.token(), h.newcomer("victim")
    with Impostor(h.world.url, h.world.token, h.world.folder / "his" / "server.pem", keys / "tls_ca.crt") as impostor:
        code, said = h.enrols(victim, token, "press-11", f"https://{impostor.address}")
        assert code not in (0, 2), said
        assert impostor.asked, "he was asked for the root"
        assert topics.ENROL not in impostor.asked, "and heard no token"
    assert h.enrols(victim, token, "press-11")[0] == 0, "which is as good as before"


# --- a file ----------------------------------------------------------------------------------------------------------


def _unsigned(h: Hall, head: Head) -> Head:
    """The release role's metadata, by one key fewer than its threshold of 1."""
    name = next(one for one in head.metadata if one.endswith(f".{ROLE}.json"))
    metadata: Metadata[Any] = Metadata.from_bytes(head.metadata[name])
    metadata.signatures.clear()
    return replace(head, metadata={**head.metadata, name: canonical.encode(metadata.to_dict())})


def _commanding(h: Hall, head: Head) -> Head:
    """The signers of the model themselves want something run."""
    document = json.loads(head.data) | {"post_install": ["/bin/sh", "-c", f"touch {h.world.folder}/run-by-a-file"]}
    data = canonical.encode(document)
    name = next(one for one in head.metadata if one.endswith(f".{ROLE}.json"))
    metadata: Metadata[Any] = Metadata.from_bytes(head.metadata[name])
    target = metadata.signed.targets[topics.target_name(MODEL, str(document["version"]))]
    target.length, target.hashes = len(data), {"sha256": canonical.sha256(data)}
    signer: Any = KeyFolder(h.world.keys).signer(ROLE)
    return replace(head, data=data, metadata={**head.metadata, name: encoded(metadata.signed, signer)})


def _file(
    h: Hall, code: int, why: str, devices: tuple[str, ...] | None = (DEVICE,), change: Any = None, foreign: bool = False
) -> None:
    before = h.serves()
    if foreign:
        file: Path = h.world.folder / "foreign.bundle"
        file.write_bytes(Repository(now=datetime.now(UTC)).bundle())
    else:
        changed = None if change is None else partial(change, h)
        file = exported(h.world, h.world.release(), None if devices is None else list(devices), changed)
    got, document = install(h.one, file)
    said = document.get("error") or document
    assert (got, said.get("reason") or said["code"]) == (code, why), document
    assert not [name for _, _, names in os.walk(h.one.device.state / "incoming") for name in names]
    assert not (h.world.folder / "run-by-a-file").exists()
    assert h.serves() == before


ATTACKS: tuple[Attack[Hall], ...] = (
    Attack("a will on a neighbour's topic", _will, "refused at CONNECT; nobody hears it"),
    Attack("a certificate that has expired", _expired, "no session; the device serves on"),
    Attack("a device is re-imaged with its old id", _reimaged, "waits for a person; the device keeps its session"),
    Attack("a token is used again", _used_token, "refused"),
    Attack("somebody in the middle of an enrolment", _in_the_middle, "hears no token"),
    Attack(
        "a file of another fleet", partial(_file, code=10, why="unknown_root", foreign=True), "refused: exit code 10"
    ),
    Attack(
        "a file without a permit",
        partial(_file, code=12, why="no_permit", change=lambda _, head: replace(head, permit=None)),
        "refused: exit code 12",
    ),
    Attack(
        "a file with a permit for another device",
        partial(_file, code=12, why="other_device", devices=(NEIGHBOUR,)),
        "refused: exit code 12",
    ),
    Attack(
        "a file whose release has too few signatures",
        partial(_file, code=17, why="bad_metadata", change=_unsigned),
        "refused: exit code 17",
    ),
    Attack(
        "a file whose manifest carries a command, signed by the release role",
        partial(_file, code=18, why="invalid", change=_commanding),
        "refused: by the field; nothing is run",
    ),
    Attack("a device is cloned, both machines run", _cloned, "shown"),
    Attack("a device is revoked", _revoked, "out within 10 s; in again by a token for it"),
)


@pytest.mark.parametrize("attack", rows_of(ATTACKS))
def test_a_stolen_device(hall: Hall, attack: Attack[Hall]) -> None:
    before = hall.serves()
    attack.case(hall)
    assert hall.serves() == before


def test_afterwards_the_next_release_is_proven_as_ever(hall: Hall) -> None:
    version = hall.world.release()
    hall.one.settles(version, hall.one.wish(version))
