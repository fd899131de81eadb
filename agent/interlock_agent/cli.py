"""`interlock-agent`: what a device owner or a technician types.

Exit codes: 0 done · 1 refused, failed, rejected or reverted (the message says which) · 2 the command line or the
configuration is wrong · 3 try again later (no agent, no host, no network, no space). A table fits 80 columns; a pipe
gets whole lines.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interlock_agent import config as configuration
from interlock_agent.control_client import ask
from interlock_shared import __version__
from interlock_shared.errors import Conflict, InterlockError, Invalid, Later

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""The agent of this device: it verifies model releases, proves them on this hardware, switches to them, and
takes them back.

Start with `interlock-agent enrol`, run the service (`systemctl start interlock-host interlock-agent`), and look at
`interlock-agent status`. Without a network: `interlock-agent install detector-1.4.0.bundle`.""",
)
PIPE_WIDTH = 4096  # a program reads whole lines; a table is folded for people alone
out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
err = Console(stderr=True, highlight=False)

ConfigPath = Annotated[Path | None, typer.Option("--config", help="The agent's TOML file.", envvar="INTERLOCK_CONFIG")]
AsJson = Annotated[bool, typer.Option("--json", help="The whole answer as JSON, for programs.")]

GOOD = ("confirmed",)
FACTS = ("offered", "confirmed", "running", "fallback", "address")
PLAIN = ("fraction", "candidate / incumbent")  # units that say no more than the name of the check
MARKS = {"pass": "[green]pass[/]", "fail": "[red]fail[/]", "inconclusive": "[yellow]inconclusive[/]"}


def _fail(error: InterlockError, as_json: bool = False) -> NoReturn:
    if as_json:
        print(json.dumps({"error": error.document()}))
    else:
        _complain(error)
    raise typer.Exit(3 if isinstance(error, Later) else 1)


def _complain(error: InterlockError) -> None:
    err.print(f"[red]error[/]{escape(f'[{error.code}]: {error.message}')}", soft_wrap=True)


def _show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], optional: Sequence[str] = ()) -> None:
    """Rows for people; an `optional` column without a word in any row is left out."""
    known = list(rows)
    kept = [
        n for n, name in enumerate(columns) if name not in optional or any(row[n] not in ("", "–") for row in known)
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for n in kept:
        table.add_column(columns[n], overflow="fold")
    for row in known:
        table.add_row(*(row[n] for n in kept))
    if sys.stdout.isatty():
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def _load(path: Path | None) -> configuration.Config:
    try:
        return configuration.load(path)
    except Invalid as bad:
        _complain(bad)
        raise typer.Exit(2) from None


def _ask(path: Path | None, op: str, as_json: bool = False, **fields: Any) -> dict[str, Any]:
    socket = _load(path).device.run_dir / "agent.sock"
    try:
        return ask(socket, op, **fields)
    except InterlockError as error:
        _fail(error, as_json)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, sort_keys=True))


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"interlock-agent {__version__}")
        raise typer.Exit(0)


@app.command()
def run(config: ConfigPath = None) -> None:
    """Run the agent until SIGTERM; systemd does this.

    Example: interlock-agent run --config /etc/interlock/agent.toml
    """
    named = [] if config is None else ["--config", str(config)]
    # This process becomes the service: what the command line needed is given back, the process id stays (systemd).
    os.execv(sys.executable, [sys.executable, "-m", "interlock_agent", *named])  # noqa: S606  # our own module


@app.command()
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
    config: ConfigPath = None,
) -> None:
    """Give this device its identity: a key that is made here and never leaves, and the root of trust.

    The server's root metadata is fetched and checked first; only then the token is sent.

    Example: interlock-agent enrol --server http://fleet:8080 --token ilt_… --root-sha256 9f86…
    """
    from interlock_agent.adapters import identity  # cryptography is only loaded where it is needed

    state = _load(config).device.state_dir
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
        _fail(error)
    except OSError as error:
        _fail(Invalid(configuration.unusable(error), code="io"))
    out.print(f"enrolled as [bold]{facts['device']}[/]; the identity is in {escape(str(state))}", soft_wrap=True)
    out.print("next: (re)start interlock-host and interlock-agent")


