"""`interlock device …`, `interlock events`: what devices are, and what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from interlock_server.publisher.cli import output
from interlock_server.publisher.client import Api, path
from interlock_shared import plot, topics
from interlock_shared.errors import NotFound

app = output.group("Devices of the fleet.")

WATCH_S = 1.0  # between two looks

Device = Annotated[str, typer.Argument(metavar="ID", help="The device.")]
Label = Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="A label; repeatable.")]

FACTS = ("offered", "installed", "confirmed", "running", "phase", "reason", "alarm", "sideload")
OPTIONAL = ("reason", "alarm", "sideload")


def _units(device: Mapping[str, Any]) -> list[list[Any]]:
    return [[model, *(_fact(unit.get(fact)) for fact in FACTS)] for model, unit in sorted(device["units"].items())]


def _fact(value: Any) -> Any:
    if isinstance(value, Mapping) and "policy" in value:
        return value["policy"]  # of a file's release that stands
    if isinstance(value, Mapping):
        return " ".join(f"{slot}:{version}" for slot, version in sorted(value.items()) if version)
    return value


def _link(device: Mapping[str, Any]) -> str:
    if device.get("revoked_at"):
        return f"revoked since {output.when(device['revoked_at'])}"
    return ("CLONED, " if device.get("clone") else "") + (
        "online"
        if device["online"]
        else f"offline since {output.when(device['last_seen'])}"
        if device["last_seen"]
        else "never seen"
    )


def labels_of(device: Mapping[str, Any]) -> str:
    """Labels on one line."""
    return " ".join(f"{name}={value}" for name, value in sorted((device.get("labels") or {}).items()))


@app.command("list")
def device_list(
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="With this label; repeatable.")
    ] = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """List devices, a line for each model on each.

    Example: interlock device list --label site=berlin
    """
    wanted = output.pairs(label or [], "--label")

    query = urlencode([("label", f"{name}={value}") for name, value in wanted.items()])
    document = output.fetch(server, token, topics.DEVICES + (f"?{query}" if query else ""))

    def words(found: Any) -> None:
        rows = [
            [
                one["id"],
                _link(one),
                labels_of(one),
                *unit,
            ]
            for one in found["devices"]
            for unit in (_units(one) or [[None] * (len(FACTS) + 1)])
        ]
        output.show_table(("device", "link", "labels", "model", *FACTS), rows, "there are no devices yet", OPTIONAL)
        _waiting(found.get("waiting", ()))

    output.show(document, as_json, words)


def _waiting(found: Iterable[Mapping[str, Any]]) -> None:
    """Devices that a person must decide about."""
    rows = [
        [
            one["device"],
            one["keyid"][:16],
            one["address"],
            output.when(one["asked_at"]),
            "yes" if one["replaces"] else None,
        ]
        for one in found
    ]
    if rows:
        output.say("", "these wait for `interlock device approve ID`:")
        output.show_table(("waiting", "key", "from", "since", "replaces"), rows, "", ("replaces",))


def _clone(found: Mapping[str, Any]) -> str | None:
    one = found.get("clone")
    return (
        one
        and f"{one['why']}, {one['count']} times since {output.when(one['first_at'])}: revoke it, and enrol both anew"
    )


def _device(found: Mapping[str, Any]) -> None:
    ends = [one["expires_at"] for one in found.get("certificates", ()) if one["revoked_at"] is None]
    output.show_facts(
        {
            "device": found["id"],
            "labels": labels_of(found) or None,
            "link": "revoked" if found.get("revoked_at") else "online" if found["online"] else "offline",
            "CLONED": _clone(found),
            "certificate until": output.when(max(ends, default=None)),
            "last seen": output.when(found["last_seen"]),
            "agent": found["agent"],
            "key": found.get("keyid"),
            "ahead of the server": f"yes: interlock device reconcile {found['id']}" if found.get("ahead") else None,
            "documents refused": found.get("refused") or None,
            "events missing": found.get("events_gap"),
        }
    )
    output.say("")
    output.show_table(("model", *FACTS), _units(found), "no model yet", OPTIONAL)
    output.say("")
    columns = ("rollout", "unit", "version", "state", "reason")
    rows = [
        [*(one.get(column) for column in columns), output.when(one.get("updated_at"))]
        for one in found.get("assignments", [])
    ]
    output.show_table((*columns, "updated_at"), rows, "nothing was ever wanted of it", ("reason",))


@app.command("show")
def device_show(
    device: Device, server: output.Server = None, token: output.Token = None, as_json: output.Json = False
) -> None:
    """Show a device: offered, installed, confirmed and running are four different facts.

    Example: interlock device show press-7
    """
    output.show(output.fetch(server, token, path(topics.DEVICE, id=device)), as_json, _device)


@app.command()
def reconcile(
    device: Device, server: output.Server = None, token: output.Token = None, as_json: output.Json = False
) -> None:
    """Go on with a device that is ahead of the server.

    After the server was restored from a backup, devices have accepted more than it remembers. They are left alone and
    shown as `ahead`. Look at what such a device runs (interlock device show) and what is wanted of it; then this
    numbers the next desired document after what the device reports.

    Example: interlock device reconcile press-7
    """
    route = path(topics.DEVICE_RECONCILE, id=device)
    document = output.with_api(server, token, lambda api: api.post(route, {}))
    output.show(document, as_json, lambda found: output.say(f"{device} goes on from counter {found['counter']}"))


@app.command()
def unpin(
    device: Device,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model.")],
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Let the server replace what a file brought to a device, whatever the device's policy is.

    What is wanted of the device is taken up, unless it had that before; the next rollout is.

    Example: interlock device unpin press-7 detector
    """
    route = path(topics.DEVICE_UNPIN, id=device)
    document = output.with_api(server, token, lambda api: api.post(route, {"model": model}))
    output.show(document, as_json, lambda found: output.say(f"{model} {found['version']} is the server's to replace"))


