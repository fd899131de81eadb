"""`interlock-server`: joins the parts. The only file that knows them all."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from interlock_server import __version__, config, runtime
from interlock_server.adapters.blobs import FolderBlobs
from interlock_server.adapters.broker import Address, Broker
from interlock_server.adapters.database import Database
from interlock_server.adapters.embedded_broker import SERVER, EmbeddedBroker
from interlock_server.adapters.keys import OnlineKeys
from interlock_server.adapters.mosquitto import Mosquitto
from interlock_server.adapters.tuf_repository import TufRepository
from interlock_server.catalogue import Catalogue
from interlock_server.devices import Devices
from interlock_server.engine import Engine
from interlock_server.http import app as api
from interlock_server.http.request import Services
from interlock_server.intake import Intake
from interlock_server.rollouts import Rollouts
from interlock_server.tokens import Tokens
from interlock_server.wishes import Wishes
from interlock_shared import canonical, durable, tasks
from interlock_shared.errors import Conflict, InterlockError

log = logging.getLogger("interlock_server")

SHUTDOWN_S = 5.0  # for requests that are being answered
LINGER_S = 1.0  # for the rest of a body that was refused: the answer should arrive, the body need not

HELP = """\
The update server of Interlock: API, database, segments, TUF repository and MQTT broker, in one process.

  interlock-server run                        everything, on this machine, with nothing to configure
  interlock-server run --listen 0.0.0.0:8080 --broker-listen 0.0.0.0:1883 --public-url http://updates.example:8080
  interlock-server run --broker mqtt://interlock:secret@broker.example:1883

The first start prints an admin token, once. Then, on the release engineer's machine:

  interlock keys init                         keys of this fleet; sends root and targets metadata to the server
  interlock publish detector-1.4.0            signs a release, and uploads it
