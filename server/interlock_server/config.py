"""What `interlock-server run` was told, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from interlock_shared.errors import Invalid

SYSTEM_FOLDER = Path("/var/lib/interlock-server")


SPREAD_MAX_S = 86_400.0  # as the desired document has it


@dataclass(frozen=True)
class Mosquitto:
    """Files of an external Mosquitto that this server keeps: who may connect, and what they may see."""

    passwords: Path
    acl: Path
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
    start_spread_s: float = 0.0  # devices start a rollout at a place of their own inside it
    mosquitto: Mosquitto | None = None


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


def mosquitto(passwords: Path | None, acl: Path | None, pid: Path | None, broker: str | None) -> Mosquitto | None:
    """The three options go together, and with an external broker. Raises Invalid."""
    if passwords is None and acl is None and pid is None:
        return None
    if passwords is None or acl is None:
        raise Invalid("--mosquitto-passwd and --mosquitto-acl go together", field="--mosquitto-passwd")
    if broker is None:
        raise Invalid("--mosquitto-passwd is for an external broker: --broker", field="--broker")
    return Mosquitto(passwords.absolute(), acl.absolute(), pid.absolute() if pid else None)


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


def show(host: str, port: int) -> str:
    """`HOST:PORT` for a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
