"""Judge a bundle and install nothing: the very same gate, with a host of its own, no agent and no server.

1. The bundle's segments are unpacked and checked against its manifest, by the fetcher, into a temporary folder; its
   signatures too, where it has some and this device has a root of trust.
2. The incumbent is another bundle, the release that is confirmed here, or none.
3. `steps.gate` measures and judges as ever; the verdict is made, and not kept.
4. Whatever ends this, nothing is left: no process, no folder.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from interlock_agent.adapters.clock import SystemClock
from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.adapters.hardware import LocalHardware
from interlock_agent.adapters.programs import OwnersPrograms
from interlock_agent.adapters.slots import SlotFolders
from interlock_agent.config import Config, Unit
from interlock_agent.core import contract as contracts
from interlock_agent.core.gate.recorded import items_of
from interlock_agent.ports import Stored
from interlock_agent.private_host import PrivateHost
from interlock_agent.steps.gate.command import ByCommand
from interlock_agent.steps.gate.run import Baseline, Place, Run
from interlock_agent.steps.gate.variants import judge
from interlock_agent.steps.gate.verdict import verdict
from interlock_shared import canonical
from interlock_shared import manifest as manifests
from interlock_shared.errors import Invalid, Later, NotFound
from interlock_shared.manifest import Manifest

INSTALLED = "installed"  # as an incumbent: what is confirmed here
GENERATION = 1
DEVICE = "dry-run"  # the fetcher's word for who asks; permits are not looked at

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """The verdict document, and whether the bundle's signatures were checked, in words."""

    verdict: dict[str, Any]
    signature: str


@dataclass(frozen=True)
class Unpacked:
    """A bundle's content in a folder that has a seal. `state`: the folder around it, as SlotFolders knows it."""

    manifest: Manifest
    folder: str
    state: Path
    signature: str

    @property
    def manifest_sha256(self) -> str:
        """Which release it is."""
        return canonical.sha256(manifests.to_bytes(self.manifest))


def run(config: Config, bundle: Path, against: str | None, tell: Tell) -> Judged:
    """Judge `bundle`; `against`: another one, `installed`, or None. Blocks; a signal to end is KeyboardInterrupt.

    Raises InterlockError: what is wrong with the bundle, or Later where this machine cannot tell.
    """

    async def guarded() -> Judged:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("asyncio.run makes one")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="il-"))  # short: sockets lie in it
        try:
            return await _judge(config, bundle, against, folder, tell)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _judge(config: Config, bundle: Path, against: str | None, folder: Path, tell: Tell) -> Judged:
    clock = SystemClock()
    candidate = await _unpack(bundle, folder / "candidate", config, clock, tell)
    unit = candidate.manifest.model
    incumbent, contract = await _incumbent(config, unit, against, folder / "against", clock, tell)
    settings = config.units.get(unit, config.defaults)
    hardware = LocalHardware(folder)
    fingerprint = await hardware.fingerprint(settings.worker_python)
    _check_runtime(settings, fingerprint)
    await asyncio.to_thread((folder / "host").mkdir)
    private = PrivateHost(folder / "host")
    async with private as host:
        command = ByCommand.where_wanted(settings, host, OwnersPrograms(), hardware, clock)
        place = Place(
            unit=unit,
            generation=GENERATION,
            settings=settings,
            listen=private.listen(unit),
            fingerprint=fingerprint,
            host=command or host,
            clock=clock,
            hardware=hardware,
            tell=lambda **what: tell(_progress(what)),
            command=command,
        )
        document = await _verdict(_run_of(place, candidate, contract, incumbent))
    return Judged(document, candidate.signature)


def _run_of(place: Place, candidate: Unpacked, contract: dict[str, Any] | None, incumbent: Baseline | None) -> Run:
    slots = SlotFolders(candidate.state)

    async def prepare(variant: str) -> str:
        return await slots.prepare(place.unit, candidate.manifest_sha256, variant, GENERATION)

    return Run(
        place=place,
        manifest=candidate.manifest,
        payload_sha256=candidate.manifest.payload_sha256(),
        prepare=prepare,
        contract=contract,
        incumbent=incumbent,
        variants=candidate.manifest.variants,
    )


