"""What `interlock-server run` was told, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from interlock_shared.errors import Invalid

SYSTEM_FOLDER = Path("/var/lib/interlock-server")


@dataclass(frozen=True)
class Settings:
    """The options of `run`."""

    data: Path
    listen: tuple[str, int]
    broker: str | None
    broker_listen: tuple[str, int]
    public_url: str | None
    token_file: Path | None


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
