"""The scene of every attack: a device that serves a confirmed release to live traffic, and who attacks its fleet."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from interlock_shared import topics
from tests.attacks.impostor import Impostor
from tests.attacks.thief import Thief
from tests.e2e.traffic import Traffic
from tests.e2e.world import MODEL, Watcher, World, watched, world
from tests.rig.broker_tls import tls_context
from tests.rig.fleet import until

DEVICE = "press-7"
ROLE = topics.release_role(MODEL)


S = TypeVar("S")


@dataclass(frozen=True)
class Attack(Generic[S]):
    """A row: what somebody does, and what comes of it. `docs/reference/attacks.md` has the same rows."""

    name: str
    case: Callable[[S], None]
    outcome: str
    long: bool = False  # another row goes the same way: `make test-long` runs it


def rows_of(attacks: Iterable[Attack[S]]) -> list[Any]:
    """The rows as pytest's parameters."""
    marks = {True: (pytest.mark.long,), False: ()}
    return [pytest.param(one, id=one.name.replace(" ", "-"), marks=marks[one.long]) for one in attacks]


@dataclass
class Scene:
    """`traffic` runs during every row, and every row ends with the incumbent serving."""

    one: Watcher
    impostor: Impostor
    traffic: Traffic

    @property
    def world(self) -> World:
        """The real fleet."""
        return self.one.world

    @property
    def thief(self) -> Thief:
        """Somebody with the server's disk, as it is now."""
        return Thief(self.world.data, ROLE)

    def refuses(self, *codes: str, **options: Any) -> str:
        """A genuine new release is rolled out while the attack goes on; the device fails it for one of these reasons,
        and serves what it served. Its version."""
        return self.refuses_version(self.world.release(**options), *codes)

    def refuses_version(self, version: str, *codes: str) -> str:
        """The same, for a release that is there."""
        before = self.serves()
        rollout = self.one.wish(version)
        unit = self.one.rests(version, assignment=self.world.assignment(rollout)["assignment"])
        assert (unit["phase"], unit["reason"] in codes) == ("failed", True), unit
        assert self.serves() == before
        self.traffic.answered(3)
        return version

    @contextlib.contextmanager
    def attack(self) -> Iterator[None]:
        """What is forged in the block is over after it; the real server goes on above the versions that were forged, as
        it would after its keys were replaced."""
        with self.impostor.honest_again():
            yield
        for name in ("timestamp", "snapshot"):
            while self.stored(name) >= self.thief.read(self.thief.name(name)).version:
                self.world.release()

    def stored(self, role: str) -> int:
        """The version of a role in the device's metadata; 0: there is none that can be read."""
        try:
            return int(json.loads((self.store / f"{role}.json").read_bytes())["signed"]["version"])
        except (OSError, ValueError):
            return 0

    def sees_all(self, version: str = "") -> None:
        """The device has seen the metadata that it is shown: it is offered a release that is genuine and breaks its
        contract (that version, else one that is made for it), which is refused before anything is measured."""
        version = version or self.world.release(width=8)
        rollout = self.one.wish(version)
        unit = self.one.rests(version, assignment=self.world.assignment(rollout)["assignment"])
        assert unit["phase"] == "rejected", unit

    def recovers(self) -> str:
        """With everybody honest again the next release is proven and confirmed; its version."""
        version = self.world.release()
        rollout = self.one.wish(version)
        self.one.settles(version, rollout)
        return version

    def waits_version(self, version: str, code: str) -> None:
        """The release is rolled out while the attack goes on; the device waits, says why, and serves what it served."""
        before = self.serves()
        self.one.wish(version)
        until(lambda: (self.unit()["offered"], self.unit()["reason"]) == (version, code), f"{code}: {self.unit()}")
        assert (self.unit()["phase"], self.serves()) == ("waiting", before)
        self.traffic.answered(3)

    def fetches(self, version: str, pattern: str, *, ends: bool) -> None:
        """That release is rolled out, and the device asks for what is not as it should be; `ends`: it gives up, and
        says why. It serves what it served."""
        before, since = self.serves(), len(self.impostor.asked)
        self.one.wish(version)

        def tried() -> bool:
            return any(re.fullmatch(pattern, path) for path in self.impostor.asked[since:])

        until(tried, f"a request for {pattern}: {self.impostor.asked[since:]}")
        if ends:
            until(lambda: self.unit()["offered"] == version and self.unit()["reason"], f"a reason: {self.unit()}")
            assert self.unit()["phase"] in ("failed", "waiting"), self.unit()
        assert self.serves() == before
        self.traffic.answered(5)

    def unit(self) -> dict[str, Any]:
        """The unit, by the agent's word."""
        return dict(self.status()["units"][MODEL])

    def serves(self) -> str:
        """What answers requests now."""
        return str(self.unit()["running"])

    def status(self) -> dict[str, Any]:
        """The agent's word."""
        return self.one.device.ask("status")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of the device, that the server has."""
        return [one for one in self.world.events(self.one.device) if one["kind"] == kind]

    @property
    def store(self) -> Path:
        """The device's metadata."""
        return self.one.device.state / "trust" / "metadata"

    def floors(self) -> dict[str, Any]:
        """Versions below which the device does not go, from its second file."""
        return dict(json.loads((self.one.device.state / "agent" / "counters.json").read_text())["floors"])

    def tear(self, names: Mapping[str, str]) -> None:
        """Spoil files of the device's metadata as a power cut would have without fsync: `empty` or `gone`. The agent is
        not there meanwhile: a refresh that is under way would write them anew."""
        if names:
            assert self.one.device.agent.stop() == 0
        for name, how in names.items():
            for path in self.store.glob(name):
                if how == "empty":
                    path.write_bytes(b"")
                else:
                    path.unlink()
        if names:
            self.one.device.start_agent()


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    """A fleet whose device has a confirmed release, and asks an impostor who is honest until told otherwise."""
    with world(MODEL) as made:
        one = watched(made, DEVICE, {"listen": "127.0.0.1:0"})
        with one.web, one.broker, impostor_of(made) as impostor:
            one.web.target = impostor.address
            # The real server tells this to the device alone, whose key he has not.
            path = topics.DEVICE_DESIRED.replace("{id}", DEVICE)
            impostor.own[path] = lambda: b'{"desired":%b}' % (desired_of(made, DEVICE) or b"null")
            one.device.start()
            made.first(one.device)
            with one.traffic() as traffic:
                yield Scene(one, impostor, traffic)
            one.between.close()


def desired_of(made: World, device: str) -> bytes:
    """What the server wants of a device, as it has signed it: it passes through its broker. b"" before the first."""
    path = f"file:{made.data / 'server.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(path, uri=True, timeout=30)) as db:
        found = db.execute("SELECT desired FROM devices WHERE id = ?", (device,)).fetchone()
    return bytes(found[0] or b"")


def impostor_of(made: World) -> Impostor:
    """He has the server's certificate, too."""
    keys = made.data / "keys"
    return Impostor(made.url, made.token, keys / "server.pem", keys / "tls_ca.crt")


def broker_tls(made: World) -> ssl.SSLContext:
    """What a broker needs to be taken for the server's: its certificate, and whose certificates devices have."""
    keys = made.data / "keys"
    return tls_context(keys / "server.pem", keys / "server.pem", (keys / "device_ca.crt").read_bytes())
