"""The folders of the device.

    STATE/slots/UNIT/a, b           the two slots; files at top level, ours under `.interlock/`
    STATE/slots/UNIT/confirmed      relative links, moved by the host alone
    STATE/slots/UNIT/live
    STATE/slots/UNIT/contract.json
    STATE/incoming/UNIT/DIGEST      beside the slots, on the same file system; complete when it has a seal
    STATE/verdicts/UNIT/GENERATION.json, .samples.json

The confirmed slot is never written to. Everything blocking runs in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from interlock_agent.ports import Staged
from interlock_shared import canonical, durable, seals
from interlock_shared import manifest as manifests
from interlock_shared.errors import Later, NoSpace, NotFound

T = TypeVar("T")

OURS = ".interlock"
VERDICTS_KEPT = 20  # of a unit
SLOTS = ("a", "b")


class SlotFolders:
    """The Slots port."""

    def __init__(self, state: Path) -> None:
        self._state = state

    async def _run(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                return work()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise NoSpace(f"{error.filename or self._state}: no space left") from None
                raise Later(f"{error.filename or self._state}: {error.strerror}", code="io") from None

        thread = asyncio.ensure_future(asyncio.to_thread(guarded))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:  # whoever comes next must not meet it half done
            await asyncio.wait([thread])
            raise

    def _unit(self, unit: str) -> Path:
        return self._state / "slots" / unit

    def _incoming(self, unit: str, manifest_sha256: str) -> Path:
        return self._state / "incoming" / unit / manifest_sha256

    @staticmethod
    def _seal(folder: Path) -> dict[str, Any] | None:
        try:
            document = json.loads((folder / OURS / "seal.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return document if isinstance(document, dict) and document.get("schema") == seals.SCHEMA else None

    def _link(self, unit: str, name: str) -> str:
        try:
            target = os.readlink(self._unit(unit) / name)
        except (FileNotFoundError, OSError):
            return ""
        return target if target in SLOTS else ""

    async def spare(self, unit: str) -> str:
        """The slot that `confirmed` does not point at."""
        return "b" if await self.confirmed_slot(unit) == "a" else "a"

    async def confirmed_slot(self, unit: str) -> str:
        """Where `confirmed` points."""
        return await self._run(lambda: self._link(unit, "confirmed"))

    async def folder(self, unit: str, slot: str) -> str:
        """Absolute path of a slot."""
        return str((self._unit(unit) / slot).absolute())

    async def seal_of(self, unit: str, slot: str) -> dict[str, Any] | None:
        """The seal of a slot."""
        return await self._run(lambda: self._seal(self._unit(unit) / slot))

    async def manifest_of(self, unit: str, slot: str) -> bytes:
        """The manifest's bytes in a slot."""

        def work() -> bytes:
            try:
                return (self._unit(unit) / slot / OURS / "manifest.json").read_bytes()
            except FileNotFoundError:
                raise NotFound(f"{unit}: slot {slot} holds no release", code="slot_empty") from None

        return await self._run(work)

    async def staged(self, unit: str, manifest_sha256: str) -> Staged | None:
        """The complete incoming folder of a manifest."""

        def work() -> Staged | None:
            folder = self._incoming(unit, manifest_sha256)
            seal = self._seal(folder)
            if seal is None:
                return None
            return Staged(str(folder), (folder / OURS / "manifest.json").read_bytes(), str(seal["payload_sha256"]))

        return await self._run(work)

    async def prepare(self, unit: str, manifest_sha256: str, variant: str, generation: int) -> str:
        """Seal the incoming folder for one variant and generation."""

        def work() -> str:
            folder = self._incoming(unit, manifest_sha256)
            manifest = manifests.parse((folder / OURS / "manifest.json").read_bytes())
            document = seals.seal(manifest, manifest_sha256, variant, generation)
            durable.replace_file(folder / OURS / "seal.json", seals.encode(document), mode=0o644)
            return str(folder.absolute())

        return await self._run(work)

    async def fill(self, unit: str, manifest_sha256: str, slot: str, generation: int) -> None:
        """Replace the spare slot by the incoming folder. A cut at any instant leaves the old slot, no slot, or the
        new one, each of which the next call goes on from."""

        def work() -> None:
            if self._link(unit, "confirmed") == slot:
                raise Later(f"{unit}: slot {slot} is the confirmed one", code="slot_confirmed")
            incoming, target = self._incoming(unit, manifest_sha256), self._unit(unit) / slot
            if not incoming.exists():
                seal = self._seal(target)
                if seal and seal["manifest_sha256"] == manifest_sha256 and seal["generation"] == generation:
                    return  # done before the cut
                raise Later(f"{unit}: the staged folder is gone", code="staging_lost")
            durable.make_folder(self._unit(unit))
            (incoming / OURS / "answers.npz").unlink(missing_ok=True)  # what the gate compared variants with
            for kind in ("", ".samples"):
                kept = self._verdicts(unit) / f"{generation}{kind}.json"
                if kept.exists():
                    name = "samples.json" if kind else "verdict.json"
                    durable.replace_file(incoming / OURS / name, kept.read_bytes(), mode=0o644)
            self._clear(target)
            durable.rename_folder(incoming, target)

        await self._run(work)

    def _clear(self, folder: Path) -> None:
        if folder.exists():
            trash = self._state / "incoming" / f".trash-{folder.parent.name}-{folder.name}"
            shutil.rmtree(trash, ignore_errors=True)
            durable.rename_folder(folder, trash)
            shutil.rmtree(trash, ignore_errors=True)

    async def drop(self, unit: str) -> None:
        """Remove what is beside the slots, complete or not."""

        def work() -> None:
            shutil.rmtree(self._state / "incoming" / unit, ignore_errors=True)

        await self._run(work)

    def partial(self, unit: str, manifest_sha256: str) -> Path:
        """Where the fetcher assembles; renamed to the incoming folder when complete."""
        return self._state / "incoming" / unit / f".partial-{manifest_sha256}"

    def incoming(self, unit: str, manifest_sha256: str) -> Path:
        """The complete folder beside the slots."""
        return self._incoming(unit, manifest_sha256)

    # --- verdicts, contract -------------------------------------------------------------------------------------

    def _verdicts(self, unit: str) -> Path:
        return self._state / "verdicts" / unit

    async def keep_verdict(self, unit: str, generation: int, verdict: bytes, samples: bytes) -> None:
        """Keep a verdict and its raw samples for people; the oldest go."""

        def work() -> None:
            folder = self._verdicts(unit)
            durable.make_folder(folder)
            durable.replace_file(folder / f"{generation}.samples.json", samples, mode=0o644)
            durable.replace_file(folder / f"{generation}.json", verdict, mode=0o644)
            kept = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())
            for old in kept[:-VERDICTS_KEPT]:
                for path in (folder / f"{old}.json", folder / f"{old}.samples.json"):
                    path.unlink(missing_ok=True)

        await self._run(work)

    async def verdicts(self, unit: str) -> list[int]:
        """The generations of which a verdict is kept."""
        return await self._run(lambda: self._kept(unit))

    def _kept(self, unit: str) -> list[int]:
        return sorted(int(path.stem) for path in self._verdicts(unit).glob("*.json") if path.stem.isdigit())

    async def verdict(self, unit: str, generation: int | None = None) -> dict[str, Any] | None:
        """The verdict of a generation, or the newest one."""

        def work() -> dict[str, Any] | None:
            kept = self._kept(unit)
            wanted = generation if generation is not None else (kept[-1] if kept else None)
            if wanted is None or wanted not in kept:
                return None
            document = json.loads((self._verdicts(unit) / f"{wanted}.json").read_bytes())
            return document if isinstance(document, dict) else None

        return await self._run(work)

    async def recorded(
        self, unit: str, slot: str, payload_sha256: str, fingerprint: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The newest verdict that accepted this payload under this fingerprint, in the form that the slot holds, and
        its samples."""

        def work() -> tuple[dict[str, Any], dict[str, Any]] | None:
            served = (self._seal(self._unit(unit) / slot) or {}).get("variant")
            folder, own = self._verdicts(unit), self._unit(unit) / slot / OURS
            pairs = [(folder / f"{number}.json", folder / f"{number}.samples.json") for number in self._kept(unit)]
            for path, beside in ((own / "verdict.json", own / "samples.json"), *pairs)[::-1]:
                try:
                    verdict, raw = json.loads(path.read_bytes()), beside.read_bytes()
                except (FileNotFoundError, NotADirectoryError, ValueError):
                    continue
                about = (verdict.get("payload_sha256"), verdict.get("fingerprint"), verdict.get("outcome"))
                whole = verdict.get("samples_sha256") == canonical.sha256(raw)
                same = served in (None, verdict.get("variant", served))
                if whole and same and about == (payload_sha256, fingerprint, "accept"):
                    return verdict, dict(json.loads(raw))
            return None

        return await self._run(work)

    async def contract(self, unit: str) -> dict[str, Any] | None:
        """The unit's contract."""

        def work() -> dict[str, Any] | None:
            try:
                document = json.loads((self._unit(unit) / "contract.json").read_bytes())
            except FileNotFoundError:
                return None
            return document if isinstance(document, dict) else None

        return await self._run(work)

    async def set_contract(self, unit: str, contract: dict[str, Any]) -> None:
        """Write the contract, durably."""

        def work() -> None:
            durable.make_folder(self._unit(unit))
            data = json.dumps(contract, indent=2, sort_keys=True).encode() + b"\n"
            durable.replace_file(self._unit(unit) / "contract.json", data, mode=0o644)

        await self._run(work)

    async def units(self) -> list[str]:
        """Units that have a folder."""

        def work() -> list[str]:
            root = self._state / "slots"
            return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.exists() else []

        return await self._run(work)
