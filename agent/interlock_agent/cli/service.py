"""`run` and `enrol`: the service itself, and the identity it needs."""

from __future__ import annotations

import os
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from interlock_agent import config as configuration
from interlock_agent.cli import output
from interlock_agent.fetcher import messages
from interlock_shared.errors import Busy, Conflict, InterlockError, Invalid, Later

KEY_HELP = (
    "Where the private key is: `file`; `tpm:` makes it in this machine's TPM (needs the package tpm2-openssl); "
    "`pkcs11:token=…;object=…?pin-source=file:/…` is one that is in a token already (pkcs11-provider)."
)
APPROVAL_EVERY_S = 10.0  # between two questions of a device that waits for a person


def run(config: output.ConfigPath = None) -> None:
    """Run the agent until SIGTERM; systemd does this.

    Example: interlock-agent run --config /etc/interlock/agent.toml
    """
    named = [] if config is None else ["--config", str(config)]
    # This process becomes the service: what the command line needed is given back, the process id stays (systemd).
    os.execv(sys.executable, [sys.executable, "-m", "interlock_agent", *named])  # noqa: S606  # our own module


def enrol(
    server: Annotated[str, typer.Option(help="Address of the update server, https://…")] = "",
    token: Annotated[
        str, typer.Option(help="Enrolment token: `interlock device token` prints it.", envvar="INTERLOCK_ENROL_TOKEN")
    ] = "",
    root_sha256: Annotated[
        str, typer.Option(help="SHA-256 of the server's root metadata; printed beside the token.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="Wanted device id; default: the server chooses.")] = None,
    key: Annotated[str, typer.Option("--key", metavar="URI", help=KEY_HELP)] = "file",
    key_type: Annotated[str, typer.Option("--key-type", help="Of a key in a file: p256 or ed25519.")] = "p256",
    offline_root: Annotated[
        Path | None, typer.Option("--offline-root", help="No server: embed this root.json; needs --name.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace the enrolment that is there.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="For a person's approval, where one is needed.")
    ] = True,
    config: output.ConfigPath = None,
) -> None:
    """Give this device its identity: a key that is made here and never leaves, a certificate, and the root of trust.

    The server's root metadata is fetched and checked first; it names the authority of the server's TLS certificate, and
    only over TLS with that authority the token is sent. Cut short, the same command goes on.

    Example: interlock-agent enrol --server https://fleet:8443 --token ilt_… --root-sha256 9f86… --key tpm:
    """
    from interlock_agent.adapters import identity  # cryptography is only loaded where it is needed

    state = output.load(config).device.state_dir
    if offline_root is not None and not name:
        raise typer.BadParameter("--offline-root needs --name")
    if offline_root is None and not (server and token and root_sha256):
        raise typer.BadParameter("--server, --token and --root-sha256 go together")
    if key_type not in ("p256", "ed25519"):
        raise typer.BadParameter("--key-type is p256 or ed25519")
    try:
        before = identity.enrolled(state)
        if before is not None and not again:
            where = f" with {before['server']}" if before.get("server") else ""
            message = f"this device is {before['device']} already, enrolled{where}; --again replaces that"
            raise Conflict(message, code="already_enrolled")
        if offline_root is not None and name:
            facts = identity.enrol_offline(state, offline_root.read_bytes(), name, key)
        else:
            named = messages.Job(
                "enrol", "", "", 0.0, "", server=server.rstrip("/"), name=name or "", key=key, key_type=key_type
            )
            facts = _approved(state, replace(named, token=token, root_sha256=root_sha256), wait=wait)
    except InterlockError as error:
        output.fail(error)
    except OSError as error:
        output.fail(Invalid(configuration.unusable(error), code="io"))
    output.out.print(f"enrolled as [bold]{facts['device']}[/]; the identity is in {escape(str(state))}", soft_wrap=True)
    if offline_root is not None and output.load(config).sideload.unenrolled != "allow":
        hint = 'its owner must allow files: unenrolled = "allow" under [sideload] in the agent\'s configuration'
        output.out.print(escape(f"this device takes no release yet: {hint}"), soft_wrap=True)
    output.out.print("next: (re)start interlock-host and interlock-agent")


def _approved(state: Path, job: messages.Job, *, wait: bool) -> dict[str, Any]:
    """Enrol; with a batch's token, ask again until a person has said yes. Raises Busy with `--no-wait`."""
    from interlock_agent.adapters import identity

    told = False
    while True:
        try:
            facts = identity.enrol(state, job)
        except Later:
            if not told:
                raise
            facts = {}  # it waits already: a network that is away for a while ends nothing
        if facts.get("status") == "enrolled":
            return facts
        if facts and not told:
            told = True
            job = replace(job, name=str(facts["device"]))  # the id that was given is asked for from now on
            output.out.print(f"waits for approval as [bold]{facts['device']}[/]; who runs the fleet lets it in:")
            output.out.print(
                f"  interlock device approve {facts['device']} --key {facts['keyid'][:16]}", soft_wrap=True
            )
        if not wait:
            raise Busy("it waits for approval; the same command asks again", code="waiting_for_approval")
        time.sleep(APPROVAL_EVERY_S * (0.5 + random.random()))  # jitter: a batch boots at once
