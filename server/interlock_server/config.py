"""What `interlock-server run` was told, checked."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from interlock_shared.base import Name
from interlock_shared.errors import Invalid

EVERYWHERE = ("0.0.0.0", "::", "")
SYSTEM_FOLDER = Path("/var/lib/interlock-server")


CERTIFICATE_DAYS = 365  # of a device's certificate: it renews after two thirds, so it may be away for four months
SPREAD_MAX_S = 86_400.0  # as the desired document has it


@dataclass(frozen=True)
class Mosquitto:
    """Files of an external Mosquitto: the list of revoked certificates, which this server keeps, and its pid."""

    crl: Path
    pid: Path | None = None


@dataclass(frozen=True)
class Settings:
    """The options of `run`."""

    data: Path
    listen: tuple[str, int]
    broker: str | None
    broker_listen: tuple[str, int]
    public_url: str | None
    token_file: Path | None
    sideload: str = ""  # what a file may do on the devices, unless their owners say more
    start_spread_s: float = 0.0  # devices start a rollout at a place of their own inside it
    mosquitto: Mosquitto | None = None
    plain_listen: tuple[str, int] | None = None
    certificate_days: int = CERTIFICATE_DAYS


SIDELOAD = ("forbid", "once", "pin")


def sideload(text: str) -> str:
    """The policy of `--sideload`. Raises Invalid."""
    if text and text not in SIDELOAD:
        raise Invalid(f"--sideload: {text!r} is none of {', '.join(SIDELOAD)}", field="--sideload")
    return text


def spread(text: str) -> float:
    """Seconds of `--start-spread`. Raises Invalid."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= SPREAD_MAX_S:
        raise Invalid(
            f"--start-spread: {text!r} is not between 0 and {SPREAD_MAX_S:.0f} seconds", field="--start-spread"
        )
    return seconds


def mosquitto(crl: Path | None, pid: Path | None, broker: str | None) -> Mosquitto | None:
    """The two options go together, and with an external broker. Raises Invalid."""
    if crl is None and pid is None:
        return None
    if crl is None:
        raise Invalid("--mosquitto-pid goes with --mosquitto-crl", field="--mosquitto-crl")
    if broker is None:
        raise Invalid("--mosquitto-crl is for an external broker: --broker", field="--broker")
    return Mosquitto(crl.absolute(), pid.absolute() if pid else None)


def device_id(text: str, option: str) -> str:
    """Raises Invalid."""
    try:
        return TypeAdapter(Name).validate_python(text)
    except ValidationError:
        raise Invalid(f"{option}: {text!r} is no device's id", field=option) from None


def days(text: str) -> int:
    """Days of `--certificate-days`. Raises Invalid."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 3660:
        raise Invalid(f"--certificate-days: {text!r} is not from 1 to 3660", field="--certificate-days")
    return int(text)


def hosts(settings: Settings) -> list[str]:
    """The names and addresses by which this server is reached, for its certificate. Blocks: it asks the system."""
    found = ["localhost", "127.0.0.1", "::1"]
    if settings.public_url and (named := urlsplit(settings.public_url).hostname):
        found.insert(0, named)
    for host, _ in (settings.listen, settings.broker_listen):
        found += [host] if host not in EVERYWHERE else [socket.gethostname(), socket.getfqdn(), *_own_addresses()]
    return list(dict.fromkeys(one for one in found if one))


def _own_addresses() -> list[str]:
    """The addresses that this machine's way out has; nothing is sent."""
    found = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # for documentation
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((far, 9))
            found.append(str(asking.getsockname()[0]))
    return found


def default_data() -> Path:
    """`/var/lib/interlock-server` for root, else `interlock-server` under `$XDG_STATE_HOME` (`~/.local/state`)."""
    if os.geteuid() == 0:
        return SYSTEM_FOLDER
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "interlock-server"


def address(text: str, option: str) -> tuple[str, int]:
    """`HOST:PORT`, `[::1]:PORT`; port 0 takes a free one. Raises Invalid."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise Invalid(f"{option}: {text!r} is not HOST:PORT", field=option)
    return host, int(port)


def plain(text: str | None) -> tuple[str, int] | None:
    """The address of `--plain-listen`: of this machine alone, since bearer tokens pass there. Raises Invalid."""
    if text is None:
        return None
    host, port = address(text, "--plain-listen")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host, port
    if host != "localhost":
        why = "tokens pass there without TLS, so it is an address of this machine alone, as 127.0.0.1"
        raise Invalid(f"--plain-listen: {text!r}: {why}", field="--plain-listen")
    return host, port


def show(host: str, port: int) -> str:
    """`HOST:PORT` for a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
