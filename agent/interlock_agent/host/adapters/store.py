"""Durable state on a file system: `<state>/host/<unit>.json`, and the links in `<state>/slots/<unit>/`.

Rules of the file:
- Everything is written through the durable-replace helper; on return it survives a power cut.
- A document that cannot be read is set aside under another name and reported, never silently reset.
- Links are relative and point to `a` or `b`, anything else counts as no link.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from interlock_agent.host.states import SCHEMA, SLOTS, UNIT_NAME, Release
from interlock_shared import durable

MAX_SEAL_BYTES = 16 * 1024 * 1024

T = TypeVar("T")


class FileStore:
    """`ports.Store` under a state folder. Makes the folders it needs."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._host = state / "host"
        for folder in (self._host, state / "slots"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            durable.fsync_folder(folder.parent)
        durable.sweep(self._host)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, work)

    async def units(self) -> list[str]:
        """Names of the units that have a document."""
        listed = await self._do(lambda: os.listdir(self._host))
        names = {name[:-5] for name in listed if name.endswith(".json")}
        return sorted(name for name in names if UNIT_NAME.fullmatch(name))

    async def read(self, unit: str) -> dict[str, Any] | None:
        """The document. Raises ValueError after it set a broken one aside."""
        return await self._do(lambda: self._read(unit))

    def _read(self, unit: str) -> dict[str, Any] | None:
        path = self._host / f"{unit}.json"
        try:
            document = json.loads(path.read_bytes())
            _check(document, unit)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as broken:
            aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
            durable.rename_folder(path, aside)
            raise ValueError(f"{aside}: {broken}") from None
        return dict(document)

    async def write(self, unit: str, document: dict[str, Any]) -> None:
        """Replace the document. Raises OSError."""
        data = json.dumps(document, indent=1, sort_keys=True).encode()
        await self._do(lambda: durable.replace_file(self._host / f"{unit}.json", data))

    def _slots(self, unit: str) -> Path:
        return self._state / "slots" / unit

    def slot_folder(self, unit: str, slot: str) -> str:
        """The absolute path of a slot."""
        return str((self._slots(unit) / slot).absolute())

    async def links(self, unit: str) -> tuple[str, str]:
        """Slots of `confirmed` and `live`."""

        def look(name: str) -> str:
            try:
                target = os.readlink(self._slots(unit) / name)
            except OSError:
                return ""
            return target if target in SLOTS else ""

        return await self._do(lambda: (look("confirmed"), look("live")))

    async def link(self, unit: str, name: str, slot: str) -> None:
        """Point a link to a slot; "" removes it. Raises OSError."""
        path = self._slots(unit) / name

        def work() -> None:
            if slot:
                durable.replace_link(path, slot)
            elif path.parent.is_dir():
                durable.remove(path)

        await self._do(work)

    async def seal(self, unit: str, slot: str) -> Release | None:
        """What the seal of a slot says."""
        return await self.seal_of(self.slot_folder(unit, slot))

    async def seal_of(self, folder: str) -> Release | None:
        """What the seal of a folder says; None when it cannot be read."""

        def work() -> Release | None:
            try:
                with (Path(folder) / ".interlock" / "seal.json").open("rb") as file:
                    seal = json.loads(file.read(MAX_SEAL_BYTES))
                return Release(
                    str(seal["model"]),
                    str(seal["version"]),
                    str(seal["manifest_sha256"]),
                    int(seal["generation"]),
                    str(seal["variant"]),
                )
            except (OSError, ValueError, KeyError, TypeError):
                return None

        return await self._do(work)


def _check(document: Any, unit: str) -> None:
    """Raises ValueError, KeyError or TypeError when the document is not one of ours."""
    if document["schema"] != SCHEMA or document["unit"] != unit:
        raise ValueError(f"schema {document['schema']!r} of {document['unit']!r}")
    int(document["generation"])
    if document["trial"] is not None and document["trial"]["slot"] not in SLOTS:
        raise ValueError(f"trial in slot {document['trial']['slot']!r}")
    if document["trial"] is not None:
        int(document["trial"]["generation"])
    if document["outcome"] is not None:
        for name in ("generation", "outcome", "reason", "at"):
            _ = document["outcome"][name]
    if not isinstance(document["options"], dict) or not isinstance(document["listen"], str):
        raise TypeError("listen and options")
