"""`status` and `history`: what is, and what happened."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from interlock_agent.cli import output

COLOURED = {"passing": "[green]{}[/]", "failing": "[red]{}[/]", "unavailable": "[yellow]{}[/]"}
FACTS = ("offered", "confirmed", "running", "fallback", "address")


def status(as_json: output.AsJson = False, config: output.ConfigPath = None) -> None:
    """What is offered, installed, confirmed and running, for each model.

    Example: interlock-agent status --json
    """
    document = output.ask(config, "status", as_json)
    if as_json:
        output.print_json(document)
        return
    link = document.get("link")
    online = "no server" if link is None else "connected" if link["connected"] else f"offline ({link['trouble']})"
    host = document["host"] or "away"
    output.out.print(
        f"[bold]{document['device']}[/]  agent {document['agent']}  host {host}  {escape(online)}", soft_wrap=True
    )
    key = document.get("key") or {"place": "file", "trouble": ""}
    if key["place"] != "file":
        answers = escape(key["trouble"] or "answers")
        output.out.print(f"key {escape(key['place'])}  {answers}", soft_wrap=True)
    rows = [
        (name, _phase(unit), *(unit.get(key) or "–" for key in FACTS), escape(_why(unit)))
        for name, unit in sorted(document["units"].items())
    ]
    if rows:
        output.show_table(("model", "phase", *FACTS, "why"), rows, optional=("why",))
    else:
        output.out.print("no model yet: roll one out, or `interlock-agent install FILE`")
    for name, unit in sorted(document["units"].items()):
        seen = unit.get("host") or {}
        for what, trouble in (("does not start", seen.get("trouble")), ("hook", seen.get("hook_trouble"))):
            if trouble:
                output.out.print(f"[red]{escape(name)}[/] {what}: {escape(trouble)}", soft_wrap=True)
        _show_file(name, unit)
        _show_attempt(name, unit)
        _show_health(name, unit)
    for note in document["notes"]:
        output.out.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for name, unit in sorted(document["units"].items()):
        for one in unit.get("revoked") or ():
            text = f"{name} {one['version']}: {one['reason']}"
            output.out.print(f"[red]revoked[/] {escape(text)}", soft_wrap=True)
    for entry in document["quarantine"]:
        text = f"{entry['version']} ({entry['payload_sha256'][:12]}…): {entry['reason']} at {entry['at']}"
        output.out.print(f"[red]quarantine[/] {escape(text)}", soft_wrap=True)


def _show_file(name: str, unit: dict[str, Any]) -> None:
    """What a file brought, and how long it stays."""
    brought = unit.get("sideload")
    if brought:
        until = f"`interlock-agent unpin {name}`" if brought["policy"] == "pin" else "the server wants something newer"
        text = f"from a file, since {brought['at'][:19]}Z; it stays until {until}"
        output.out.print(f"{escape(name)} {escape(text)}", soft_wrap=True)


def _show_attempt(name: str, unit: dict[str, Any]) -> None:
    """How far a trial is; a gap, before it begins and while nothing serves."""
    progress = unit.get("progress") or {}
    if unit["phase"] == "trial" and progress.get("doing") == "trial":
        asked = progress["requests"] + progress["golden_runs"]
        text = f"{progress['elapsed_s']:.0f} of {progress['min_seconds']:g} s, "
        text += f"{asked} of {progress['min_requests']} requests"
        if progress["golden_runs"]:
            text += f" ({progress['golden_runs']} of them its own golden items)"
        output.out.print(f"{escape(name)} trial: {text}", soft_wrap=True)
    left_s, told = ((unit.get("host") or {}).get("gap") or {}).get("left_s"), unit.get("gap") or {}
    if left_s is not None:
        text = f"nothing serves, to make room for a candidate; for at most {max(left_s, 0.0):.0f} s more"
        output.out.print(f"[yellow]gap[/] {escape(name)} {text}", soft_wrap=True)
    elif told and unit["phase"] in ("staged", "gating"):
        text = (
            f"nothing will serve for about {told['expected_s']:.0f} s, at most {told['at_most_s']:g} s: {told['why']}"
        )
        output.out.print(f"[yellow]gap[/] {escape(name)} {escape(text)}", soft_wrap=True)


def _show_health(name: str, unit: dict[str, Any]) -> None:
    """The alarm; every check while a trial runs, and those that are not well after it."""
    alarm = unit.get("alarmed")
    if alarm:
        text = f"{alarm['check']} since {alarm['at']}: {alarm['message']} ({alarm['why'].replace('_', ' ')})"
        output.out.print(f"[red]alarm[/] {escape(name)} {escape(text)}", soft_wrap=True)
    checks = unit.get("checks") or []
    shown = checks if unit["phase"] == "trial" else [one for one in checks if one["outcome"] == "failing"]
    if not shown:
        return
    output.out.print(f"\n{escape(name)}: checks", style="bold")
    rows = [
        (
            escape(one["check"]) + ("" if one["required"] else " (wanted)"),
            COLOURED.get(one["outcome"], "{}").format(one["outcome"]),
            *("" if one.get(key) is None else f"{one[key]:.4g}" for key in ("figure", "limit")),
            escape(one.get("message") or ""),
        )
        for one in shown
    ]
    output.show_table(("check", "outcome", "figure", "limit", "last"), rows, optional=("figure", "limit", "last"))


def _why(unit: dict[str, Any]) -> str:
    """The reason, and until when it is waited."""
    why, until = unit.get("reason") or "", unit.get("until")
    return f"{why}, until {until}" if until else why


def _phase(unit: dict[str, Any]) -> str:
    progress = unit.get("progress") or {}
    if progress.get("of"):
        return f"{unit['phase']} {100 * progress['done'] // progress['of']} %"
    if progress.get("stage"):
        since = f", {progress['seconds']} s" if "seconds" in progress else ""  # a model that is long being opened
        return f"{unit['phase']} ({progress['stage']}{since})"
    return str(unit["phase"])


def history(
    model: Annotated[str | None, typer.Argument(help="One model; default: all.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=1000)] = 50,
    as_json: output.AsJson = False,
    config: output.ConfigPath = None,
) -> None:
    """Every transition of the state machine, newest first.

    Example: interlock-agent history detector --limit 20
    """
    rows = output.ask(config, "history", as_json, unit=model, limit=limit)["history"]
    if as_json:
        output.print_json(rows)
        return
    if not rows:
        output.out.print("nothing has happened yet")
        return
    cells = [
        (row["at"][:19], row["unit"], str(row["generation"]), row["before"], row["event"], row["after"], row["reason"])
        for row in rows
    ]
    output.show_table(("when", "model", "gen", "from", "event", "to", "why"), cells, optional=("why",))