EVENT = ("at", "device", "unit", "kind", "version", "reason")


def _events(found: Iterable[Mapping[str, Any]]) -> None:
    rows = [[output.when(one.get("at")), *(one.get(column) for column in EVENT[1:])] for one in found]
    output.show_table(EVENT, rows, "nothing has happened yet", ("reason",))


@app.command()
def history(
    device: Device,
    limit: output.Limit = 100,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """What happened on a device, newest first.

    Example: interlock device history press-7 --limit 20
    """
    document = output.fetch(server, token, path(topics.DEVICE_HISTORY, id=device), {"limit": str(limit)})
    output.show(document, as_json, lambda found: _events(found["events"]))


def _verdict(entry: Mapping[str, Any]) -> None:
    found = entry["verdict"]
    signed = "signed by the device" if entry.get("verified") else "NOT SIGNED BY THE DEVICE"
    output.say(
        f"{found['model']} {found['version']} on {found['device']}: {found['outcome']} ({found['reason']}), {signed}",
        found.get("message", ""),
    )
    columns = ("check", "outcome", "measured", "low", "high", "limit", "incumbent", "unit", "reason")
    rows = [[_short(check.get(column)) for column in columns] for stage in found["stages"] for check in stage["checks"]]
    output.show_table(columns, rows, "no check was run", ("low", "high", "incumbent", "unit"))


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


@app.command()
def verdict(
    device: Device,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Of this model alone.")] = None,
    svg: Annotated[
        str | None, typer.Option("--svg", metavar="FILE", help="Draw its latencies into this file; - is a pipe.")
    ] = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """The newest verdict of a device's gate, with its figures.

    Example: interlock device verdict press-7 detector --svg verdict.svg
    """
    document = output.fetch(server, token, path(topics.DEVICE_VERDICTS, id=device))
    found = [one for one in document["verdicts"] if model in (None, (one["verdict"] or {}).get("model"))]
    readable = [one for one in found if one["verdict"]]  # what the device has not signed is kept, and not read
    if svg is not None:
        if not readable:
            raise NotFound("no gate has spoken there yet", code="no_verdict")
        output.write(svg, plot.svg(readable[0]["verdict"]))
    if svg == "-":
        return
    if as_json:
        output.show_json({"verdicts": found})
    elif readable:
        _verdict(readable[0])
    else:
        output.say("no gate has spoken there yet")


# --- events ---------------------------------------------------------------------------------------------------------


def events(
    device: Annotated[str | None, typer.Option("--device", metavar="ID", help="Of this device alone.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Of this kind alone.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens from now on.")] = False,
    limit: output.Limit = 50,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """What happened in the fleet, newest first; with --follow oldest first, a line each.

    Example: interlock events --device press-7 --follow
    """
    query = {"limit": str(limit)} | ({"device": device} if device else {}) | ({"kind": kind} if kind else {})
    if not follow:
        output.show(output.fetch(server, token, topics.EVENTS, query), as_json, lambda found: _events(found["events"]))
        return

    async def work(api: Api) -> None:
        seen = 0
        while True:
            found = (await api.get(topics.EVENTS, query))["events"]
            for one in sorted((one for one in found if one["id"] > seen), key=lambda one: int(one["id"])):
                seen = max(seen, int(one["id"]))
                line = "  ".join(str(one.get(column) or "-") for column in EVENT)
                output.show_line(one) if as_json else output.say(line)
            await asyncio.sleep(WATCH_S)

    output.with_api(server, token, work)
