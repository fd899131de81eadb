"""The host as a service: joins the parts, runs until it is told to end.

Rules of the file:
- One host a state folder (a lock); leftovers of a predecessor are ended before anything is served.
- Nothing is served before the links were read; READY is told when every unit listens.
- At the end: stop accepting, let requests end for a while, end the children, leave nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import time
from pathlib import Path
from typing import Any

import interlock_agent
from interlock_agent import __version__
from interlock_agent.host import cgroups
from interlock_agent.host.adapters.clock import SystemClock
from interlock_agent.host.adapters.fronts import ProcessFronts
from interlock_agent.host.adapters.hooks import OwnersHooks
from interlock_agent.host.adapters.store import FileStore
from interlock_agent.host.adapters.workers import ProcessWorkers
from interlock_agent.host.children import MARK
from interlock_agent.host.config import Settings
from interlock_agent.host.control import Control
from interlock_agent.host.engine import Engine
from interlock_agent.host.leftovers import end_leftovers, mark_of
from interlock_agent.host.listeners import Listeners
from interlock_agent.host.manager import Kept, notify

log = logging.getLogger("interlock.host")


class AnotherHost(Exception):
    """The state folder is in use."""


def prepare(settings: Settings) -> tuple[int, Path]:
    """Folders, the lock, leftovers; the lock's descriptor and the folder of our package. Blocks. Raises AnotherHost,
    OSError."""
    run, state = Path(settings.run_dir), Path(settings.state_dir)
    state.mkdir(parents=True, exist_ok=True, mode=0o755)
    for folder in (run, run / "workers", run / "children", run / "packages"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    os.chmod(run / "workers", 0o700)
    lock = os.open(state / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise AnotherHost(f"another host runs on {state}") from None
    os.environ[MARK] = mark_of(state)  # for the children; a hook gets no such thing
    killed = end_leftovers(run / "children", os.environ[MARK])
    if killed:
        log.warning("ended leftovers of a predecessor: %s", killed)
    link, package = run / "packages" / "interlock_agent", Path(interlock_agent.__file__).parent
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(package)
    return lock, run / "packages"


def boot_id() -> str:
    """Of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


async def serve(settings: Settings, kept: Kept) -> None:
    """Run until SIGTERM or SIGINT. `kept` was taken before there was a loop, which has descriptors of its own. Raises
    AnotherHost, OSError."""
    loop = asyncio.get_running_loop()
    lock, packages = await loop.run_in_executor(None, prepare, settings)
    store = await loop.run_in_executor(None, FileStore, Path(settings.state_dir))
    run = Path(settings.run_dir)
    started = time.time()
    engine: Engine

    def describe() -> dict[str, Any]:
        host = {"pid": os.getpid(), "version": __version__, "boot_id": boot_id(), "started": started}
        return {**host, "broken": engine.broken}

    async def died(worker: str, reason: str) -> None:
        await engine.worker_died(worker, reason)

    def counted(unit: str, worker: str, counters: dict[str, Any]) -> None:
        engine.counted(unit, worker, counters)

    groups = await loop.run_in_executor(None, cgroups.find)
    workers = ProcessWorkers(run, packages, died, settings.worker_python, settings.concurrency, groups)
    limits = {
        "max_body_bytes": settings.max_body_bytes,
        "answer_timeout_s": settings.answer_timeout_s,
        "no_worker_s": settings.no_worker_s,
    }
    fronts = ProcessFronts(run, packages, workers.upstream, limits, died, counted, Listeners(kept))
    control = Control(lambda: engine, describe, __version__)
    engine = Engine(store, workers, fronts, SystemClock(), control, secrets.token_hex(3), OwnersHooks())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watchdog = loop.create_task(_watchdog())
    try:
        await engine.start()
        kept.forget()
        await control.open(settings.control)
        notify("READY=1")
        log.info("ready control=%s state=%s", settings.control, settings.state_dir)
        await stop.wait()
        notify("STOPPING=1")
        log.info("stopping")
    finally:
        watchdog.cancel()
        await control.close()
        await fronts.close(settings.drain_s)
        await engine.close()
        await workers.close()
        os.close(lock)


async def _watchdog() -> None:
    """Tell systemd that the loop turns, at half the time it allows."""
    allowed = os.environ.get("WATCHDOG_USEC", "")
    while allowed.isdigit():
        notify("WATCHDOG=1")
        await asyncio.sleep(int(allowed) / 2e6)
