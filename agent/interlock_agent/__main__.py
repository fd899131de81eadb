"""Joins the parts of the agent; the only file that knows them all. The service's own process: neither typer nor rich is
imported here, they would stay in memory for ever."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock_agent import anchor, key_watch, logs
from interlock_agent import config as configuration
from interlock_agent.adapters.broker import Broker
from interlock_agent.adapters.clock import SystemClock
from interlock_agent.adapters.control import ControlSocket
from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.adapters.hardware import LocalHardware, boot
from interlock_agent.adapters.host_client import HostClient
from interlock_agent.adapters.identity import Identity
from interlock_agent.adapters.inbox_folder import InboxFolder
from interlock_agent.adapters.journal import SqliteJournal
from interlock_agent.adapters.probes import OwnersProbes
from interlock_agent.adapters.programs import OwnersPrograms
from interlock_agent.adapters.slots import SlotFolders
from interlock_agent.adapters.systemd import notify
from interlock_agent.config import Config
from interlock_agent.core import time_floor
from interlock_agent.description import Describer
from interlock_agent.engine import Engine
from interlock_agent.guard import Guard
from interlock_agent.inbox import Inbox
from interlock_agent.installer import Installer
from interlock_agent.link import Link
from interlock_agent.local_api import LocalApi
from interlock_agent.ports import Ports, Stored
from interlock_agent.refresher import Refresher
from interlock_agent.renewing import Renewing
from interlock_shared import canonical, classes, tasks
from interlock_shared.errors import Conflict, InterlockError, Later

log = logging.getLogger("interlock.agent")

JUDGE_CHANGED_S = 900.0  # between two looks for what was put off when the device had changed
FLOOR_EVERY_S = 3600.0  # how often the time that has passed is added to the persisted floor


class Agent:
    """One running agent."""

    def __init__(self, config: Config, identity: Identity) -> None:
        state, run = config.device.state_dir, config.device.run_dir
        self.config, self.identity = config, identity
        self.clock = SystemClock()
        self.journal = SqliteJournal(state / "agent", identity.device)
        self.host = HostClient(run / "host.sock")
        self.slots = SlotFolders(state)
        self.hardware = LocalHardware(state)
        self.fetcher = FetcherProcess(state, identity.device, identity.facts, self.clock, Stored())
        world = (self.clock, self.journal, self.host, self.slots, self.fetcher, self.hardware)
        self.ports = Ports(*world, identity, OwnersPrograms(), OwnersProbes())
        self.engine = Engine(self.ports, config, identity.device)
        self.describer = Describer(self.engine, self.ports, self.host, config)
        self.renewing = Renewing(identity, self.fetcher.renew, self.clock)
        self.describer.key, self.describer.certificate = identity, self.renewing
        self.describer.instance = f"{boot()}-{secrets.token_hex(8)}"
        self.guard = Guard(self.engine, self.ports, config)
        self.installer = Installer(self.engine, enrolled=bool(identity.facts.get("server")))
        local = LocalApi(self.engine, self.ports, self.slots, self.installer, self.describer.status)
        self.control = ControlSocket(run / "agent.sock", local.handle)
        self.broker: Broker | None = None
        self.link: Link | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        fingerprint = await self.hardware.fingerprint(self.config.defaults.worker_python)
        self.engine.shared.fingerprint = fingerprint
        self.engine.shared.fingerprint_sha256 = canonical.sha256(canonical.encode(fingerprint))
        self.fetcher.facts = classes.of_device(self.config.device.class_, fingerprint)
        self.host.on_connect.append(self._host_connected)
        self.host.listeners.append(self.describer.host_event)
        self.host.start()
        stored = await self.engine.load()
        self.fetcher.stored = stored
        await anchor.settle(stored, self.journal, await asyncio.to_thread(self.identity.embedded_root))
        self.clock.raise_floor(time_floor.of(stored.meta))
        self._connect_link()
        await self.engine.start()
        if self.link is not None:
            await self.link.resume()
        await self.control.start()
        self._spawn(self.guard.run())
        self._watch_inbox()
        self._spawn(self._keep_floor())
        self._spawn(self._judge_changed())
        self._spawn(self._feed_watchdog())
        if self.identity.is_held:
            self._spawn(key_watch.lost(self.identity, self.clock))
        notify("READY=1")
        log.info("ready: %s", self.identity.device)
        waiting = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        await self._end()
        for task in done - {waiting}:
            task.result()  # a part that ended by itself is a fault: tell it

    def _spawn(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work))

    def _watch_inbox(self) -> None:
        settings = self.config.sideload
        if settings.inbox is not None:
            folder = InboxFolder(settings.inbox, settings.inbox_keep)
            inbox = Inbox(folder, self.installer, self.clock, settings.inbox_s)
            self.describer.inbox = inbox
            self._spawn(inbox.run())

    def _connect_link(self) -> None:
        facts = self.identity.facts
        if not facts.get("broker"):
            log.info("no server: this device is served by hand")
            return
        self.broker = Broker(
            str(facts["broker"]),
            self.identity.device,
            self.clock,
            tls=self.identity.tls,
            keepalive_s=self.config.link.keepalive_s,
            cap_s=self.config.link.backoff_cap_s,
        )
        self.link = Link(self.ports, self.engine, self.broker, self.describer.reported, self.config.link.poll_s)
        refresher = Refresher(self.engine, self.ports, self.config.link.notice_spread_s, self.config.link.refresh_s)
        self.link.on_notice = refresher.noticed
        self._spawn(refresher.run())
        self.broker.on_message = self.link.message
        self.broker.on_connect = self.link.connected
        self.describer.broker, self.describer.refused = self.broker, self.link.refusals
        self.engine.on_change = self.link.changed
        self.describer.on_serving = self.link.changed
        self._spawn(self.broker.run())
        self._spawn(self.link.run())
        self._spawn(self.renewing.run())

    async def _host_connected(self) -> None:
        """Make sure that the host knows every unit; learn the generations that it has seen."""
        try:
            for unit in sorted(set(self.config.units) | set(self.engine.stored.units)):
                await self.engine.configure(unit)
            await self.describer.look()
            self.describer.on_serving("")  # what answers is known again: report it
        except InterlockError as error:
            log.warning("host: %s", error.message)

    async def _judge_changed(self) -> None:
        """On a device that has changed, what is confirmed is judged again, when it may be."""
        while True:
            try:
                await self.engine.judge_changed()
            except InterlockError as error:
                log.warning("not judged again: %s", error.message)
            await self.clock.sleep(JUDGE_CHANGED_S)

    async def _keep_floor(self) -> None:
        while True:
            await self.clock.sleep(FLOOR_EVERY_S)
            if self.clock.floor():
                try:
                    await self.journal.put_meta(time_floor.fact(self.engine.stored.meta, self.clock.floor()))
                except Later as error:  # a full disk: the floor of an hour ago is still one
                    log.warning("the time floor was not kept: %s", error.message)

    async def _feed_watchdog(self) -> None:
        """Tell systemd that the loop turns. Nothing holds it up: engines are built and models run in workers."""
        allowed = os.environ.get("WATCHDOG_USEC", "")
        while allowed.isdigit():
            notify("WATCHDOG=1")
            await self.clock.sleep(int(allowed) / 2e6)
        await asyncio.Event().wait()  # without a watchdog; a task of the agent does not end by itself

    async def _end(self) -> None:
        await self.control.stop()
        await self.engine.stop()
        if self.broker is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.broker.goodbye(), 2.0)
        await tasks.ended(self._tasks)
        await self.host.stop()
        await self.journal.close()


def _only_one(state: Path) -> Callable[[], None]:
    """Refuse a second agent on the same state. Raises Conflict."""
    (state / "agent").mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(state / "agent" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Conflict(f"another agent runs on {state}", code="already_running") from None
    return lambda: os.close(descriptor)


async def _serve(config: Config, identity: Identity) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Agent(config, identity).run(stop)


def run(path: Path | None) -> int:
    """Run the agent until SIGTERM. Exit codes: 0 ended, 1 a fault, 2 configuration, 3 another agent runs."""
    try:
        config = configuration.load(path)
        logs.set_up(config.log_format)
        identity = Identity(config.device.state_dir)
        unlock = _only_one(config.device.state_dir)
    except InterlockError as error:
        print(f"interlock-agent: {error.message}", file=sys.stderr)
        return 3 if isinstance(error, Conflict) else 2
    except OSError as error:
        print(f"interlock-agent: {configuration.unusable(error)}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_serve(config, identity))
    except InterlockError as error:
        log.error("%s", error.message)
        return 1
    finally:
        unlock()
    return 0


def main() -> int:
    """`python -m interlock_agent --config FILE`: what `interlock-agent run` becomes. The exit code."""
    parser = argparse.ArgumentParser("interlock-agent run", description="Run the agent until SIGTERM.")
    parser.add_argument("--config", type=Path)
    return run(parser.parse_args().config)


if __name__ == "__main__":
    sys.exit(main())
