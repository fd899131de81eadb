"""What a service does around its work: one process a data folder, logs, readiness."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from interlock_shared.errors import Conflict


class Lock:
    """Held until the process ends, however it ends. Raises Conflict (`data_in_use`) when another one has it."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Conflict(f"another interlock-server runs on {folder}", code="data_in_use") from None

    def release(self) -> None:
        """Let the next one in."""
        self._file.close()


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logs(form: str) -> None:
    """Logs go to stderr, as text or as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("aiohttp.access", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify's protocol)."""
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        try:
            sender.connect("\0" + name[1:] if name.startswith("@") else name)
            sender.send(state.encode())
        except OSError as bad:
            logging.getLogger(__name__).warning("systemd was not told %s: %s", state, bad)
