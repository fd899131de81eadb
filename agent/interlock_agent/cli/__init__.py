"""`interlock-agent`: what a device owner or a technician types.

Exit codes: 0 done · 1 refused, failed, rejected or reverted (the message says which) · 2 the command line or the
configuration is wrong · 3 try again later (no agent, no host, no network, no space) · 4 inconclusive (`gate` alone).
A table fits 80 columns; a pipe gets whole lines.
"""

from __future__ import annotations

from typing import Annotated

import typer

from interlock_agent.cli import change, contract, gate, look, service, verdict
from interlock_shared import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""The agent of this device: it verifies model releases, proves them on this hardware, switches to them, and
takes them back.

Start with `interlock-agent enrol`, run the service (`systemctl start interlock-host interlock-agent`), and look at
`interlock-agent status`. Without a network: `interlock-agent install detector-1.4.0.bundle`.""",
)
COMMANDS = (
    service.run,
    service.enrol,
    look.status,
    look.history,
    verdict.verdict,
    gate.gate,
    change.install,
    change.rollback,
    change.unpin,
    change.forgive,
    change.health,
)
for _command in COMMANDS:
    app.command()(_command)
app.add_typer(contract.app, name="contract")


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"interlock-agent {__version__}")
        raise typer.Exit(0)


def main() -> int:
    """Entry of the console script; the exit code."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
