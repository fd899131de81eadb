"""`interlock release …`: what there is, who signed it, and how it is taken back.

withdraw   an operator's word, online and at once: nobody is asked to run it any more, devices are moved; `restore`
revoke     the signers' word, for ever: it is not genuine any more, devices act by their owner's policy
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from interlock_server.publisher import compare, signing
from interlock_server.publisher.cli import holding, output
from interlock_server.publisher.client import Api, path
from interlock_server.publisher.signing import Pending
from interlock_shared import canonical, topics
from interlock_shared.errors import InterlockError, Invalid
from interlock_shared.manifest import Manifest, to_bytes

app = output.group(
    "Releases: what there is, who signed it, and how it is taken back.\n\n"
    "[bold]withdraw[/bold] is an operator's word: at once, and it can be taken back. [bold]revoke[/bold] is signed by "
    "the release's own signers, and for ever."
)

Model = Annotated[str, typer.Argument(metavar="MODEL")]
Version = Annotated[str, typer.Argument(metavar="VERSION")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept, and shown.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask (for CI); what is signed is shown all the same.")]

SECTIONS = ("provenance", "signature", "variants", "files", "golden", "gates", "health")  # missing ones are named
COLUMNS = ("model", "version", "size", "state", "signatures", "devices", "created_at", "published_by")


def _signatures(found: Mapping[str, Any]) -> str:
    pending = found.get("pending")
    if pending:
        return f"{len(pending['signatures'])} of {pending['threshold']} to {pending['action']}"
    return str(len(found.get("signatures") or ()) or "")


def awaits(found: Mapping[str, Any]) -> str:
    """One line about what is pending."""
    pending = found["pending"]
    count = f"{len(pending['signatures'])} of {pending['threshold']}"
    what = "" if pending["action"] == "publish" else f" to be {pending['action']}d"
    return f"{found['model']} {found['version']}{what} awaits signatures ({count})"


@app.command("list")
def release_list(
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Of this model alone.")] = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """List releases, and what awaits signatures.

    Example: interlock release list --model detector
    """
    document = output.fetch(server, token, topics.RELEASES, {"model": model} if model else None)

    def words(found: Any) -> None:
        rows = [
            (
                one["model"],
                one["version"],
                output.size(one["size"]),
                one["state"],
                _signatures(one),
                one["devices"] or "",
                output.when(one["created_at"]),
                one["published_by"],
            )
            for one in found["releases"]
        ]
        output.show_table(COLUMNS, rows, "nothing has been published yet", optional=("devices",))

    output.show(document, as_json, words)


def _names(keys: Path | None) -> dict[str, str]:
    """Key ids of the keyring here, by name; empty where there is none."""
    try:
        return {one["keyid"]: one["uri"] for one in holding.folder(keys).public()}
    except (InterlockError, OSError):
        return {}


def _signers(found: list[Mapping[str, Any]], names: Mapping[str, str]) -> list[tuple[str, str, str, str, str | None]]:
    return [
        (one["keyid"][:16], one["holder"], names.get(one["keyid"], ""), one["by"], output.when(one["at"]))
        for one in found
    ]


def _show(found: Mapping[str, Any], names: Mapping[str, str]) -> None:
    plain = {name: value for name, value in found.items() if not isinstance(value, list | dict)}
    output.show_facts({**plain, "size": output.size(found["size"])})
    signed, some = ("key", "holder", "here as", "sent by", "at"), ("holder", "here as")
    output.say("", "signed by")
    output.show_table(signed, _signers(found["signatures"], names), "nobody yet", optional=some)
    ended, pending = found.get("ended"), found.get("pending")
    if ended:
        output.say("", f"{found['state']} at {output.when(ended['at'])} by {ended['by']}: {ended['reason']}")
        if ended["signatures"]:
            output.show_table(signed, _signers(ended["signatures"], names), "", optional=some)
    if pending:
        output.say("", awaits(found), f"proposed by {pending['created_by']} at {output.when(pending['created_at'])}")
        output.say(f"it is dropped at {output.when(pending['expires_at'])}; next: interlock release sign …")
        if pending["action"] == signing.REVOKE:
            output.say(f"reason: {pending['reason']}")
            output.show_table(signed, _signers(pending["signatures"], names), "", optional=some)
    if found["devices"]:
        output.say("")
        rows = [
            (
                one["device"],
                *("yes" if one[name] else "" for name in ("confirmed", "running", "fallback")),
                one["phase"],
            )
            for one in found["devices"]
        ]
        output.show_table(("device", "confirmed", "running", "fallback", "phase"), rows, "")


@app.command("show")
def release_show(
    model: Model,
    version: Version,
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Show one release: who signed it, what became of it, and which devices hold it.

    Example: interlock release show detector 1.4.0
    """
    document = output.fetch(server, token, path(topics.RELEASE, model=model, version=version))
    output.show(document, as_json, lambda found: _show(found, _names(keys)))


# --- signing --------------------------------------------------------------------------------------------------------


