"""Structured logs on standard error: `text` for people, `json` for collectors. Unit and generation in every line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

FIELDS = ("unit", "generation", "event", "reason", "phase")


class JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, tz=timezone.utc).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        line.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Text(logging.Formatter):
    """`level message unit=… generation=…`; systemd adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = " ".join(
            f"{name}={getattr(record, name)}" for name in FIELDS if getattr(record, name, "") not in ("", None)
        )
        line = f"{record.levelname.lower():7} {record.getMessage()} {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(style: str) -> None:
    """Send all logs to standard error in that style."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
