"""`interlock device token|tokens|approve|refuse|revoke`: who may be a device of this fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from interlock_server.publisher.cli import output
from interlock_server.publisher.cli.devices import Device, labels_of
from interlock_server.publisher.client import path
from interlock_shared import topics


def device_token(
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="The device's label; repeatable.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="ID", help="The id it will have.")] = None,
    hours: Annotated[float, typer.Option("--hours", help="How long the token can be used.")] = 24.0,
    uses: Annotated[
        int,
        typer.Option("--uses", min=1, help="For imaging a batch: so many devices, each waits for `device approve`."),
    ] = 1,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Make a token by which one device enrols, once; or a batch, with --uses.

    A token for an id that exists (--device) replaces that device's identity: after a re-image, an expired or a revoked
    certificate.

    Example: interlock device token --label site=berlin
    """
    body = {"labels": output.pairs(label or [], "--label"), "device": device, "hours": hours, "uses": uses}
    document = output.with_api(server, token, lambda api: api.post(topics.DEVICE_TOKENS, body))
    output.show(
        document,
        as_json,
        lambda found: output.say(f"until {output.when(found['expires_at'])}, on the device:", found["enrol"]),
    )


def device_tokens(
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="ID", help="Take this one back.")] = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """List enrolment tokens, or take one back: nobody enrols by it from then on.

    Example: interlock device tokens --revoke 4f1c2a9d8e01
    """
    if revoke is not None:
        route = f"{topics.DEVICE_TOKENS}?{urlencode({'id': revoke})}"
        document = output.with_api(server, token, lambda api: api.delete(route))
        output.show(document, as_json, lambda found: output.say(f"{found['revoked']} is taken back"))
        return
    columns = ("id", "state", "used", "uses", "device", "created_by", "expires_at")

    def words(found: Any) -> None:
        rows = [
            [*(one[column] for column in columns[:-1]), output.when(one["expires_at"]), labels_of(one)]
            for one in found["tokens"]
        ]
        output.show_table((*columns, "labels"), rows, "there are no enrolment tokens", ("device", "labels"))

    output.show(output.fetch(server, token, topics.DEVICE_TOKENS), as_json, words)


Key = Annotated[
    str | None, typer.Option("--key", metavar="HEX", help="The beginning of its key id, as the device shows it.")
]


def approve(
    device: Device,
    key: Key = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Let a device in that waits: it enrolled with a batch's token. Compare the key with what the device shows.

    Example: interlock device approve press-7 --key 3f9a61
    """
    route, body = path(topics.DEVICE_APPROVE, id=device), {"keyid": key}
    document = output.with_api(server, token, lambda api: api.post(route, body))
    words = "it gets its certificate when it asks again"
    output.show(document, as_json, lambda found: output.say(f"{device} is approved, key {found['keyid']}: {words}"))


def refuse(
    device: Device,
    key: Key = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Do not let a device in that waits.

    Example: interlock device refuse press-7
    """
    route, body = path(topics.DEVICE_REFUSE, id=device), {"keyid": key}
    document = output.with_api(server, token, lambda api: api.post(route, body))
    output.show(document, as_json, lambda found: output.say(f"{device} is refused"))


def revoke(
    device: Device,
    reason: Annotated[str, typer.Option("--reason", help="For the audit log.")],
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Cut a device off, at once: its certificates are refused, its open connections end. What it runs, it goes on
    running. To take it back, enrol it again with `device token --device ID`.

    Example: interlock device revoke press-7 --reason "stolen from the hall"
    """
    route = path(topics.DEVICE_REVOKE, id=device)
    document = output.with_api(server, token, lambda api: api.post(route, {"reason": reason}, safe=True))
    output.show(
        document, as_json, lambda found: output.say(f"{device} is revoked since {output.when(found['revoked_at'])}")
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "token": device_token,
    "tokens": device_tokens,
    "approve": approve,
    "refuse": refuse,
    "revoke": revoke,
}
