"""`run` and `enrol`: the service itself, and the identity it needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from interlock_agent import config as configuration
from interlock_agent.cli import output
from interlock_shared.errors import Conflict, InterlockError, Invalid


def run(config: output.ConfigPath = None) -> None:
    """Run the agent until SIGTERM; systemd does this.

    Example: interlock-agent run --config /etc/interlock/agent.toml
    """
    named = [] if config is None else ["--config", str(config)]
    # This process becomes the service: what the command line needed is given back, the process id stays (systemd).
    os.execv(sys.executable, [sys.executable, "-m", "interlock_agent", *named])  # noqa: S606  # our own module


def enrol(
    server: Annotated[str, typer.Option(help="Address of the update server.")] = "",
    token: Annotated[
        str, typer.Option(help="One-time token: `interlock device token` prints it.", envvar="INTERLOCK_ENROL_TOKEN")
    ] = "",
    root_sha256: Annotated[
        str, typer.Option(help="SHA-256 of the server's root metadata; printed beside the token.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="Wanted device id; default: the server chooses.")] = None,
    offline_root: Annotated[
        Path | None, typer.Option("--offline-root", help="No server: embed this root.json; needs --name.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace the enrolment that is there.")] = False,
    config: output.ConfigPath = None,
) -> None:
    """Give this device its identity: a key that is made here and never leaves, and the root of trust.

    The server's root metadata is fetched and checked first; only then the token is sent.

    Example: interlock-agent enrol --server http://fleet:8080 --token ilt_… --root-sha256 9f86…
    """
    from interlock_agent.adapters import identity  # cryptography is only loaded where it is needed

    state = output.load(config).device.state_dir
    if offline_root is not None and not name:
        raise typer.BadParameter("--offline-root needs --name")
    if offline_root is None and not (server and token and root_sha256):
        raise typer.BadParameter("--server, --token and --root-sha256 go together")
    try:
        before = identity.enrolled(state)
        if before is not None and not again:
            where = f" with {before['server']}" if before.get("server") else ""
            message = f"this device is {before['device']} already, enrolled{where}; --again replaces that"
            raise Conflict(message, code="already_enrolled")
        if offline_root is not None and name:
            facts = identity.enrol_offline(state, offline_root.read_bytes(), name)
        else:
            facts = identity.enrol(state, server, token, root_sha256, name)
    except InterlockError as error:
        output.fail(error)
    except OSError as error:
        output.fail(Invalid(configuration.unusable(error), code="io"))
    output.out.print(f"enrolled as [bold]{facts['device']}[/]; the identity is in {escape(str(state))}", soft_wrap=True)
    output.out.print("next: (re)start interlock-host and interlock-agent")
