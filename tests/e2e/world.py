"""A fleet whose people act in this process where that saves the start of a command, and what tests look at."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from interlock_agent.fetcher import enrolment
from interlock_agent.fetcher.messages import Job
from interlock_server.publisher import parcels, release
from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import KeyFolder
from tests.e2e import releases
from tests.e2e.between import Between
from tests.e2e.doors import Door
from tests.e2e.traffic import Traffic
from tests.rig.fleet import Device, Fleet, host_toml, until

MODEL = releases.MODEL
RESTING = ("confirmed", "reverted", "rejected", "failed", "cancelled", "superseded")
Json = dict[str, Any]


class RefusedError(Exception):
    """The server said no."""

    def __init__(self, status: int, document: Json) -> None:
        super().__init__(f"{status}: {document}")
        self.status, self.document = status, document


@dataclass
class World(Fleet):
    """A server with keys for `models`."""

    scales: dict[str, float] = field(default_factory=dict)
    _number: int = 0

    def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """The API, as an admin."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.tls) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as refused:
            with refused:
                raise RefusedError(refused.code, json.loads(refused.read())) from None

    def trust(self, *models: str) -> None:
        """Keys of the fleet."""

        async def work() -> None:
            async with Api(self.url, self.token, self.ca) as api:
                await release.trust(api, KeyFolder(self.keys), list(models), datetime.now(UTC))

        asyncio.run(work())

    def add_model(self, model: str) -> None:
        """One more release role: targets has a new version."""
        self.cli("keys", "add-model", model, "--no-passphrase")

    def publish(self, folder: Path) -> Json:
        """Sign and upload."""

        async def work() -> Json:
            async with Api(self.url, self.token, self.ca) as api:
                parcel = await asyncio.to_thread(parcels.of_folder, folder)
                return await release.publish(api, KeyFolder(self.keys), parcel, datetime.now(UTC))

        return asyncio.run(work())

    def release(self, version: str = "", scale: float = 0.0, **options: Any) -> str:
        """Make and publish a release; its version. Each has weights of its own unless `scale` says otherwise."""
        self._number += 1
        version = version or f"1.{self._number}.0"
        scale = scale or 1.0 + self._number / 8
        self.scales[version] = scale
        self.publish(releases.write(self.folder / "releases" / f"{self._number}", version, scale, **options))
        return version

    def roll_out(self, version: str, to: Json | None = None, model: str = MODEL) -> str:
        """Start a rollout; its id."""
        return str(
            self.ask("POST", "/v1/rollouts", {"model": model, "version": version, "to": to or {"all": True}})["id"]
        )

    def assignment(self, rollout: str, device: str = "") -> Json:
        """A device's part of a rollout."""
        found = self.ask("GET", f"/v1/rollouts/{rollout}")["assignments"]
        return dict(next(one for one in found if device in ("", one["device"])))

    def server_says(self, rollout: str, *states: str, device: str = "") -> Json:
        """Wait until the server knows one of these results."""
        found: Json = {}

        def look() -> bool:
            found.update(self.assignment(rollout, device))
            return found["state"] in states

        try:
            until(look, "the server's word")
        except AssertionError as late:
            raise AssertionError(f"{late}: {found}, not {states}") from None
        return found

    def join(self, made: Device, labels: Mapping[str, str]) -> None:
        """Enrol in this process."""
        token = self.ask("POST", "/v1/device-tokens", {"labels": dict(labels), "device": made.name})
        wanted = Job("enrol", "", str(made.state), 0.0, "", server=self.url, name=made.name)
        enrolment.enrol(replace(wanted, token=token["token"], root_sha256=token["root_sha256"]))

    def events(self, device: Device) -> list[Json]:
        """The device's history as the server has it, oldest first."""
        return list(reversed(self.ask("GET", f"/v1/devices/{device.name}/history?limit=1000")["events"]))

    def first(self, device: Device, **options: Any) -> str:
        """A first release, confirmed there."""
        version = self.release(**options)
        self.server_says(self.roll_out(version, {"device": device.name}), "confirmed")
        return version


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="il-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def world(*models: str) -> Iterator[World]:
    """A running server with trust; ended whatever happens."""
    with temporary() as folder:
        made = World(folder, dict(os.environ))
        try:
            made.start_server()
            made.trust(*(models or (MODEL,)))
            yield made
        finally:
            made.stop()