async def _verdict(run: Run) -> dict[str, Any]:
    await run.begin()
    try:
        judged = await judge(run)
    finally:
        await run.end()
    made = await verdict(
        run,
        judged,
        device=platform.node(),
        fingerprint_sha256=canonical.sha256(canonical.encode(run.place.fingerprint)),
        origin="dry-run",
    )
    return dict(made.model_dump(mode="json", by_alias=True))


def _check_runtime(settings: Unit, fingerprint: dict[str, Any]) -> None:
    """A machine without a runtime says nothing about a bundle."""
    if "onnxruntime" not in fingerprint:
        raise Later(
            f"{settings.worker_python} has no ONNX Runtime to judge with; with pip: interlock-agent[cpu] or [gpu]",
            code="no_runtime",
        )


def _progress(what: dict[str, Any]) -> str:
    text = str(what.get("stage", what.get("doing", ""))) + (f": {what['seconds']} s" if "seconds" in what else "")
    return text + (f": {what['pairs']} pairs, ratio {what['ratio']}" if "pairs" in what else "")


# --- bundles ----------------------------------------------------------------------------------------------------------


def find_bundle(path: Path) -> Path:
    """The bundle itself, or the only one in a folder. Raises Invalid, NotFound."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("*.bundle"))
    if len(found) == 1:
        return found[0]
    what = f"holds {len(found)} bundles: name one" if found else "holds no .bundle; make one: interlock bundle build"
    raise Invalid(f"{path}: the folder {what}", code="no_bundle", field="bundle")


def _copy_trust(device: Path, into: Path) -> None:
    """The device's root of trust and the metadata it has seen, where they can be read."""
    (into / "trust").mkdir(parents=True)
    try:
        shutil.copy(device / "trust" / "root.json", into / "trust" / "root.json")
        shutil.copytree(device / "trust" / "metadata", into / "trust" / "metadata")
    except (OSError, shutil.Error):
        return  # what is not there is not checked, and that is said


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as bad:
        raise NotFound(f"{path}: {bad.strerror}", code="io", field="bundle") from None


async def _unpack(
    path: Path, state: Path, config: Config, clock: SystemClock, tell: Tell, model: str | None = None
) -> Unpacked:
    """The content of a bundle under `state`; `model`: the one that it must be of."""
    descriptor = await asyncio.to_thread(lambda: _open(find_bundle(path)))
    await asyncio.to_thread(_copy_trust, config.device.state_dir, state)
    tell(f"unpacking {path}")
    source = await FetcherProcess(state, DEVICE, {}, clock, Stored()).unpack(descriptor)
    try:
        head = await source.manifest()
        manifest = manifests.from_document(head["manifest"])
        if model not in (None, manifest.model):
            raise Invalid(f"{path} is of {manifest.model}, not of {model}", code="other_model", field="--against")
        done = await source.proceed(lambda done, of: None)
    finally:
        await source.abandon()
    return Unpacked(manifest, str(done["folder"]), state, str(head["trust"]["signature"]))


async def _incumbent(
    config: Config, unit: str, against: str | None, state: Path, clock: SystemClock, tell: Tell
) -> tuple[Baseline | None, dict[str, Any] | None]:
    """What the candidate is compared with, and the contract that it must keep."""
    if against is None:
        return None, None
    if against == INSTALLED:
        return await _installed(SlotFolders(config.device.state_dir), unit)
    found = await _unpack(Path(against), state, config, clock, tell, unit)
    manifest = found.manifest
    baseline = Baseline(manifest.version, manifest.payload_sha256(), found.folder)
    return baseline, contracts.contract_of(manifest.signature)


async def _installed(slots: SlotFolders, unit: str) -> tuple[Baseline, dict[str, Any]]:
    slot = await slots.confirmed_slot(unit)
    seal = await slots.seal_of(unit, slot) if slot else None
    if seal is None:
        raise NotFound(f"{unit}: nothing is confirmed here that could be compared with", code="nothing_confirmed")
    contract = await slots.contract(unit)
    if contract is None:
        contract = contracts.contract_of(manifests.parse(await slots.manifest_of(unit, slot)).signature)
    payload = str(seal["payload_sha256"])
    record = partial(slots.recorded, unit, slot, payload)
    return Baseline(str(seal["version"]), payload, await slots.folder(unit, slot), items_of(seal), record), contract