@app.command()
def status(as_json: AsJson = False, config: ConfigPath = None) -> None:
    """What is offered, installed, confirmed and running, for each model.

    Example: interlock-agent status --json
    """
    document = _ask(config, "status", as_json)
    if as_json:
        _print_json(document)
        return
    link = document.get("link")
    online = "no server" if link is None else "connected" if link["connected"] else f"offline ({link['trouble']})"
    host = document["host"] or "away"
    out.print(
        f"[bold]{document['device']}[/]  agent {document['agent']}  host {host}  {escape(online)}", soft_wrap=True
    )
    rows = [
        (name, _phase(unit), *(unit.get(key) or "–" for key in FACTS), escape(unit.get("reason") or ""))
        for name, unit in sorted(document["units"].items())
    ]
    if rows:
        _show_table(("model", "phase", *FACTS, "why"), rows, optional=("why",))
    else:
        out.print("no model yet: roll one out, or `interlock-agent install FILE`")
    for note in document["notes"]:
        out.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for entry in document["quarantine"]:
        text = f"{entry['version']} ({entry['payload_sha256'][:12]}…): {entry['reason']} at {entry['at']}"
        out.print(f"[red]quarantine[/] {escape(text)}", soft_wrap=True)


def _phase(unit: dict[str, Any]) -> str:
    progress = unit.get("progress") or {}
    if progress.get("of"):
        return f"{unit['phase']} {100 * progress['done'] // progress['of']} %"
    if progress.get("stage"):
        return f"{unit['phase']} ({progress['stage']})"
    return str(unit["phase"])


