"""`verdict`: what the gate measured here."""

from __future__ import annotations

from typing import Annotated

import typer

from interlock_agent.cli import output, report
from interlock_shared.errors import InterlockError

Svg = Annotated[
    str | None, typer.Option("--svg", metavar="FILE", help="Draw the latencies into this file; - is a pipe.")
]


def verdict(
    model: Annotated[str, typer.Argument(help="The model.")],
    generation: Annotated[int | None, typer.Option(help="Of which attempt; default: the newest.")] = None,
    svg: Svg = None,
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """What the gate measured here, check by check; why, on top.

    The margin says how far a figure lies inside its limit (+) or beyond it (−).

    Example: interlock-agent verdict detector --svg verdict.svg
    """
    document = output.ask(config, "verdict", as_json, unit=model, generation=generation)["verdict"]
    if svg is not None:
        try:
            report.write_picture(document, svg)
        except InterlockError as error:
            output.fail(error, as_json)
    if svg == "-":
        return
    if as_json:
        output.print_json(document)
    else:
        report.show(document)
