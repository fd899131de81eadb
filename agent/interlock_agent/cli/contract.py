"""`contract show`, `contract accept`: what applications on this device rely on, and the one way to change it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from interlock_agent.cli import output
from interlock_shared.errors import Invalid

app = typer.Typer(no_args_is_help=True, help="The inputs, outputs and labels that applications rely on.")

Model = Annotated[str, typer.Argument(help="The model.")]
Candidate = Annotated[
    bool, typer.Option("--candidate", help="Of the release that was refused for breaking it, not of the confirmed one.")
]
COLOURS = {"+": "green", "-": "red"}


@app.command()
def show(
    model: Model,
    candidate: Candidate = False,
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """The contract, and in what the confirmed release differs from it.

    Example: interlock-agent contract show detector --candidate
    """
    answer = output.ask(config, "contract", as_json, unit=model, candidate=candidate)
    if as_json:
        output.print_json(answer)
        return
    kept = answer["contract"]
    rows = [
        (side[:-1], tensor["name"], tensor["dtype"], " × ".join(_axis(axis) for axis in tensor["shape"]) or "one value")
        for side in ("inputs", "outputs")
        for tensor in (kept or {}).get(side, ())
    ]
    if kept is None:
        output.out.print(f"{model} has no contract yet: the first confirmed release makes it")
    else:
        output.show_table(("what", "name", "type", "shape"), rows)
        output.out.print("no labels" if kept.get("labels_sha256") is None else f"{kept.get('labels')} labels")
    _difference(answer)


def _axis(size: Any) -> str:
    return "any" if size == -1 else str(size)


def _difference(answer: dict[str, Any]) -> None:
    if not answer["difference"]:
        output.out.print(f"{answer['release']} keeps to it")
        return
    output.out.print(f"with {escape(answer['release'])}:")
    for line in answer["difference"]:
        output.out.print(f"[{COLOURS[line[0]]}]{escape(line)}[/]", soft_wrap=True)


@app.command()
def accept(
    model: Model,
    candidate: Candidate = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """Make the confirmed release's signature the contract, or a refused candidate's; shows what changes, and asks.

    Applications that rely on the old one are for you to look after. A candidate that was refused for breaking the
    contract alone may be tried again: roll it out, or install it, once more.

    Example: interlock-agent contract accept detector --candidate
    """
    if as_json and not yes:
        output.fail(Invalid("a program cannot be asked: --json needs --yes", field="--yes"), as_json)
    shown = output.ask(config, "contract", as_json, unit=model, candidate=candidate)
    if not as_json:
        _difference(shown)
    if shown["difference"] and not yes and not typer.confirm("make this the contract?"):
        raise typer.Exit(1)
    digest = shown["proposed_sha256"]
    answer = output.ask(config, "contract", as_json, unit=model, candidate=candidate, accept=digest)
    if as_json:
        output.print_json(answer)
    else:
        output.out.print(f"{model}: the contract is that of {escape(answer['release'])}")
