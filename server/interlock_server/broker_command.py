"""`interlock-server broker-config`: settings of an external broker, shown or written, with the certificate it needs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from interlock_server import config
from interlock_server.adapters.database import Database
from interlock_server.adapters.device_ca import DEVICE_CA, DeviceCA
from interlock_server.core import broker_config
from interlock_server.core.moments import parse
from interlock_shared import durable
from interlock_shared.errors import Invalid, NotFound

HELP = """\
Settings of an external broker, ready to use: TLS, the certificate as the identity, who may what, limits.

  interlock-server broker-config mosquitto                             shows them
  interlock-server broker-config mosquitto --host broker.example --output /etc/mosquitto/interlock
  interlock-server run --broker mqtts://broker.example:8883 \\
    --mosquitto-crl /etc/mosquitto/interlock/crl.pem --mosquitto-pid /run/mosquitto/mosquitto.pid

With --output the folder gets what the settings name, too: the broker's key and certificate for --host (broker.pem,
valid for 13 months: run the command again before), the device CA (device_ca.pem) and the list of revoked certificates
(crl.pem). The server itself connects with a certificate of its own, and needs no user name.
docs/reference/brokers.md says what holds for which broker.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommand."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        "broker-config", help="settings of an external broker", description=HELP, formatter_class=raw
    )
    add = parser.add_argument
    add("broker", choices=broker_config.BROKERS, help="whose settings")
    add("--data", type=Path, metavar="DIR", help="the server's data folder, as of run")
    add("--output", type=Path, metavar="DIR", help="write them there, with certificates, instead of showing them")
    add("--host", action="append", default=[], metavar="NAME", help="name or address of the broker; repeatable")
    add("--listen", default="0.0.0.0:8883", metavar="HOST:PORT", help="where it listens (default %(default)s)")
    add(
        "--folder",
        metavar="DIR",
        help="where the files will lie on its machine (default: --output, or /etc/…)",
    )
    add("--device", action="append", default=[], metavar="ID", help="for nats, beside those enrolled; repeatable")


def run(given: argparse.Namespace) -> int:
    """The subcommand. Raises InterlockError, OSError."""
    data = (given.data or config.default_data()).absolute()
    listen, port = config.address(given.listen, "--listen")
    folder = given.folder or (str(given.output.absolute()) if given.output else broker_config.FOLDERS[given.broker])
    devices = {config.device_id(one, "--device") for one in given.device}
    revoked: dict[str, datetime] = {}
    if (data / "server.db").exists():
        known, revoked = asyncio.run(_known(data))
        devices |= known
    wanted = broker_config.Wanted(folder, listen, port, sorted(devices))
    texts = broker_config.files(given.broker, wanted)
    if given.output is None:
        for name, text in texts.items():
            sys.stdout.write(f"# ---- {folder}/{name}\n{text}\n")
        return 0
    if not given.host:
        raise Invalid("--output needs --host: the names that the broker's certificate is for", field="--host")
    if not (data / "keys" / f"{DEVICE_CA}.pem").exists():  # made here, they would be authorities that nobody knows
        raise NotFound(
            f"--data {data}: no server has run here, so there is no authority to sign with: start it once",
            code="no_key",
        )
    _write(given.output, texts, DeviceCA.open(data / "keys"), given.host, revoked)
    sys.stdout.write(f"written to {given.output}: {', '.join([*texts, *_CERTIFICATES])}\n")
    return 0


_CERTIFICATES = (broker_config.CHAIN, broker_config.DEVICE_CA, broker_config.CRL)


def _write(
    folder: Path, texts: Mapping[str, str], authority: DeviceCA, hosts: list[str], revoked: Mapping[str, datetime]
) -> None:
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    for name, text in texts.items():
        durable.replace_file(folder / name, text.encode(), mode=0o640)
    durable.replace_file(folder / broker_config.CHAIN, authority.broker_pem(hosts), mode=0o640)
    durable.replace_file(folder / broker_config.DEVICE_CA, authority.device_ca, mode=0o644)
    durable.replace_file(folder / broker_config.CRL, authority.crl(revoked, datetime.now(UTC)), mode=0o644)


async def _known(data: Path) -> tuple[set[str], dict[str, datetime]]:
    """(ids of devices that are not revoked, {serial: since when} of what is)."""
    database = await Database.open(data / "server.db")
    try:
        async with database.reading() as rows:
            found = await rows.list("devices")
            issued = await rows.list("certificates")
    finally:
        await database.close()
    revoked = {one["serial"]: parse(one["revoked_at"]) for one in issued if one["revoked_at"] is not None}
    return {str(one["id"]) for one in found if one["revoked_at"] is None}, revoked
