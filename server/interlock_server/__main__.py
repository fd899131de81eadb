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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from interlock_server import __version__, broker_command, config, keys_command, runtime
from interlock_server.adapters.blobs import FolderBlobs
from interlock_server.adapters.broker import Address, Broker
from interlock_server.adapters.database import Database
from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.embedded_broker import EmbeddedBroker
from interlock_server.adapters.keys import OnlineKeys
from interlock_server.adapters.mosquitto import Mosquitto, Place
from interlock_server.adapters.tuf_repository import TufRepository
from interlock_server.catalogue import Catalogue
from interlock_server.core.mqtt_rules import SERVER
from interlock_server.devices import Devices
from interlock_server.engine import Engine
from interlock_server.grants import Grants
from interlock_server.http import app as api
from interlock_server.http.connections import Connections
from interlock_server.http.listening import Tls, listen, runner
from interlock_server.http.request import Own, Services
from interlock_server.identities import Identities
from interlock_server.intake import Intake
from interlock_server.invitations import Invitations
from interlock_server.publishing import Publishing
from interlock_server.rollouts import Rollouts
from interlock_server.sideloads import Sideloads
from interlock_server.tokens import Tokens
from interlock_server.wishes import Wishes
from interlock_server.withdrawals import Withdrawals
from interlock_shared import canonical, durable, tasks
from interlock_shared.errors import Conflict, InterlockError

log = logging.getLogger("interlock_server")

HELP = """\
The update server of Interlock: API, database, segments, TUF repository and MQTT broker, in one process.

  interlock-server run                        everything, on this machine, with nothing to configure
  interlock-server run --listen 0.0.0.0:8443 --broker-listen 0.0.0.0:8883 --public-url https://updates.example:8443
  interlock-server run --broker mqtts://broker.example   (interlock-server broker-config)

The first start prints an admin token, once, in the command that a release engineer runs first:

  interlock login --server … --ca-sha256 … --token …
  interlock keys init                         keys of this fleet; sends root and targets metadata to the server
  interlock publish detector-1.4.0            signs a release, and uploads it
"""


COMMANDS = {"broker-config": broker_command.run, "keys": keys_command.run}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Running:
    """A server that listens: its addresses, by what its certificate is known, and the admin token when this was the
    first start."""

    url: str
    broker: str
    token: str | None
    ca_sha256: str
    tls_ca: str
    plain: str | None = None


@dataclass(frozen=True)
class _Parts:
    database: Database
    repository: TufRepository
    blobs: FolderBlobs
    keys: OnlineKeys
    authorities: DeviceCA


def _folders(data: Path) -> tuple[TufRepository, FolderBlobs, OnlineKeys, DeviceCA]:
    keys, authorities = OnlineKeys.open(data / "keys"), DeviceCA.open(data / "keys")
    return TufRepository(data / "tuf", keys), FolderBlobs(data / "blobs"), keys, authorities


@asynccontextmanager
async def _parts(data: Path) -> AsyncIterator[_Parts]:
    folders = await asyncio.to_thread(_folders, data)
    database = await Database.open(data / "server.db")
    try:
        yield _Parts(database, *folders)
    finally:
        await database.close()


@contextlib.contextmanager
def _told(option: str, where: str | Path, code: str) -> Iterator[None]:
    """What cannot be had or written is told with the option that changes it. Raises Conflict."""
    try:
        yield
    except OSError as bad:
        why = os.strerror(bad.errno) if bad.errno and bad.errno > 0 else bad.strerror or str(bad)
        raise Conflict(f"{option} {where}: {why}", code=code) from None


def _binding(option: str, address: tuple[str, int]) -> contextlib.AbstractContextManager[None]:
    return _told(option, config.show(*address), "cannot_listen")