@dataclass
class Watcher:
    """One device with something between agent and host, and doors between it and the server."""

    world: World
    device: Device
    between: Between
    web: Door
    broker: Door

    def wish(self, version: str) -> str:
        """Roll out to this device alone."""
        return self.world.roll_out(version, {"device": self.device.name})

    def phase(self, model: str = MODEL) -> str:
        """The unit's phase in the journal."""
        found = rows(self.device, "SELECT document FROM unit WHERE name = ?", model)
        return str(json.loads(found[0][0])["phase"]) if found else "idle"

    def reaches(self, *phases: str, model: str = MODEL) -> str:
        """Wait until the journal has it in one of the phases."""
        return str(until(lambda: (p := self.phase(model)) in phases and p, f"{phases}, it is {self.phase(model)}"))

    def rests(self, version: str, model: str = MODEL, assignment: str = "") -> Json:
        """Wait until the attempt with that version (and assignment) rests; the unit as the agent tells it."""

        def look() -> Json | None:
            try:
                unit = self.device.ask("status")["units"].get(model, {})
            except Exception:  # noqa: BLE001  # the agent may be starting
                return None
            mine = unit.get("offered") == version and assignment in ("", unit["assignment"])
            return dict(unit) if mine and unit["phase"] in RESTING else None

        return dict(until(look, f"{version} to rest; it is {self.phase(model)}"))

    def settles(self, version: str, rollout: str, state: str = "confirmed", runs: str = "") -> None:
        """Device and server agree in the end."""
        unit = self.rests(version, assignment=self.world.assignment(rollout)["assignment"] if rollout else "")
        assert unit["phase"] == state, unit
        until(lambda: self.device.ask("status")["units"][MODEL]["running"] == (runs or version), "what runs")
        if rollout:
            self.world.server_says(rollout, state)

    def address(self) -> str:
        """Where applications find the model."""
        return str(self.device.ask("status")["units"][MODEL]["address"])

    def traffic(self) -> Traffic:
        """Live requests to it."""
        return Traffic(self.address(), self.world.scales)


def rows(device: Device, query: str, *arguments: Any) -> list[Any]:
    """A look into the agent's journal, which it goes on writing."""
    path = device.state / "agent" / "journal.db"
    for _ in range(50):
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
                return db.execute(query, arguments).fetchall()
        except sqlite3.OperationalError:
            time.sleep(0.02)  # it is being made, or its log is being written back
    return []


def watched(
    made: World, name: str, unit: Mapping[str, Any] | None = None, labels: Mapping[str, str] | None = None
) -> Watcher:
    """A device, enrolled, not started; everything that it says to others can be stopped."""
    device = made.device(name, unit, labels)
    device.host_socket = "h.sock"
    run = device.folder / "run"
    (device.folder / "host.toml").write_text(host_toml(device.folder) + f'control_socket = "{run}/h.sock"\n')
    web = Door(made.url.removeprefix("https://"))
    path = device.state / "identity" / "identity.json"
    facts = json.loads(path.read_text())
    scheme, _, address = facts["broker"].partition("://")
    broker = Door(address)
    facts |= {"server": f"https://{web.address}", "broker": f"{scheme}://{broker.address}"}
    path.write_text(json.dumps(facts))
    return Watcher(made, device, Between(run / "host.sock", run / "h.sock"), web, broker)


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """`until`, for conditions that may raise while things start."""

    def look() -> Any:
        try:
            return condition()
        except (OSError, AssertionError, RefusedError, LookupError):
            return None

    return until(look, what)
