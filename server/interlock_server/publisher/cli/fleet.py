"""`interlock rollout …`: what goes where."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from interlock_server.publisher.cli import output
from interlock_server.publisher.client import path
from interlock_shared import topics
from interlock_shared.errors import Invalid

rollouts = output.group("Releases on their way to devices.")

WATCH_S = 1.0  # between two looks
# The results apart: a gate that says no is a safe outcome, not a failure.
OUTCOMES = ("confirmed", "rejected", "reverted", "failed")

Rollout = Annotated[str, typer.Argument(metavar="ID", help="The rollout.")]


def target(texts: list[str]) -> dict[str, Any]:
    """What `--to` means: `all`, `device=ID`, or labels. Raises Invalid."""
    if texts == ["all"]:
        return {"all": True}
    known = output.pairs(texts, "--to")
    if len(known) != len(texts):
        raise Invalid("--to: a label is given twice", field="--to")
    if "device" in known:
        if len(known) > 1:
            raise Invalid("--to: device=ID stands alone", field="--to")
        return {"device": known["device"]}
    return {"labels": known}


@rollouts.command()
def start(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    to: Annotated[
        list[str],
        typer.Option("--to", metavar="WHERE", help="all, device=ID, or LABEL=VALUE (repeatable)."),
    ],
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Want a release on devices. Each one judges it by itself.

    Example: interlock rollout start detector 1.4.0 --to site=berlin
    """
    body = {"model": model, "version": version, "to": target(to)}
    document = output.with_api(server, token, lambda api: api.post(topics.ROLLOUTS, body))

    def words(found: Any) -> None:
        count = len(found["assignments"])
        output.say(
            f"{found['id']}: {model} {version} is wanted on {count} device{'' if count == 1 else 's'}",
            f"next: interlock rollout show {found['id']} --watch",
        )

    output.show(document, as_json, words)


def _counts(found: Mapping[str, Any]) -> list[int]:
    counts = found.get("counts", {})
    rest = sum(number for state, number in counts.items() if state not in OUTCOMES)
    return [*(counts.get(state, 0) for state in OUTCOMES), rest]


@rollouts.command("list")
def rollout_list(
    limit: output.Limit = 100, server: output.Server = None, token: output.Token = None, as_json: output.Json = False
) -> None:
    """List rollouts, newest first.

    Example: interlock rollout list
    """
    document = output.fetch(server, token, topics.ROLLOUTS, {"limit": str(limit)})

    def words(found: Any) -> None:
        rows = [(one["id"], one["model"], one["version"], one["state"], *_counts(one)) for one in found["rollouts"]]
        output.show_table(("id", "model", "version", "state", *OUTCOMES, "other"), rows, "there are no rollouts yet")

    output.show(document, as_json, words)


def _rollout(found: Mapping[str, Any]) -> None:
    output.say(f"{found['id']}: {found['model']} {found['version']}, {found['state']}")
    output.show_table((*OUTCOMES, "other"), [_counts(found)], "")
    output.say("")
    rows = [(one["device"], one["state"], one.get("reason")) for one in found["assignments"]]
    output.show_table(("device", "state", "reason"), rows, "no device was meant")


@rollouts.command("show")
def rollout_show(
    rollout: Rollout,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until every device has a result.")] = False,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Show a rollout: confirmed, rejected, reverted and failed apart.

    Example: interlock rollout show r-1 --watch
    """
    route, last = path(topics.ROLLOUT, id=rollout), None
    while True:
        found = output.fetch(server, token, route)
        if found != last:
            output.show(found, as_json, _rollout)
        if not watch or found["state"] != "active":
            return
        last = found
        time.sleep(WATCH_S)


@rollouts.command()
def abort(
    rollout: Rollout, server: output.Server = None, token: output.Token = None, as_json: output.Json = False
) -> None:
    """Stop a rollout: devices that have not switched get their wish before.

    Example: interlock rollout abort r-1
    """
    route = path(topics.ROLLOUT_ABORT, id=rollout)
    output.show(output.with_api(server, token, lambda api: api.post(route, {})), as_json, _rollout)
