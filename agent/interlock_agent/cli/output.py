"""What every command uses: the two consoles, the configuration, the way to a running agent, how an answer ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interlock_agent import config as configuration
from interlock_agent import control_client
from interlock_shared.errors import InterlockError, Invalid, Later

PIPE_WIDTH = 4096  # a program reads whole lines; a table is folded for people alone
out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
err = Console(stderr=True, highlight=False)

ConfigPath = Annotated[Path | None, typer.Option("--config", help="The agent's TOML file.", envvar="INTERLOCK_CONFIG")]
AsJson = Annotated[bool, typer.Option("--json", help="The whole answer as JSON, for programs.")]

GOOD = ("confirmed",)


def fail(error: InterlockError, as_json: bool = False, exit_code: int | None = None) -> NoReturn:
    """Say the error, and end with its exit code, or with the one that the command has for it."""
    if as_json:
        print(json.dumps({"error": error.document()}))
    else:
        complain(error)
    if exit_code is not None:
        raise typer.Exit(exit_code)
    asked_wrongly = str(error.details.get("field", "")).startswith("--")  # the value of an option
    raise typer.Exit(2 if asked_wrongly else 3 if isinstance(error, Later) else 1)


def complain(error: InterlockError) -> None:
    """One line on standard error."""
    err.print(f"[red]error[/]{escape(f'[{error.code}]: {error.message}')}", soft_wrap=True)


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], optional: Sequence[str] = (), dense: bool = False
) -> None:
    """Rows for people; an `optional` column without a word in any row is left out.
    `dense`: many columns; the first one, short names, is not folded."""
    known = list(rows)
    kept = [
        n for n, name in enumerate(columns) if name not in optional or any(row[n] not in ("", "–") for row in known)
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 1 if dense else 2, 0, 0), header_style="bold")
    for n in kept:
        table.add_column(columns[n], overflow="fold", no_wrap=dense and n == 0)
    for row in known:
        table.add_row(*(row[n] for n in kept))
    if sys.stdout.isatty():
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def load(path: Path | None) -> configuration.Config:
    """The configuration, or exit code 2."""
    try:
        return configuration.load(path)
    except Invalid as bad:
        complain(bad)
        raise typer.Exit(2) from None


def ask(path: Path | None, op: str, as_json: bool = False, **fields: Any) -> dict[str, Any]:
    """What the running agent answers, or the end."""
    socket = load(path).device.run_dir / "agent.sock"
    try:
        return control_client.ask(socket, op, **fields)
    except InterlockError as error:
        fail(error, as_json)


def print_json(document: Any) -> None:
    """For programs."""
    print(json.dumps(document, indent=2, sort_keys=True))


def progress(as_json: bool) -> Any:
    """Shows what an order that takes long is doing."""
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


def end(answer: dict[str, Any], as_json: bool, exit_code: int | None = None) -> NoReturn:
    """What became of a release, and the exit code of that, or the one that the command has for it."""
    if as_json:
        print_json(answer)
    else:
        why = f" ({answer['reason']})" if answer["reason"] not in ("", "ok") else ""
        out.print(f"{answer['unit']} {answer.get('version', '')}: [bold]{answer['phase']}[/]{why}")
        if answer.get("message") and answer["phase"] not in GOOD:
            err.print(escape(str(answer["message"])), soft_wrap=True)
    if exit_code is not None:
        raise typer.Exit(exit_code)
    if answer["phase"] in GOOD:
        raise typer.Exit(0)
    raise typer.Exit(3 if answer["phase"] == "waiting" else 1)
