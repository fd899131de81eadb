"""The Slots port over the fake disk: the same folders as adapters/slots.py, the same order of steps."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from typing import Any

from interlock_agent.ports import Staged
from interlock_shared import canonical, seals
from interlock_shared import manifest as manifests
from interlock_shared.errors import Later, NoSpace, NotFound
from tests.fakes.disk import Disk
from tests.fakes.points import Point, nowhere

OURS = ".interlock"
SLOTS = ("a", "b")


class FakeSlots:
    """`full()` says whether the next write finds no space."""

    def __init__(self, disk: Disk, point: Point = nowhere, full: Callable[[], bool] = lambda: False) -> None:
        self.disk, self._point, self._full = disk, point, full

    def _unit(self, unit: str) -> str:
        return f"slots/{unit}"

    def _incoming(self, unit: str, manifest_sha256: str) -> str:
        return f"incoming/{unit}/{manifest_sha256}"

    def _space(self) -> None:
        if self._full():
            raise NoSpace("no space left")

    def _seal(self, folder: str) -> dict[str, Any] | None:
        raw = self.disk.read(f"{folder}/{OURS}/seal.json")
        try:
            document = json.loads(raw) if raw is not None else None
        except ValueError:
            return None
        return document if isinstance(document, dict) and document.get("schema") == seals.SCHEMA else None

    async def spare(self, unit: str) -> str:
        """Not the confirmed one."""
        return "b" if await self.confirmed_slot(unit) == "a" else "a"

    async def confirmed_slot(self, unit: str) -> str:
        """Where `confirmed` points."""
        target = self.disk.link(f"{self._unit(unit)}/confirmed")
        return target if target in SLOTS else ""

    async def folder(self, unit: str, slot: str) -> str:
        """A slot's path."""
        return f"{self._unit(unit)}/{slot}"

    async def seal_of(self, unit: str, slot: str) -> dict[str, Any] | None:
        """The seal of a slot."""
        return self._seal(f"{self._unit(unit)}/{slot}")

    async def manifest_of(self, unit: str, slot: str) -> bytes:
        """The manifest in a slot."""
        data = self.disk.read(f"{self._unit(unit)}/{slot}/{OURS}/manifest.json")
        if data is None:
            raise NotFound(f"{unit}: slot {slot} holds no release", code="slot_empty")
        return data

    async def staged(self, unit: str, manifest_sha256: str) -> Staged | None:
        """The complete incoming folder."""
        folder = self._incoming(unit, manifest_sha256)
        seal, raw = self._seal(folder), self.disk.read(f"{folder}/{OURS}/manifest.json")
        return None if seal is None or raw is None else Staged(folder, raw, str(seal["payload_sha256"]))

    async def prepare(self, unit: str, manifest_sha256: str, variant: str, generation: int) -> str:
        """Seal the incoming folder."""
        await self._point("seal incoming")
        self._space()
        folder = self._incoming(unit, manifest_sha256)
        raw = self.disk.read(f"{folder}/{OURS}/manifest.json")
        if raw is None:
            raise Later("the staged folder is gone", code="io")
        document = seals.seal(manifests.parse(raw), manifest_sha256, variant, generation)
        self.disk.replace_file(f"{folder}/{OURS}/seal.json", seals.encode(document))
        await self._point("sealed incoming")
        return folder

    async def fill(self, unit: str, manifest_sha256: str, slot: str, generation: int) -> None:
        """Replace the spare slot by the incoming folder."""
        await self._point("fill")
        self._space()
        if await self.confirmed_slot(unit) == slot:
            raise Later(f"{unit}: slot {slot} is the confirmed one", code="slot_confirmed")
        incoming, target = self._incoming(unit, manifest_sha256), f"{self._unit(unit)}/{slot}"
        if self.disk.node(incoming) is None:
            seal = self._seal(target)
            if seal and seal["manifest_sha256"] == manifest_sha256 and seal["generation"] == generation:
                return
            raise Later(f"{unit}: the staged folder is gone", code="staging_lost")
        self.disk.make_folder(self._unit(unit))
        for kind in ("", ".samples"):
            kept = self.disk.read(f"verdicts/{unit}/{generation}{kind}.json")
            if kept is not None:
                name = "samples.json" if kind else "verdict.json"
                self.disk.replace_file(f"{incoming}/{OURS}/{name}", kept)
        if self.disk.node(target) is not None:
            trash = f"incoming/.trash-{unit}-{slot}"
            self.disk.remove(trash)
            self.disk.rename_folder(target, trash)
            await self._point("spare cleared")
            self.disk.remove(trash)
        if self.disk.node(incoming) is None:
            raise Later(f"{unit}: the staged folder is gone", code="io")
        self.move(incoming, target)
        await self._point("filled")

    def move(self, incoming: str, target: str) -> None:
        """The last step of `fill`."""
        self.disk.rename_folder(incoming, target)

    async def drop(self, unit: str) -> None:
        """Remove what is beside the slots."""
        await self._point("drop incoming")
        self.disk.remove(f"incoming/{unit}")
        await self._point("dropped incoming")

    def partial(self, unit: str, manifest_sha256: str) -> str:
        """Where the fetcher assembles."""
        return f"incoming/{unit}/.partial-{manifest_sha256}"

    async def keep_verdict(self, unit: str, generation: int, verdict: bytes, samples: bytes) -> None:
        """Keep a verdict and its samples."""
        await self._point("keep verdict")
        self._space()
        self.disk.make_folder(f"verdicts/{unit}")
        self.disk.replace_file(f"verdicts/{unit}/{generation}.samples.json", samples)
        self.disk.replace_file(f"verdicts/{unit}/{generation}.json", verdict)
        await self._point("kept verdict")

    async def verdict(self, unit: str, generation: int | None = None) -> dict[str, Any] | None:
        """The verdict of a generation, or the newest."""
        stems = [name[:-5] for name in self.disk.names(f"verdicts/{unit}") if name.endswith(".json")]
        kept = sorted(int(stem) for stem in stems if stem.isdigit())
        wanted = generation if generation is not None else (kept[-1] if kept else None)
        raw = None if wanted is None else self.disk.read(f"verdicts/{unit}/{wanted}.json")
        return None if raw is None else dict(json.loads(raw))

    async def recorded(
        self, unit: str, slot: str, payload_sha256: str, fingerprint: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The newest verdict that accepted this payload under this fingerprint, in the form that the slot holds, and
        its samples."""
        served = (await self.seal_of(unit, slot) or {}).get("variant")
        stems = [name[:-5] for name in self.disk.names(f"verdicts/{unit}") if name.endswith(".json")]
        kept = [f"verdicts/{unit}/{number}" for number in sorted((int(s) for s in stems if s.isdigit()), reverse=True)]
        own = f"{self._unit(unit)}/{slot}/{OURS}"
        pairs = [(f"{path}.json", f"{path}.samples.json") for path in kept]
        for path, beside in (*pairs, (f"{own}/verdict.json", f"{own}/samples.json")):
            raw, samples = self.disk.read(path), self.disk.read(beside)
            verdict = json.loads(raw) if raw else {}
            about = (verdict.get("payload_sha256"), verdict.get("fingerprint"), verdict.get("outcome"))
            whole = samples is not None and verdict.get("samples_sha256") == canonical.sha256(samples)
            same = served in (None, verdict.get("variant", served))
            if samples and whole and same and about == (payload_sha256, fingerprint, "accept"):
                return verdict, dict(json.loads(samples))
        return None

    async def contract(self, unit: str) -> dict[str, Any] | None:
        """The unit's contract."""
        raw = self.disk.read(f"{self._unit(unit)}/contract.json")
        return None if raw is None else dict(json.loads(raw))

    async def set_contract(self, unit: str, contract: dict[str, Any]) -> None:
        """Write the contract."""
        await self._point("contract")
        self._space()
        self.disk.make_folder(self._unit(unit))
        self.disk.replace_file(f"{self._unit(unit)}/contract.json", json.dumps(contract).encode())
        await self._point("contracted")

    async def units(self) -> list[str]:
        """Units with a folder."""
        return self.disk.names("slots")


def no_space(path: str) -> OSError:
    """As a full disk says it."""
    return OSError(errno.ENOSPC, "No space left on device", path)