@app.command()
def history(
    model: Annotated[str | None, typer.Argument(help="One model; default: all.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=1000)] = 50,
    as_json: AsJson = False,
    config: ConfigPath = None,
) -> None:
    """Every transition of the state machine, newest first.

    Example: interlock-agent history detector --limit 20
    """
    rows = _ask(config, "history", as_json, unit=model, limit=limit)["history"]
    if as_json:
        _print_json(rows)
        return
    if not rows:
        out.print("nothing has happened yet")
        return
    cells = [
        (row["at"][:19], row["unit"], str(row["generation"]), row["before"], row["event"], row["after"], row["reason"])
        for row in rows
    ]
    _show_table(("when", "model", "gen", "from", "event", "to", "why"), cells, optional=("why",))


@app.command()
def verdict(
    model: Annotated[str, typer.Argument(help="The model.")],
    generation: Annotated[int | None, typer.Option(help="Of which attempt; default: the newest.")] = None,
    as_json: AsJson = False,
    config: ConfigPath = None,
) -> None:
    """What the gate measured here, check by check.

    Example: interlock-agent verdict detector
    """
    document = _ask(config, "verdict", as_json, unit=model, generation=generation)["verdict"]
    if as_json:
        _print_json(document)
        return
    colour = {"accept": "green", "reject": "red"}.get(document["outcome"], "yellow")
    beside = f" beside {document['incumbent']['version']}" if document["incumbent"] else ""
    head = (
        f"{document['model']} {document['version']}{beside}: [{colour}]{document['outcome']}[/] – "
        f"{escape(document['message'])}"
    )
    out.print(head, soft_wrap=True)
    rows: list[tuple[str, ...]] = []
    for stage in document["stages"]:
        rows += [_check_cells(check) for check in stage["checks"]]
        if not stage["checks"]:
            rows.append((stage["stage"], "", "", "", stage["outcome"].replace("_", " ")))
    _show_table(("check", "measured", "incumbent", "limit", "outcome"), rows, optional=("incumbent",))


def _figure(value: Any, unit: str = "") -> str:
    if isinstance(value, bool) or value is None:
        return "–"
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    text = f"{value:.4g}" if isinstance(value, float | int) else str(value)
    return f"{text} {unit}".rstrip()


def _check_cells(check: dict[str, Any]) -> tuple[str, ...]:
    unit = "" if check["unit"] in PLAIN else check["unit"] or ""
    outcome = MARKS.get(check["outcome"], check["outcome"].replace("_", " "))
    if check["reason"] not in ("ok", ""):
        outcome += f" ({check['reason']})"
    measured = _figure(check["measured"], unit)
    if check["low"] is not None:
        measured += escape(f" [{_figure(check['low'])}, {_figure(check['high'])}]")
    incumbent, limit = _figure(check["incumbent"], unit), _figure(check["limit"], unit)
    return check["check"], measured, incumbent, limit, outcome


@app.command()
def install(
    file: Annotated[str, typer.Argument(help="A .bundle that was exported from the server; - reads a pipe.")],
    as_json: AsJson = False,
    config: ConfigPath = None,
) -> None:
    """Install a release from a file, through the same trust and the same gate as over the network.

    The file is read once; it carries its signatures and a permit. The server learns of it when there is a link.

    Example: interlock-agent install /media/usb/detector-1.4.0.bundle
    """
    socket = _load(config).device.run_dir / "agent.sock"
    try:
        source = sys.stdin.buffer if file == "-" else Path(file).open("rb")  # noqa: SIM115  # closed by the end of the process
    except OSError as bad:
        _fail(Invalid(f"{file}: {bad.strerror}", code="io", field="file"), as_json)
    try:
        answer = ask(socket, "install", descriptor=source.fileno(), progress=_progress(as_json))
    except InterlockError as error:
        _fail(error, as_json)
    _end(answer, as_json)


def _progress(as_json: bool) -> Any:
    last = [""]

    def show(document: dict[str, Any]) -> None:
        text = str(document.get("phase", ""))
        if document.get("of"):
            text += f" {100 * document['done'] // document['of']} %"
        elif document.get("stage"):
            text += f": {document['stage']}"
        if not as_json and text != last[0] and (out.is_terminal or text.split()[0] != (last[0].split() or [""])[0]):
            err.print(text, end="\r" if out.is_terminal else "\n")
        last[0] = text

    return show


def _end(answer: dict[str, Any], as_json: bool) -> NoReturn:
    if as_json:
        _print_json(answer)
    else:
        why = f" ({answer['reason']})" if answer["reason"] not in ("", "ok") else ""
        out.print(f"{answer['unit']} {answer.get('version', '')}: [bold]{answer['phase']}[/]{why}")
    if answer["phase"] in GOOD:
        raise typer.Exit(0)
    raise typer.Exit(3 if answer["phase"] == "waiting" else 1)


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="The model.")], as_json: AsJson = False, config: ConfigPath = None
) -> None:
    """Go back: out of a trial at once, else to the previous confirmed release in the spare slot. Needs no network.

    What is left is not tried again until `interlock-agent forgive`.

    Example: interlock-agent rollback detector
    """
    socket = _load(config).device.run_dir / "agent.sock"
    try:
        answer = ask(socket, "rollback", unit=model, progress=_progress(as_json))
    except InterlockError as error:
        _fail(error, as_json)
    if answer["phase"] == "reverted":  # out of a trial: that was the wish
        answer["phase"] = "confirmed"
    _end(answer, as_json)


@app.command()
def forgive(
    payload: Annotated[str, typer.Argument(help="Payload SHA-256, as `status --json` shows it.")],
    config: ConfigPath = None,
) -> None:
    """Let a payload that is in quarantine be tried again.

    Example: interlock-agent forgive 3f5a…
    """
    answer = _ask(config, "forgive", payload_sha256=payload)
    out.print(f"{answer['forgiven']} entries removed")


def main() -> int:
    """Entry of the console script; the exit code."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
