"""`interlock root …`: the ceremony. Who may sign what is changed by a file that goes from holder to holder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from interlock_server.publisher import ceremony, differences, proceed, signers, standing, status
from interlock_server.publisher import proposal as proposals
from interlock_server.publisher.ceremony import Changes
from interlock_server.publisher.cli import holding, output
from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import ROOT_FILE, KeyFolder
from interlock_server.publisher.proposal import Proposal
from interlock_shared import topics
from interlock_shared.errors import Conflict, Forbidden, Invalid

app = output.group(
    "Who may sign what: root and targets, their keys, thresholds and expiry.\n\n"
    "A change is written to a file ([bold]init[/bold], [bold]propose[/bold], [bold]renew[/bold]), signed by its "
    "holders on their own machines ([bold]sign[/bold]), and sent ([bold]publish[/bold]). Whoever holds enough keys "
    "leaves -o away, and does all of it in one command."
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The file that goes round.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="The file, or its copies with other signatures.")]
Public = Annotated[list[Path], typer.Argument(metavar="PUBLIC", help="What `interlock keys export` wrote.")]
Threshold = Annotated[
    list[str] | None, typer.Option("--threshold", metavar="ROLE=N", help="How many must sign; repeatable.")
]
DAYS = 30  # what expires within so many days is warned of
RENEW_DAYS = 90  # what is renewed unless told otherwise


def _thresholds(texts: Iterable[str]) -> dict[str, int]:
    found = {}
    for role, number in output.pairs(texts, "--threshold").items():
        if not number.isdecimal():
            raise Invalid(f"--threshold: {role}={number}: a number is expected", field="--threshold")
        found[role] = int(number)
    return found


@app.command()
def init(
    public: Public,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file that goes round.")],
    threshold: Threshold = None,
    server: output.Server = None,
    token: output.Token = None,
) -> None:
    """Prepare the first root of a fleet from the public keys of its holders: root, targets, release-MODEL.

    Example: interlock root init alice.json bob.json carol.json --threshold root=2 -o first.root
    """
    if output.fetch(server, token, topics.STATUS).get("trust") is not None:
        raise Conflict("the server has its trust already: `interlock root propose` changes it", code="trust_exists")
    online = output.fetch(server, token, topics.ONLINE_KEYS)
    made = ceremony.first(online, holding.read_public(public), _thresholds(threshold or ()), output.now())
    proposals.save(out, made)
    _say_file(out, made)


@app.command()
def propose(
    add: Annotated[
        list[Path] | None,
        typer.Option("--add", metavar="PUBLIC", help="More keys, each for the role it was made for; repeatable."),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="ROLE=KEY", help="A key that counts no longer, by holder or id; repeatable."),
    ] = None,
    threshold: Threshold = None,
    rotate: Annotated[
        list[str] | None,
        typer.Option("--rotate", metavar="ROLE", help="snapshot, timestamp, director: the server makes a fresh key."),
    ] = None,
    renew: Annotated[
        list[str] | None, typer.Option("--renew", metavar="ROLE", help="Another year for root, targets, release-MODEL.")
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option("--tls-ca", metavar="PEM", help="The CA of the server's TLS certificate, for devices."),
    ] = None,
    on: Annotated[
        Path | None, typer.Option("--on", metavar="FILE", help="Go on from this signed file, not yet published.")
    ] = None,
    out: holding.Out = None,
    passphrase_file: holding.PassphraseFile = None,
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
) -> None:
    """Change keys, thresholds, the server's online keys, expiry, the TLS CA.

    Example: interlock root propose --add dave.json --remove root=alice -o next.root
    """
    changes = Changes(
        add=holding.read_public(add or ()),
        remove=_several(remove or ()),
        thresholds=_thresholds(threshold or ()),
        renew=set(renew or ()),
        tls_ca=_pem(tls_ca) if tls_ca else None,
    )
    folder = holding.folder(keys, passphrase_file)
    foreign = set(rotate or ()) - set(ceremony.ONLINE_ROLES)
    if foreign:
        raise Invalid(f"--rotate: {min(foreign)}: snapshot, timestamp and director are online", field="--rotate")

    async def work(api: Api) -> Proposal:
        if rotate:
            fresh = await api.post(topics.ONLINE_KEYS, {"roles": sorted(rotate)}, safe=True)
            found = ceremony.online_keys(fresh)
            changes.online = {role: found[role] for role in rotate}
        if on is not None:
            return ceremony.on_top(await asyncio.to_thread(proposals.load, on), changes, output.now())
        return ceremony.following(await standing.fetch(api, folder), changes, output.now())

    _proceed(work, out, folder, server, token)


def _several(texts: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in texts:
        for role, key in output.pairs([text], "--remove").items():
            found.setdefault(role, []).append(key)
    return found


def _pem(path: Path) -> str:
    try:
        text = path.read_text()
        if "PRIVATE KEY" in text:
            raise ValueError("there is a private key in it")
        signers.check_authorities(text.encode())
    except OSError as bad:
        raise Forbidden(f"--tls-ca {path}: {bad.strerror}", code="no_certificate") from None
    except ValueError as bad:
        raise Invalid(f"--tls-ca {path}: {bad}", field="--tls-ca", code="bad_certificate") from None
    return text


def _proceed(
    work: Any,
    out: Path | None,
    folder: KeyFolder,
    server: str | None,
    token: str | None,
) -> None:
    async def run(api: Api) -> tuple[Proposal, dict[str, Any] | None]:
        made = await work(api)
        if out is not None:
            await asyncio.to_thread(proposals.save, out, made)
            return made, None
        return made, await proceed.here(api, folder, made)

    made, answer = output.with_api(server, token, run)
    if out is not None:
        _say_file(out, made)
        return
    _say_changes(made)
    _published(answer or {})


def _say_file(out: Path, made: Proposal) -> None:
    _say_changes(made)
    _say_needs(made)
    output.say("", f"wrote {out}; next, at each holder: interlock root sign {out}")


def _say_changes(made: Proposal) -> None:
    for title, found in differences.of_proposal(made):
        output.say(f"{title}:", *(f"  {line}" for line in found))


def _say_needs(made: Proposal) -> None:
    output.say("signatures:", *(f"  {proposals.words_of(one)}" for one in made.needs()))


def _published(answer: dict[str, Any]) -> None:
    versions = ", ".join(f"{role} {answer[role]}" for role in ("root", "targets") if role in answer)
    output.say(f"the server has it: {versions}")


@app.command()
def renew(
    role: Annotated[
        list[str] | None,
        typer.Argument(metavar="ROLE", help="root, targets, release-MODEL; else all that expire soon."),
    ] = None,
    within: Annotated[int, typer.Option("--within", min=0, metavar="DAYS", help="What soon means.")] = RENEW_DAYS,
    out: holding.Out = None,
    passphrase_file: holding.PassphraseFile = None,
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
) -> None:
    """Give roles that are signed offline another year.

    Example: interlock root renew --within 60
    """
    folder = holding.folder(keys, passphrase_file)

    async def work(api: Api) -> Proposal:
        state = await standing.fetch(api, folder)
        soon = status.expiring(state, output.now() + timedelta(days=within))
        return ceremony.following(state, Changes(renew=set(role or soon)), output.now())

    _proceed(work, out, folder, server, token)


@app.command()
def sign(
    file: File,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; what changes is shown all the same.")] = False,
    passphrase_file: holding.PassphraseFile = None,
    keys: output.Keys = None,
) -> None:
    """See what a file changes, and sign it with your keys that count. Needs no server.

    Example: interlock root sign next.root --keys ~/keys
    """
    folder, made = holding.folder(keys, passphrase_file), proposals.load(file)
    known = proceed.check_file(folder, made)
    _say_changes(made)
    if not known:
        output.say("you trust no root yet: compare the lines above with the other holders")
    if not yes and not typer.confirm("sign this?"):
        raise Forbidden("not signed", code="not_signed")
    done = proposals.sign(made, folder)
    if not done:
        raise Forbidden(f"none of the keys in {folder.path} is missing on it", code="no_key")
    proposals.save(file, made)
    output.say(*(f"signed {one}" for one in done))
    _say_needs(made)
    if not made.missing():
        output.say("", f"it is complete: interlock root publish {file}")


@app.command()
def show(
    file: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="A file that goes round, or copies.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=0, help="Warn of what expires within so many days.")] = DAYS,
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Show what a file changes, who has signed and what is missing; without a file, what stands at the server.

    Ends with 1 when something is missing, has expired or will soon.

    Example: interlock root show next.root
    """
    if file:
        made = proposals.merge([proposals.load(one) for one in file])
        if as_json:
            output.show_json({"changes": dict(differences.of_proposal(made)), "needs": status.needs(made)})
        else:
            _say_changes(made)
            _say_needs(made)
        if made.missing():
            raise typer.Exit(1)
        return
    folder = holding.folder(keys)
    state = output.with_api(server, token, lambda api: standing.fetch(api, folder))
    found = status.roles(state, folder.held(), output.now())
    warnings = status.warnings(found, days)
    if as_json:
        output.show_json({"roles": found, "warnings": warnings})
    else:
        rows = [(*(one[name] for name in status.COLUMNS[:-1]), ", ".join(one["keys"])) for one in found]
        output.show_table([name.replace("_", " ") for name in status.COLUMNS], rows, "")
        output.say(*(f"warning: {one}" for one in warnings))
    if warnings:
        raise typer.Exit(1)


@app.command()
def publish(
    file: Files,
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
) -> None:
    """Send a file that is signed by enough keys; copies that were signed apart are put together.

    Example: interlock root publish next.root
    """
    made, folder = proposals.merge([proposals.load(one) for one in file]), holding.folder(keys)
    proceed.check_file(folder, made)
    answer = output.with_api(server, token, lambda api: proceed.publish(api, folder, made))
    _published(answer)
    output.say(f"root_sha256 {answer['root_sha256']} (the first root's: devices enrol with it)")


@app.command()
def pin(
    sha256: Annotated[str, typer.Argument(metavar="SHA256", help="The digest that you were told, not by the server.")],
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
) -> None:
    """Trust a fleet's root from now on: for a holder or releaser who was not there when it was made.

    Example: interlock root pin 5298f4339a84… --keys ~/keys
    """
    folder = holding.folder(keys)
    found = output.with_api(server, token, standing.roots)
    data = proceed.pinned(found, sha256, folder.path / ROOT_FILE)
    folder.write(ROOT_FILE, data)
    output.say(f"{folder.path / ROOT_FILE} is what you trust")
