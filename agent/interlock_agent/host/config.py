"""The host's configuration: a TOML file of a few lines, or none at all.

Rules of the file:
- An unknown name or a wrong type is an error that names it: a misspelt limit must not be a silent default.
- The agent configures units over the control socket; what stands here is the owner's and the machine's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # installed where Python is 3.10

DEFAULT_PATH = Path("/etc/interlock/host.toml")


@dataclass(frozen=True)
class Settings:
    """Each field is a setting of the same name."""

    state_dir: str = "/var/lib/interlock"  # slots, links and the host's own state; survives a reboot
    run_dir: str = "/run/interlock"  # sockets and pids; cleared by a reboot
    control_socket: str = ""  # where the agent connects; empty: `host.sock` in run_dir
    worker_python: str = ""  # the Python that has the runtime; empty: the host's own
    concurrency: int = 2  # requests inside one worker at a time; the rest wait in the front
    max_body_bytes: int = 64 * 1024 * 1024  # of a request
    answer_timeout_s: float = 30.0  # a live worker that takes longer hangs: killed, the request is sent again
    no_worker_s: float = 10.0  # a request waits so long for a live worker, then 503
    drain_s: float = 5.0  # at the end of the host: for requests that were begun
    log_level: str = "info"  # debug, info, warning, error

    @property
    def control(self) -> str:
        """The path of the control socket."""
        return self.control_socket or str(Path(self.run_dir) / "host.sock")


def read(path: Path | None) -> Settings:
    """The settings of a file; the defaults when no file was named and there is none in the usual place. Blocks.
    Raises OSError, ValueError with a sentence for people."""
    if path is None:
        named = os.environ.get("INTERLOCK_HOST_CONFIG")
        path = Path(named) if named else DEFAULT_PATH
        if not named and not path.exists():
            return Settings()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as malformed:
        raise ValueError(f"{path}: {malformed}") from None
    return _checked(path, document)


def _checked(path: Path, document: dict[str, Any]) -> Settings:
    defaults = Settings()
    known = {field.name: type(getattr(defaults, field.name)) for field in fields(Settings)}
    for name, value in document.items():
        if name not in known:
            raise ValueError(f"{path}: unknown setting {name!r}; there are: {', '.join(known)}")
        wanted = known[name]
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise ValueError(f"{path}: {name} is a {wanted.__name__}, not {value!r}")
        if wanted in (int, float) and value <= 0:
            raise ValueError(f"{path}: {name} is above zero, not {value!r}")
    settings = Settings(**document)
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise ValueError(f"{path}: log_level is debug, info, warning or error, not {settings.log_level!r}")
    return settings
