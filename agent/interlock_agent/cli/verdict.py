"""`verdict`: what the gate measured here."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from interlock_agent.cli import output

PLAIN = ("fraction", "candidate / incumbent")  # units that say no more than the name of the check
MARKS = {"pass": "[green]pass[/]", "fail": "[red]fail[/]", "inconclusive": "[yellow]inconclusive[/]"}


def verdict(
    model: Annotated[str, typer.Argument(help="The model.")],
    generation: Annotated[int | None, typer.Option(help="Of which attempt; default: the newest.")] = None,
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """What the gate measured here, check by check.

    Example: interlock-agent verdict detector
    """
    document = output.ask(config, "verdict", as_json, unit=model, generation=generation)["verdict"]
    if as_json:
        output.print_json(document)
        return
    colour = {"accept": "green", "reject": "red"}.get(document["outcome"], "yellow")
    beside = f" beside {document['incumbent']['version']}" if document["incumbent"] else ""
    head = (
        f"{document['model']} {document['version']}{beside}: [{colour}]{document['outcome']}[/] – "
        f"{escape(document['message'])}"
    )
    output.out.print(head, soft_wrap=True)
    rows: list[tuple[str, ...]] = []
    for stage in document["stages"]:
        rows += [_check_cells(check) for check in stage["checks"]]
        if not stage["checks"]:
            rows.append((stage["stage"], "", "", "", stage["outcome"].replace("_", " ")))
    output.show_table(("check", "measured", "incumbent", "limit", "outcome"), rows, optional=("incumbent",))


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
