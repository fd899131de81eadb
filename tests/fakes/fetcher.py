"""The agent's Fetcher, Hardware and Signer ports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interlock_agent.ports import Program
from interlock_shared import canonical, seals
from interlock_shared import manifest as manifests
from interlock_shared.errors import Later, NoSpace, Unreachable, Untrusted
from interlock_shared.manifest import Manifest
from tests.fakes.disk import Disk
from tests.fakes.points import Point, nowhere


@dataclass
class Shelf:
    """What there is to fetch, and how the network is."""

    releases: dict[str, Manifest]
    director: dict[str, Any]
    desired: Callable[[], Awaitable[bytes | None]]
    unreachable: Callable[[], bool] = lambda: False
    full: Callable[[], bool] = lambda: False
    genuine: Callable[[str], bool] = lambda version: True
    seconds: float = 0.5


class FakeSource:
    """The Source port: the same steps on the disk as fetcher/assemble.py."""

    def __init__(self, disk: Disk, shelf: Shelf, manifest: Manifest, point: Point, online: bool) -> None:
        self._disk, self._shelf, self._manifest, self._point, self._online = disk, shelf, manifest, point, online

    async def manifest(self) -> dict[str, Any]:
        """The head."""
        await self._point("fetch head")
        if self._online and self._shelf.unreachable():
            raise Unreachable("no network")
        m = self._manifest
        if not self._shelf.genuine(m.version):
            raise Untrusted(f"{m.release}: not signed", code="not_signed")
        return {
            "model": m.model,
            "version": m.version,
            "manifest_sha256": canonical.sha256(manifests.to_bytes(m)),
            "payload_sha256": m.payload_sha256(),
            "size": m.payload_size,
            "manifest": m.model_dump(mode="json", by_alias=True),
            "trust": {"floors": {"root": 1}, "director": self._shelf.director} if self._online else {},
        }

    async def proceed(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Bring the payload in."""
        m, raw = self._manifest, manifests.to_bytes(self._manifest)
        digest = canonical.sha256(raw)
        partial, final = f"incoming/{m.model}/.partial-{digest}", f"incoming/{m.model}/{digest}"
        await self._point("fetch opens")
        if self._shelf.full():
            raise NoSpace("no space beside the slots")
        for name in self._disk.names(f"incoming/{m.model}"):  # one attempt a unit
            if name not in (f".partial-{digest}", digest):
                self._disk.remove(f"incoming/{m.model}/{name}")
        self._disk.make_folder(f"{partial}/.interlock")
        for file in m.files:
            self._disk.write(f"{partial}/{file.name}", b"weights")
        await asyncio.sleep(self._shelf.seconds / 2)
        progress(m.payload_size // 2, m.payload_size)
        await self._point("fetch goes on")
        if self._online and self._shelf.unreachable():
            raise Unreachable("the connection broke")
        await asyncio.sleep(self._shelf.seconds / 2)
        self._disk.write(f"{partial}/.interlock/manifest.json", raw)
        self._disk.sync_tree(partial)
        await self._point("fetch synced")
        seal = seals.seal(m, digest, m.reference.name, 0)
        self._disk.replace_file(f"{partial}/.interlock/seal.json", seals.encode(seal))
        self._disk.remove(final)
        self._disk.rename_folder(partial, final)
        await self._point("fetched")
        return {"folder": final, "fetched": m.payload_size, "reused": 0}

    async def abandon(self) -> None:
        """End it."""


class FakeFetcher:
    """The Fetcher port."""

    def __init__(self, disk: Disk, shelf: Shelf, point: Point = nowhere) -> None:
        self._disk, self._shelf, self._point = disk, shelf, point

    async def online(self, unit: str, version: str, manifest_sha256: str) -> FakeSource:
        """From the server."""
        await self._point("fetch starts")
        return FakeSource(self._disk, self._shelf, self._shelf.releases[version], self._point, online=True)

    async def archive(self, descriptor: int) -> FakeSource:
        """From a file: the descriptor is the release's place on the shelf."""
        await self._point("archive opens")
        manifest = list(self._shelf.releases.values())[descriptor]
        return FakeSource(self._disk, self._shelf, manifest, self._point, online=False)

    async def refresh(self) -> dict[str, Any]:
        """Trust metadata."""
        await self._point("refresh")
        if self._shelf.unreachable():
            raise Unreachable("no network")
        return {"floors": {"root": 1}, "director": self._shelf.director}

    async def poll(self) -> bytes | None:
        """The desired document."""
        if self._shelf.unreachable():
            raise Unreachable("no network")
        return await self._shelf.desired()


class FakeHardware:
    """The Hardware port."""

    def __init__(self, facts: dict[str, Any] | None = None) -> None:
        self.facts = facts or {"gpu": "none", "driver": "none", "cpu": "sim"}

    async def fingerprint(self, worker_python: str) -> dict[str, Any]:
        """Facts."""
        return dict(self.facts)

    async def environment(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def pace(self) -> dict[str, str]:
        """Always the same."""
        return {}

    def free(self) -> dict[str, int]:
        """Plenty."""
        return {"memory_free_bytes": 1 << 30}

    def process(self, pid: int) -> dict[str, int]:
        """Nothing to tell."""
        del pid
        return {}

    def gpu_faults(self) -> int | None:
        """No GPU."""
        return None

    def energy_j(self) -> float | None:
        """Nothing to tell."""
        return None


class FakeSigner:
    """The Signer port: an envelope without a signature."""

    async def sign_verdict(self, verdict: Any) -> bytes:
        """Its content, to be looked at."""
        return json.dumps({"payload": verdict.model_dump(mode="json", by_alias=True)}).encode()


class FakeProbes:
    """The Probes port. `wrong[target]`: what is wrong with a command's first word, an address, a unit, a model."""

    def __init__(self, wrong: dict[str, str] | None = None) -> None:
        self.wrong = wrong if wrong is not None else {}
        self.asked: list[str] = []

    def _say(self, target: str) -> str:
        self.asked.append(target)
        return self.wrong.get(target, "")

    async def exec(self, command: Sequence[str], facts: Mapping[str, str]) -> str:
        """By its first word."""
        del facts
        return self._say(command[0])

    async def http(self, url: str) -> str:
        """By its address."""
        return self._say(url)

    async def systemd(self, unit: str) -> str:
        """By its name."""
        return self._say(unit)

    async def ready(self, address: str, model: str) -> str:
        """By the model's name."""
        del address
        return self._say(model)


class NoPrograms:
    """The Programs port of a device whose owner has none."""

    async def there(self, command: Sequence[str]) -> bool:
        """None is."""
        del command
        return False

    async def start(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> Program:
        """There is no such program."""
        del environment, folder
        raise Later(f"{command[0]}: none here", code="no_command")
