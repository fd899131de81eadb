"""The host's Store port over the fake disk: the same files as host/adapters/store.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from interlock_agent.host.states import Release
from tests.fakes.disk import Disk
from tests.fakes.points import Point, nowhere

SLOTS = ("a", "b")


def release_of(disk: Disk, folder: str, safe: bool = False) -> Release | None:
    """What the seal of a folder says."""
    raw = disk.read(f"{folder}/.interlock/seal.json", safe)
    try:
        seal = json.loads(raw or b"")
        return Release(seal["model"], seal["version"], seal["manifest_sha256"], int(seal["generation"]))
    except (ValueError, KeyError, TypeError):
        return None


class FakeStore:
    """`fails(what)` raises OSError where the disk is to refuse; `linked(unit, name, slot)` sees each link moved."""

    def __init__(
        self,
        disk: Disk,
        point: Point = nowhere,
        fails: Callable[[str], None] = lambda what: None,
        linked: Callable[[str, str, str], None] = lambda unit, name, slot: None,
    ) -> None:
        self.disk, self._point, self._fails, self._linked = disk, point, fails, linked
        disk.make("host")
        disk.make("slots")
        disk.sync_folder("")

    async def units(self) -> list[str]:
        """Units with a document."""
        return [name[:-5] for name in self.disk.names("host") if name.endswith(".json")]

    async def read(self, unit: str) -> dict[str, Any] | None:
        """The document."""
        raw = self.disk.read(f"host/{unit}.json")
        return None if raw is None else dict(json.loads(raw))

    async def write(self, unit: str, document: dict[str, Any]) -> None:
        """Replace the document."""
        await self._point("host record")
        self._fails("host record")
        self.disk.replace_file(f"host/{unit}.json", json.dumps(document, sort_keys=True).encode())
        await self._point("host recorded")

    async def links(self, unit: str) -> tuple[str, str]:
        """Slots of `confirmed` and `live`."""
        found = [self.disk.link(f"slots/{unit}/{name}") for name in ("confirmed", "live")]
        one, two = (target if target in SLOTS else "" for target in found)
        return one, two

    async def link(self, unit: str, name: str, slot: str) -> None:
        """Move a link."""
        await self._point(f"link {name} {slot}")
        self._fails(f"link {name}")
        self._linked(unit, name, slot)
        path = f"slots/{unit}/{name}"
        if slot:
            self.disk.replace_link(path, slot)
        elif self.disk.node(f"slots/{unit}") is not None:
            self.disk.remove_name(path)
        await self._point(f"linked {name} {slot}")

    async def seal(self, unit: str, slot: str) -> Release | None:
        """What the seal of a slot says."""
        return release_of(self.disk, f"slots/{unit}/{slot}")

    async def seal_of(self, folder: str) -> Release | None:
        """What the seal of a folder says."""
        return release_of(self.disk, folder)

    def slot_folder(self, unit: str, slot: str) -> str:
        """A slot's path."""
        return f"slots/{unit}/{slot}"