"""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Running:
    """A server that listens: its addresses, and the admin token when this was the first start."""

    url: str
    broker: str
    token: str | None


@dataclass(frozen=True)
class _Parts:
    database: Database
    repository: TufRepository
    blobs: FolderBlobs
    keys: OnlineKeys


def _folders(data: Path) -> tuple[OnlineKeys, TufRepository, FolderBlobs]:
    keys = OnlineKeys.open(data / "keys")
    return keys, TufRepository(data / "tuf", keys.signers()), FolderBlobs(data / "blobs")


@asynccontextmanager
async def _parts(data: Path) -> AsyncIterator[_Parts]:
    keys, repository, blobs = await asyncio.to_thread(_folders, data)
    database = await Database.open(data / "server.db")
    try:
        yield _Parts(database, repository, blobs, keys)
    finally:
        await database.close()


@contextlib.contextmanager
def _binding(option: str, address: tuple[str, int]) -> Iterator[None]:
    """A port that cannot be had is told with the option that changes it. Raises Conflict (`cannot_listen`)."""
    try:
        yield
    except OSError as bad:
        why = os.strerror(bad.errno) if bad.errno and bad.errno > 0 else bad.strerror or str(bad)
        raise Conflict(f"{option} {config.show(*address)}: {why}", code="cannot_listen") from None


async def _listen(app: web.Application, address: tuple[str, int], stack: AsyncExitStack) -> tuple[str, int]:
    runner = web.AppRunner(
        app, handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_S, lingering_time=LINGER_S
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, *address)
    await site.start()
    found = runner.addresses[0]
    return found[0], found[1]


@asynccontextmanager
async def serve(settings: config.Settings, clock: Callable[[], datetime] = _now) -> AsyncIterator[Running]:
    """A whole server, until the block is left. Raises InterlockError, OSError."""
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(settings.data.mkdir, mode=0o750, parents=True, exist_ok=True)
        lock = await asyncio.to_thread(runtime.Lock, settings.data)
        stack.callback(lock.release)
        parts = await stack.enter_async_context(_parts(settings.data))
        tokens = Tokens(parts.database, clock)
        broker_port, subscribed = 0, asyncio.Event()
        if settings.broker is None:
            embedded = EmbeddedBroker(tokens.is_device, subscribed)
            with _binding("--broker-listen", settings.broker_listen):
                host, broker_port = await embedded.start(*settings.broker_listen)
            stack.push_async_callback(embedded.stop)
            address = Address(_reachable(host), broker_port, SERVER, embedded.password)
        else:
            address = Address.parse(settings.broker)
        files = await _mosquitto(settings, address)
        link = Broker(address, "interlock-server", asyncio.sleep)
        intake, wishes = (
            Intake(parts.database, clock),
            Wishes(parts.database, parts.keys, clock, settings.start_spread_s),
        )
        engine = Engine(intake, wishes, link, asyncio.sleep)
        catalogue = Catalogue(parts.database, parts.repository, parts.blobs, parts.keys, clock, engine.moved)
        known = Services(
            catalogue=catalogue,
            devices=Devices(parts.database, clock, files.joined if files else None),
            rollouts=Rollouts(parts.database, clock, engine.changed),
            tokens=tokens,
            changed=engine.changed,
            figures=lambda: {**intake.figures, "dropped": engine.dropped},
            version=__version__,
            public_url=settings.public_url,
            broker_url=address.public if settings.broker else None,
            broker_port=broker_port,
        )
        await catalogue.recover()
        await intake.start()
        token = await _first_token(tokens, settings)
        for work in (engine.run(catalogue), link.run(engine.received, _both(engine.connected, subscribed.set))):
            await stack.enter_async_context(_background(work))
        with _binding("--listen", settings.listen):
            listens = config.show(*await _listen(api.make(known), settings.listen, stack))
        running = Running(settings.public_url or f"http://{listens}", address.public, token)
        await asyncio.to_thread(_write_addresses, settings, running, listens)
        yield running


async def _mosquitto(settings: config.Settings, address: Address) -> Mosquitto | None:
    if settings.mosquitto is None:
        return None
    files = Mosquitto(settings.mosquitto.passwords, settings.mosquitto.acl, settings.mosquitto.pid)
    await files.start(address.username, address.password)
    return files


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def both() -> None:
        first()
        second()

    return both


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


@asynccontextmanager
async def _background(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    owner = asyncio.current_task()

    def ended(done: asyncio.Task[None]) -> None:
        # A part that ends by itself is a defect: better a restart by systemd than a server that only seems to work.
        if not done.cancelled() and owner is not None:
            log.critical("a background task ended", exc_info=done.exception())
            owner.cancel()

    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.remove_done_callback(ended)
        await tasks.ended([task])


async def _first_token(tokens: Tokens, settings: config.Settings) -> str | None:
    token = await tokens.first()
    if token is not None and settings.token_file is not None:
        await asyncio.to_thread(durable.replace_file, settings.token_file, token.encode() + b"\n", 0o600)
    return token


def _write_addresses(settings: config.Settings, running: Running, listens: str) -> None:
    document = {
        "url": running.url,
        "listen": listens,
        "broker": running.broker,
        "pid": os.getpid(),
        "version": __version__,
    }
    durable.replace_file(settings.data / "server.json", canonical.encode(document) + b"\n", mode=0o644)


async def _run(settings: config.Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(settings) as running:
        print(f"Interlock server {__version__}")
        print(f"  API     {running.url}")
        print(f"  broker  {running.broker}")
        print(f"  data    {settings.data}")
        if running.token is not None:
            if settings.token_file is None:
                print(f"  admin token, shown once: {running.token}")
            else:  # under systemd this output is the journal, which others read
                print(f"  admin token: in {settings.token_file}")
        sys.stdout.flush()
        runtime.notify("READY=1")
        await stop.wait()
        runtime.notify("STOPPING=1")
    log.info("stopped")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("interlock-server", description=HELP, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"interlock-server {__version__}")
    run = parser.add_subparsers(dest="command", metavar="COMMAND").add_parser(
        "run", help="start the server", description=HELP, formatter_class=raw
    )
    add = run.add_argument
    where = "/var/lib/interlock-server for root, else $XDG_STATE_HOME/interlock-server"
    add("--data", type=Path, metavar="DIR", help=f"database, keys, segments, metadata; default: {where}")
    add("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="API (default %(default)s; port 0: a free one)")
    add("--broker", metavar="URL", help="an external broker, mqtt://[user:password@]host:port, instead of the embedded")
    add(
        "--broker-listen",
        default="127.0.0.1:1883",
        metavar="HOST:PORT",
        help="embedded broker (default %(default)s; port 0: a free one)",
    )
    add("--mosquitto-passwd", type=Path, metavar="FILE", help="an external Mosquitto's password file, kept from here")
    add("--mosquitto-acl", type=Path, metavar="FILE", help="its access list, written from here")
    add("--mosquitto-pid", type=Path, metavar="FILE", help="its pid file: it is told (SIGHUP) when the files changed")
    add("--start-spread", default="0", metavar="SECONDS", help="devices begin a rollout spread over this time")
    add("--public-url", metavar="URL", help="how devices and people reach the API, where that is not --listen")
    add(
        "--token-file",
        type=Path,
        metavar="PATH",
        help="write the first admin token there (mode 0600) instead of showing it",
    )
    add("--log-format", choices=("text", "json"), default="text", help="on stderr (default %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The console script. 0: stopped as asked; 1: could not run; 2: asked wrongly."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 2
    runtime.set_up_logs(given.log_format)
    try:
        settings = config.Settings(
            data=(given.data or config.default_data()).absolute(),
            listen=config.address(given.listen, "--listen"),
            broker=given.broker,
            broker_listen=config.address(given.broker_listen, "--broker-listen"),
            public_url=given.public_url.rstrip("/") if given.public_url else None,
            token_file=given.token_file,
            start_spread_s=config.spread(given.start_spread),
            mosquitto=config.mosquitto(given.mosquitto_passwd, given.mosquitto_acl, given.mosquitto_pid, given.broker),
        )
        if given.broker:
            Address.parse(given.broker)
    except InterlockError as bad:
        print(f"interlock-server: {bad.message}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_run(settings))
    except InterlockError as bad:
        print(f"interlock-server: {bad}", file=sys.stderr)
        return 1
    except OSError as bad:
        where = f"{bad.filename}: {bad.strerror} (the folder is --data)" if bad.filename else str(bad)
        print(f"interlock-server: {where}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
