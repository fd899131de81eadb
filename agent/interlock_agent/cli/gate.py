"""`gate`: judge a bundle on this machine without installing it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from interlock_agent.cli import output, report
from interlock_agent.cli.verdict import Svg
from interlock_shared.errors import InterlockError

EXIT = {"accept": 0, "reject": 1, "inconclusive": 4}
USAGE = 2
ENDED = 130  # by a signal, as a shell says it


def gate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A .bundle, or a folder that holds one.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="BUNDLE", help="What it is compared with; `installed`: what is confirmed here."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge, and install nothing.")] = False,
    svg: Svg = None,
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """Judge a bundle here as the gate of a device would, without an agent or a server, and install nothing.

    Exit codes: 0 accept, 1 reject or a broken bundle, 2 asked wrongly, 3 this machine cannot tell now, 4 inconclusive.

    Example: interlock-agent gate detector-1.4.0.bundle --against detector-1.3.0.bundle --dry-run
    """
    if not dry_run:
        output.err.print(
            "`interlock-agent gate` judges and installs nothing: say --dry-run. "
            f"To install it, behind the same gate: interlock-agent install {escape(str(bundle))}",
            soft_wrap=True,
        )
        raise typer.Exit(USAGE)
    settings = output.load(config)
    logging.basicConfig(level=logging.ERROR)

    from interlock_agent import dry_run as running  # the agent's parts: only where they are needed

    def tell(text: str) -> None:
        if output.err.is_terminal and not as_json:
            output.err.print(f"[dim]{escape(text)}[/]")

    try:
        judged = running.run(settings, bundle, against, tell)
        if svg is not None:
            report.write_picture(judged.verdict, svg)
    except InterlockError as error:
        output.fail(error, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(ENDED) from None
    if as_json and svg != "-":
        output.print_json({"verdict": judged.verdict, "signature": judged.signature})
    elif svg != "-":
        report.show(judged.verdict)
        output.out.print(f"\nsignature: {judged.signature}\nnothing was installed")
    raise typer.Exit(EXIT[judged.verdict["outcome"]])