def _summary(what: Pending) -> None:
    """All that a signature says yes to."""
    sha256 = canonical.sha256(what.data)
    output.say(f"{what.action} {what.model} {what.version}", f"manifest {sha256}", "")
    if what.action == signing.REVOKE:
        output.say(f"reason: {what.reason}", "its target goes; its version never comes back", "")
    known = compare.sections(compare.facts(what.manifest))
    for name in [*known, *(one for one in SECTIONS if one not in known)]:
        output.say(name if name in known else f"{name}: nothing is said")
        output.show_facts({f"  {field}": value for field, value in known.get(name, {}).items()})
    _compare(what)
    signed = ", ".join(one[:16] for one in what.signed_by)
    output.say("", f"signed by {signed or 'nobody yet'}; {what.threshold} are needed")
    output.say("other targets of the role that change: none")


def _compare(what: Pending) -> None:
    if what.previous is None or what.action == signing.REVOKE:
        return
    rows = compare.differences(compare.facts(what.previous), compare.facts(what.manifest))
    output.say("", f"against {what.previous.version}")
    output.show_table(("field", "before", "now"), rows, "nothing differs")


def _sure(question: str, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json:
        raise Invalid("--json cannot ask; say --yes", field="--yes")
    typer.confirm(question, abort=True)


@app.command()
def sign(
    model: Model,
    version: Version,
    yes: Yes = False,
    keys: output.Keys = None,
    passphrase_file: holding.PassphraseFile = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Sign what another has published or revoked, after seeing it: the manifest, and what differs from before.

    Everything is verified from your own root on. What was shown is what is signed.

    Example: interlock release sign detector 1.4.0 --keys ~/keys
    """
    folder = holding.folder(keys, passphrase_file)
    now: datetime = output.now()
    what = output.with_api(server, token, lambda api: signing.pending(api, folder, model, version, now))

    async def work(api: Api) -> dict[str, Any]:
        return await signing.sign(api, what, await signing.own_signer(folder, what))

    if not as_json:
        _summary(what)
    _sure(f"sign: {what.action} {model} {version}?", yes, as_json)
    document = output.with_api(server, token, work)
    output.show(document, as_json, _said)


def _said(found: Any) -> None:
    name = f"{found['model']} {found['version']}"
    if found["pending"]:
        output.say(awaits(found), f"next: another signer: interlock release sign {name}")
    elif found["state"] == "published":
        output.say(f"published {name}", f"next: interlock rollout start {name} --to all")
    else:
        output.say(f"{found['state']} {name}")
    holds = [one["device"] for one in found["devices"] if one["confirmed"] or one["running"]]
    if found["ended"] and holds:
        output.say(f"runs still on {len(holds)}: {', '.join(holds)}")


@app.command()
def cancel(
    model: Model,
    version: Version,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Drop what awaits signatures: yours, or any as an admin. The model's next release can then be published.

    Example: interlock release cancel detector 1.4.0
    """
    route = path(topics.PROPOSAL, model=model, version=version)
    document = output.with_api(server, token, lambda api: api.delete(route))
    output.show(document, as_json, lambda found: output.say(f"cancelled: {found['action']} {model} {version}"))


# --- taking back ----------------------------------------------------------------------------------------------------


@app.command()
def withdraw(
    model: Model,
    version: Version,
    reason: Reason,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Want a release no more, at once: its rollouts end, and devices that run it are moved to the one before.

    Example: interlock release withdraw detector 1.4.0 --reason "misses pallets at night"
    """
    route = path(topics.WITHDRAW, model=model, version=version)
    document = output.with_api(server, token, lambda api: api.post(route, {"reason": reason}))

    def words(found: Any) -> None:
        moved = found["moved"]
        output.say(f"withdrew {model} {version}", f"moved to the release before: {', '.join(moved) or 'no device'}")
        stays = [one["device"] for one in found["devices"] if one["confirmed"] and one["device"] not in moved]
        if stays:
            output.say(f"stays on {', '.join(stays)}: there is no good release before; roll one out")

    output.show(document, as_json, words)


@app.command()
def restore(
    model: Model,
    version: Version,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Take a withdrawal back: the release may be rolled out again. Rollouts that ended stay ended.

    Example: interlock release restore detector 1.4.0
    """
    route = path(topics.RESTORE, model=model, version=version)
    output.show(output.with_api(server, token, lambda api: api.post(route, {})), as_json, _said)


@app.command()
def revoke(
    model: Model,
    version: Version,
    reason: Reason,
    yes: Yes = False,
    keys: output.Keys = None,
    passphrase_file: holding.PassphraseFile = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Say, signed by the release's own role, that a release is not genuine any more. It cannot be taken back.

    Where the role needs several signatures, the others follow with `interlock release sign`.

    Example: interlock release revoke detector 1.4.0 --reason "trained on leaked data" --keys ~/keys
    """
    folder = holding.folder(keys, passphrase_file)

    def sure(manifest: Manifest) -> None:
        if not as_json:
            output.say(f"manifest {canonical.sha256(to_bytes(manifest))}", f"reason: {reason}")
        _sure(f"revoke {manifest.release}, for ever?", yes, as_json)

    document = output.with_api(
        server, token, lambda api: signing.revoke(api, folder, model, version, reason, output.now(), sure)
    )
    output.show(document, as_json, _said)