@asynccontextmanager
async def serve(settings: config.Settings, clock: Callable[[], datetime] = _now) -> AsyncIterator[Running]:
    """A whole server, until the block is left. Raises InterlockError, OSError."""
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(settings.data.mkdir, mode=0o750, parents=True, exist_ok=True)
        lock = await asyncio.to_thread(runtime.Lock, settings.data)
        stack.callback(lock.release)
        parts = await stack.enter_async_context(_parts(settings.data))
        tokens, here, connections = Tokens(parts.database, clock), Own(), Connections()
        tls = await asyncio.to_thread(Tls, parts.authorities, await asyncio.to_thread(config.hosts, settings))
        identities = Identities(parts.database, parts.authorities, clock, timedelta(days=settings.certificate_days))
        identities.cutters.append(connections.cut)
        intake = Intake(parts.database, clock)
        broker, address, own, told = await _broker(settings, identities, intake, tls, stack)
        await _keep_mosquitto(settings, address, parts.authorities, identities, stack)
        link = Broker(own, "interlock-server", asyncio.sleep, parts.authorities.client_context)
        wishes = Wishes(parts.database, parts.keys, clock, settings.start_spread_s, settings.sideload)
        engine = Engine(intake, wishes, link, parts.keys, asyncio.sleep)
        catalogue = Catalogue(
            parts.database, parts.repository, parts.blobs, parts.keys, clock, engine.moved, engine.connected
        )
        publishing = Publishing(parts.database, parts.repository, catalogue, clock, engine.moved, engine.changed)
        known = Services(
            catalogue=catalogue,
            publishing=publishing,
            withdrawals=Withdrawals(parts.database, clock, engine.changed),
            devices=Devices(parts.database, clock),
            identities=identities,
            invitations=Invitations(parts.database, clock),
            grants=Grants(parts.database),
            connections=connections,
            rollouts=Rollouts(parts.database, clock, engine.changed),
            sideloads=Sideloads(parts.database, clock, engine.changed),
            tokens=tokens,
            changed=engine.changed,
            figures=lambda: {**intake.figures, "dropped": engine.dropped, **told()},
            version=__version__,
            tls_ca=parts.authorities.tls_ca.decode(),
            own=here,
            public_url=settings.public_url,
            broker_url=broker if settings.broker else None,
            broker_port=0 if settings.broker else address.port,
        )
        await publishing.recover()
        await intake.start()
        token = await _first_token(tokens, settings)
        for work in (engine.run(catalogue), link.run(engine.received, engine.connected), tls.keep(asyncio.sleep)):
            await stack.enter_async_context(_background(work))
        running = await _listen(settings, await runner(api.make(known), stack), tls, broker, token, parts.authorities)
        here.url = running.url
        yield running


async def _broker(
    settings: config.Settings, identities: Identities, intake: Intake, tls: Tls, stack: AsyncExitStack
) -> tuple[str, Address, Address, Callable[[], dict[str, int]]]:
    """The broker's URL, its address, where and as whom the server connects, figures; the embedded one is started."""
    if settings.broker is not None:
        address = Address.parse(settings.broker)
        return address.public, address, address, dict
    embedded = EmbeddedBroker(identities.is_device, tls.context)
    identities.cutters.append(embedded.cut)
    embedded.on_take_over = lambda seen: intake.addresses.update({seen.device: (seen.older, seen.newer)})
    with _binding("--broker-listen", settings.broker_listen):
        host, port = await embedded.start(*settings.broker_listen)
    stack.push_async_callback(embedded.stop)
    own, figures = Address(*embedded.private, SERVER, embedded.password), embedded.figures
    address = Address(_reachable(host), port)
    return f"mqtts://{config.show(host, port)}", address, own, lambda: {f"broker_{k}": n for k, n in figures.items()}


async def _listen(
    settings: config.Settings, served: Any, tls: Tls, broker: str, token: str | None, ca: DeviceCA
) -> Running:
    """Open the doors, and write down where they are."""
    with _binding("--listen", settings.listen):
        listens = config.show(*await listen(served, settings.listen, tls.context))
    plain = None
    if settings.plain_listen is not None:
        with _binding("--plain-listen", settings.plain_listen):
            plain = f"http://{config.show(*await listen(served, settings.plain_listen, None))}"
    url = settings.public_url or f"https://{listens}"
    running = Running(url, broker, token, ca.fingerprint, ca.tls_ca.decode(), plain)
    await asyncio.to_thread(_write_addresses, settings, running, listens)
    return running


async def _keep_mosquitto(
    settings: config.Settings, address: Address, authorities: DeviceCA, identities: Identities, stack: AsyncExitStack
) -> None:
    """Its revocation list, and the end of sessions."""
    if settings.mosquitto is None:
        return
    place = Place(address.host, address.port, settings.mosquitto.crl, settings.mosquitto.pid)
    mosquitto = Mosquitto(place, authorities, identities.revoked)
    with _told("--mosquitto-crl", place.crl, "cannot_write"):
        await mosquitto.start()
    identities.cutters.append(mosquitto.cut)
    await stack.enter_async_context(_background(mosquitto.run()))


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
    path = settings.token_file
    if path is None:
        return await tokens.first()

    async def keep(token: str) -> None:
        await asyncio.to_thread(durable.replace_file, path, token.encode() + b"\n", 0o600)

    with _told("--token-file", path, "cannot_write"):
        return await tokens.first(keep)


