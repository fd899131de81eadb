"""Where the CLI finds server, token and keys: options, then the environment, then what `interlock login` wrote."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from interlock_shared import durable, topics
from interlock_shared.errors import Invalid, NotFound

SERVER_ENV, TOKEN_ENV, KEYS_ENV, CA_ENV = "INTERLOCK_SERVER", "INTERLOCK_TOKEN", "INTERLOCK_KEYS", "INTERLOCK_CA"
KNOWN = ("server", "token", "keys", "ca")


@dataclass(frozen=True)
class Settings:
    """What was found; `need` says what is missing."""

    server: str | None = None
    token: str | None = None
    keys: str | None = None
    ca: str | None = None

    def authority(self) -> str | None:
        """PEM of what the server's certificate must be signed by: the file that was named, else what this side's own
        root says; None: the system's authorities. Raises Invalid (`bad_ca`)."""
        if self.ca:
            try:
                return Path(self.ca).read_text()
            except (OSError, UnicodeDecodeError) as bad:
                raise Invalid(f"{self.ca}: {bad}", field="--ca", code="bad_ca") from None
        try:
            root = json.loads((Path(self.keys) / "root.json").read_bytes()) if self.keys else {}
            return str(root["signed"][topics.ROOT_EXTENSION]["tls_ca"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def need(self, name: str) -> str:
        """A setting that a command cannot do without. Raises NotFound (`not_logged_in`)."""
        value = getattr(self, name)
        if not value:
            variable = {"server": SERVER_ENV, "token": TOKEN_ENV, "keys": KEYS_ENV}[name]
            login = "" if name == "keys" else ", or run `interlock login`"
            raise NotFound(f"no {name}: give --{name}, set {variable}{login}", code="not_logged_in", setting=name)
        return str(value)


def file(environment: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_CONFIG_HOME/interlock/cli.toml`, by default under `~/.config`."""
    home = environment.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "interlock" / "cli.toml"


def load(
    server: str | None = None,
    token: str | None = None,
    keys: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Options win over the environment, that over the file. Raises Invalid on a file that is none."""
    stored = _stored(file(environment))
    return Settings(
        server or environment.get(SERVER_ENV) or stored.get("server"),
        token or environment.get(TOKEN_ENV) or stored.get("token"),
        str(keys) if keys else environment.get(KEYS_ENV) or stored.get("keys"),
        environment.get(CA_ENV) or stored.get("ca"),
    )


def _stored(path: Path) -> dict[str, str]:
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as bad:
        raise Invalid(f"{path}: {bad.strerror}", code="bad_settings") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        raise Invalid(f"{path}: {bad}", code="bad_settings") from None
    for name, value in document.items():
        if name not in KNOWN or not isinstance(value, str):
            raise Invalid(f"{path}: {name}: a text under one of {', '.join(KNOWN)} is expected", code="bad_settings")
    return document


def store_ca(path: Path, pem: str) -> Path:
    """Keep the server's authority beside the settings; its file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    durable.replace_file(path.with_name("server_ca.crt"), pem.encode(), mode=0o600)
    return path.with_name("server_ca.crt")


def store(path: Path, values: Mapping[str, str | None]) -> None:
    """Keep them for later commands, readable by their owner alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    merged = {**_stored(path), **{name: value for name, value in values.items() if value}}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in merged.items())
    durable.replace_file(path, text.encode(), mode=0o600)
