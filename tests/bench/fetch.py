"""A 1 GiB bundle over loopback HTTP, from the start of the fetch until `staged`, against the machine's floor.

The floor is measured in the same run, in turn with the fetch: SHA-256 of the same bytes, then a durable write of them
(write, fsync, rename, fsync of the folder). Each fetch is a new device's first install, by the agent's own journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from interlock_shared import durable
from tests.bench.result import Figure
from tests.host.models import make_model
from tests.rig.fleet import Device, Fleet, fleet, until

SIZE = 1024 * 1024 * 1024
ROUNDS = 3
PIECE = 4 * 1024 * 1024
MODEL = "large"
BUNDLE = """\
model = "large"
version = "1.0.0"
files = ["weights.bin"]
[[variants]]
name = "fp32"
file = "model.onnx"
reference = true
"""


def _release(folder: Path, size: int) -> Path:
    """A model with weights that no compression helps."""
    folder.mkdir(parents=True)
    make_model(folder / "model.onnx", 2.0)
    dice = np.random.default_rng(7)
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(size // PIECE):
            file.write(dice.bytes(PIECE))
    (folder / "bundle.toml").write_text(BUNDLE)
    return folder


def _floor(source: Path, folder: Path) -> float:
    """Seconds for hashing the bytes and, after that, writing them durably."""
    began = time.monotonic()
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    target, temporary = folder / "floor.bin", folder / "floor.tmp"
    with source.open("rb") as file, temporary.open("wb") as out:
        while piece := file.read(PIECE):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    durable.rename_folder(temporary, target)
    seconds = time.monotonic() - began
    target.unlink()
    return seconds


def _journal(device: Device, event: str) -> dict[str, object] | None:
    path = device.state / "agent" / "journal.db"
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        row = database.execute("SELECT at, detail FROM history WHERE event = ?", (event,)).fetchone()
    except sqlite3.OperationalError:  # not there yet
        return None
    finally:
        database.close()
    return {"at": datetime.fromisoformat(row[0]), "detail": json.loads(row[1])} if row else None


def _fetch(rig: Fleet, number: int) -> tuple[float, float, float]:
    """(seconds, peak of the fetcher, peak of the agent) of one device's first install; peaks in MiB."""
    device = rig.device(f"bench-{number}", {"listen": "127.0.0.1:0"})
    device.start()
    rig.json("rollout", "start", MODEL, "1.0.0", "--to", f"device={device.name}")
    end = until(lambda: _journal(device, "fetched"), "the bundle to be staged", 300.0)
    begin = _journal(device, "begin")
    if begin is None:
        raise AssertionError("staged, and never begun")
    status = Path(f"/proc/{device.agent.pid}/status").read_text()
    agent = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    device.agent.kill()
    device.host.kill()
    detail = end["detail"]
    if not isinstance(detail, dict):
        raise TypeError("a transition's detail is an object")
    seconds = (end["at"] - begin["at"]).total_seconds()
    return seconds, detail["peak_bytes"] / 2**20, agent


def run(folder: Path, scale: float) -> list[Figure]:
    """Floor and fetch in turn."""
    release = _release(folder / "release", max(PIECE, int(SIZE * scale)))
    floors, fetches, ratios, fetchers, agents = [], [], [], [], []
    with fleet(folder / "fleet") as rig:
        rig.start_server()
        rig.init_keys(MODEL)
        rig.cli("publish", str(release), deadline_s=600.0)
        for number in range(ROUNDS):
            floors.append(_floor(release / "weights.bin", folder))
            seconds, fetcher, agent = _fetch(rig, number)
            fetches.append(seconds)
            fetchers.append(fetcher)
            agents.append(agent)
            ratios.append(seconds / floors[-1])
            print(f"  floor {floors[-1]:.2f} s, fetch {seconds:.2f} s", flush=True)
    return [
        Figure("fetch until staged", "s", fetches),
        Figure("floor: SHA-256, then durable write", "s", floors),
        Figure("fetch ÷ floor", "ratio", ratios).at_most(1.5),
        Figure("peak memory of the fetcher (VmHWM)", "MiB", fetchers).at_most(100),
        Figure("peak memory of the agent (VmHWM)", "MiB", agents).at_most(60),
    ]