def _write_addresses(settings: config.Settings, running: Running, listens: str) -> None:
    document = {
        "url": running.url,
        "listen": listens,
        "plain": running.plain,
        "broker": running.broker,
        "ca_sha256": running.ca_sha256,
        "pid": os.getpid(),
        "version": __version__,
    }
    durable.replace_file(settings.data / "tls_ca.crt", running.tls_ca.encode(), mode=0o644)
    durable.replace_file(settings.data / "server.json", canonical.encode(document) + b"\n", mode=0o644)


async def _run(settings: config.Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serve(settings) as running:
        print(f"Interlock server {__version__}")
        print(f"  API     {running.url}")
        if running.plain:
            print(f"  plain   {running.plain}")
        print(f"  broker  {running.broker}")
        print(f"  data    {settings.data}")
        if running.token is not None:
            token = running.token
            if settings.token_file is None:
                print(f"  admin token, shown once: {token}")
            else:  # under systemd this output is the journal, which others read
                token = f'"$(cat {settings.token_file})"'
                print(f"  admin token: in {settings.token_file}")
            print(f"  log in  interlock login --server {running.url} --ca-sha256 {running.ca_sha256} --token {token}")
        sys.stdout.flush()
        runtime.notify("READY=1")
        await stop.wait()
        runtime.notify("STOPPING=1")
    log.info("stopped")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("interlock-server", description=HELP, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"interlock-server {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    broker_command.add_parser(commands)
    keys_command.add_parser(commands)
    run = commands.add_parser("run", help="start the server", description=HELP, formatter_class=raw)
    add = run.add_argument
    where = "/var/lib/interlock-server for root, else $XDG_STATE_HOME/interlock-server"
    add("--data", type=Path, metavar="DIR", help=f"database, keys, segments, metadata; default: {where}")
    add(
        "--listen",
        default="127.0.0.1:8443",
        metavar="HOST:PORT",
        help="API (default %(default)s; port 0: a free one)",
    )
    add("--plain-listen", metavar="HOST:PORT", help="API for people without TLS too, for a proxy on this machine")
    days = str(config.CERTIFICATE_DAYS)
    add("--certificate-days", default=days, metavar="DAYS", help="life of a device's certificate (default %(default)s)")
    add("--broker", metavar="URL", help="an external broker, mqtts://host:port, instead of the embedded")
    add(
        "--broker-listen",
        default="127.0.0.1:8883",
        metavar="HOST:PORT",
        help="embedded broker (default %(default)s; port 0: a free one)",
    )
    add("--mosquitto-crl", type=Path, metavar="FILE", help="an external Mosquitto's revocation list, kept from here")
    add("--mosquitto-pid", type=Path, metavar="FILE", help="its pid file: it is told (SIGHUP) when the list changed")
    add("--sideload", default="", metavar="POLICY", help="of files on devices: forbid, once (the default), pin")
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


def _command(given: argparse.Namespace) -> int:
    """A command that reads the data folder. Raises InterlockError."""
    try:
        return COMMANDS[given.command](given)
    except OSError as bad:
        print(f"interlock-server: {bad.filename or given.command}: {bad.strerror or bad}", file=sys.stderr)
        return 1


def main(arguments: list[str] | None = None) -> int:
    """The console script. 0: stopped as asked; 1: could not run; 2: asked wrongly."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 2
    try:
        if given.command in COMMANDS:
            return _command(given)
        settings = config.Settings(
            data=(given.data or config.default_data()).absolute(),
            listen=config.address(given.listen, "--listen"),
            broker=given.broker,
            broker_listen=config.address(given.broker_listen, "--broker-listen"),
            public_url=given.public_url.rstrip("/") if given.public_url else None,
            token_file=given.token_file,
            sideload=config.sideload(given.sideload),
            start_spread_s=config.spread(given.start_spread),
            plain_listen=config.plain(given.plain_listen),
            certificate_days=config.days(given.certificate_days),
            mosquitto=config.mosquitto(given.mosquitto_crl, given.mosquitto_pid, given.broker),
        )
        if given.broker:
            Address.parse(given.broker)
    except InterlockError as bad:
        print(f"interlock-server: {bad.message}", file=sys.stderr)
        return 2
    runtime.set_up_logs(given.log_format)
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
