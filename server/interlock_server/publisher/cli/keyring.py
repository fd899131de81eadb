"""`interlock keys …`, `interlock publish`, `interlock login`: what needs keys, and where they are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from interlock_server.publisher import build, bundle_toml, ceremony, parcels, proceed, release, settings, standing
from interlock_server.publisher import proposal as proposals
from interlock_server.publisher.cli import holding, output, releases
from interlock_server.publisher.client import Api, authority
from interlock_server.publisher.keys import ROOT_FILE, KeyFolder, check_model, check_role
from interlock_server.publisher.progress import Bar
from interlock_server.publisher.release import Parcel
from interlock_shared import canonical, durable, topics
from interlock_shared.errors import Conflict

app = output.group("The keys that say a release is genuine: files, hardware tokens, a cloud's KMS. They never leave.")

Role = Annotated[str, typer.Argument(metavar="ROLE", help="root, targets, release-MODEL, or sideload.")]


@app.command()
def init(
    model: Annotated[list[str], typer.Option("--model", metavar="NAME", help="A model to be released; repeatable.")],
    no_passphrase: holding.NoPassphrase = False,
    passphrase_file: holding.PassphraseFile = None,
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Make one person's key set and give the server its trust: root, targets, one release key a model.

    For several holders see [bold]interlock root init[/bold].

    Example: interlock keys init --model detector --keys ~/keys --server https://updates:8443 --token ilk_…
    """
    folder = holding.folder(keys, passphrase_file, none=no_passphrase)
    answer = output.with_api(server, token, lambda api: release.trust(api, folder, model, output.now()))
    digest = canonical.sha256(folder.root())
    if as_json:
        output.show_json({"root_sha256": digest, "root": str(folder.path / ROOT_FILE), "trust": answer})
        return
    output.say(
        f"keys are in {folder.path}, readable by you alone: keep a copy where the server cannot see it",
        f"root is {folder.path / ROOT_FILE}, devices trust it by its digest:",
        f"root_sha256 {digest}",
    )


@app.command("add-model")
def add_model(
    model: Annotated[str, typer.Argument(metavar="NAME", help="The new model.")],
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="FILE", help="Public keys of its releasers; repeatable. Else one is made here."),
    ] = None,
    threshold: Annotated[int, typer.Option("--threshold", min=1, help="How many must sign a release.")] = 1,
    out: holding.Out = None,
    no_passphrase: holding.NoPassphrase = False,
    passphrase_file: holding.PassphraseFile = None,
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Let keys release one more model.

    Example: interlock keys add-model classifier --keys ~/keys
    """
    folder, role = holding.folder(keys, passphrase_file, none=no_passphrase), topics.release_role(check_model(model))
    given = holding.read_public(key or ()).get(role, [])
    # An earlier try that the server did not take has left its key.
    own = [one.key for one in folder.held() if one.role == role] if not key else []

    async def work(api: Api) -> dict[str, Any] | None:
        state = await standing.fetch(api, folder)
        if role in state.delegated:
            raise Conflict(f"{model}: a key may release it already", code="model_exists")
        wanted = given or own or ([] if key else [await asyncio.to_thread(folder.create, role)])
        changes = ceremony.Changes(add={role: list(wanted)}, thresholds={role: threshold})
        made = ceremony.following(state, changes, output.now())
        if out is None:
            return await proceed.here(api, folder, made)
        await asyncio.to_thread(proposals.save, out, made)
        return None

    answer = output.with_api(server, token, work)
    if as_json:
        output.show_json({"model": model, "trust": answer})
    elif out is not None:
        output.say(f"wrote {out}", f"next, at each holder: interlock root sign {out}")
    else:
        output.say(f"{model} may be released, by {threshold} of the keys for {role}")


@app.command()
def generate(
    role: Role,
    holder: holding.Holder = "",
    no_passphrase: holding.NoPassphrase = False,
    passphrase_file: holding.PassphraseFile = None,
    keys: output.Keys = None,
    as_json: output.Json = False,
) -> None:
    """Make a key in a file. It counts once a root or a targets that names it is published.

    Example: interlock keys generate root --holder alice --keys ~/keys
    """
    folder = holding.folder(keys, passphrase_file, none=no_passphrase)
    _tell(folder, role, folder.create(role, holder).keyid, as_json)


@app.command()
def adopt(
    role: Role,
    uri: Annotated[str, typer.Argument(metavar="URI", help="hsm:2?label=NAME, gcpkms:…, awskms:…, azurekms:…, file:…")],
    holder: holding.Holder = "",
    passphrase_file: holding.PassphraseFile = None,
    keys: output.Keys = None,
    as_json: output.Json = False,
) -> None:
    """Use a key that is there already: in a hardware token ($PYKCS11LIB names its module), in a cloud's KMS, in a file.

    Example: interlock keys adopt root hsm:2 --holder alice
    """
    folder = holding.folder(keys, passphrase_file)
    _tell(folder, role, folder.adopt(role, uri, holder).keyid, as_json)


def _tell(folder: KeyFolder, role: str, keyid: str, as_json: bool) -> None:
    one = next(one for one in folder.public() if one["keyid"] == keyid and one["role"] == role)
    if as_json:
        output.show_json(one)
    else:
        output.say(f"{role} key {keyid} is {one['uri']}", "next: interlock keys export -o MY-NAME.json")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    role: Annotated[str | None, typer.Option("--role", metavar="ROLE", help="Of this role alone.")] = None,
    keys: output.Keys = None,
) -> None:
    """Write the public parts of your keys, for whoever prepares the next root or targets.

    Example: interlock keys export -o alice.json
    """
    folder = holding.folder(keys)
    durable.replace_file(out.absolute(), holding.public_document(folder, check_role(role) if role else None), 0o644)
    output.say(f"wrote {out}: public parts alone")


@app.command("show")
def show(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="The folder of keys.")] = None,
    as_json: output.Json = False,
) -> None:
    """Show the public parts of the keys in a folder.

    Example: interlock keys show ~/keys
    """
    known = holding.folder(folder)
    found = known.public()
    root = canonical.sha256(known.root()) if (known.path / ROOT_FILE).is_file() else None
    if as_json:
        output.show_json({"keys": found, "root_sha256": root})
        return
    rows = [(one["role"], one["keyid"], one["uri"], one["key"]["keyval"]["public"].strip()) for one in found]
    output.show_table(("role", "key id", "where", "public key"), rows, "there are no keys here")
    if root:
        output.say(f"root_sha256 {root}")


def publish(
    where: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A folder with a bundle.toml, or a .bundle file.")],
    server: output.Server = None,
    token: output.Token = None,
    keys: output.Keys = None,
    passphrase_file: holding.PassphraseFile = None,
    as_json: output.Json = False,
) -> None:
    """Sign a release and publish it: missing segments first, then the word that they are a release.

    Example: interlock publish detector-1.4.0.bundle --server https://updates:8443 --token ilk_… --keys ~/keys
    """
    folder = holding.folder(keys, passphrase_file)
    parcel = _parcel(where)

    async def work(api: Api) -> dict[str, Any]:
        with Bar("uploading", sum(one.size for one in parcel.manifest.segments().values())) as bar:
            return await release.publish(api, folder, parcel, output.now(), bar.advance)

    document = output.with_api(server, token, work)
    if as_json:
        output.show_json(document)
        return
    release_name = f"{parcel.manifest.model} {parcel.manifest.version}"
    if document["state"] == "awaiting":
        output.say(
            releases.awaits(document),
            f"manifest {canonical.sha256(parcel.data)}",
            f"next: another signer looks at it: interlock release sign {release_name}",
        )
        return
    output.say(
        f"published {release_name}, {output.size(parcel.manifest.payload_size)}",
        f"manifest {canonical.sha256(parcel.data)}",
        f"next: interlock rollout start {release_name} --to all",
    )


def _parcel(where: Path) -> Parcel:
    if parcels.is_bundle(where):
        return parcels.of_bundle(where)
    source = bundle_toml.load(where)
    with Bar("hashing", build.total_bytes(source)) as bar:
        return parcels.built(build.build(source, bar.advance))


def login(
    server: Annotated[str, typer.Option("--server", metavar="URL", help="The server.")],
    token: Annotated[str, typer.Option("--token", metavar="TOKEN", help="A bearer token.")],
    ca_sha256: Annotated[
        str | None,
        typer.Option("--ca-sha256", metavar="HEX", help="By this the server is known; its first start prints it."),
    ] = None,
    keys: output.Keys = None,
) -> None:
    """Remember server, token and keys for later commands, readable by you alone.

    The server is asked for its TLS authority, which is believed by its SHA-256; only then the token is sent.

    Example: interlock login --server https://updates:8443 --ca-sha256 9f86… --token ilk_… --keys ~/keys
    """
    path = settings.file()
    pem = asyncio.run(authority(server, ca_sha256)) if ca_sha256 else settings.load(keys=keys).authority()

    async def work() -> dict[str, Any]:
        async with Api(server, token, pem) as api:
            return await api.get(topics.RELEASES)

    document = asyncio.run(work())
    stored = {"server": server.rstrip("/"), "token": token}
    stored["keys"] = str(keys.expanduser().absolute()) if keys else ""
    if ca_sha256 and pem:
        stored["ca"] = str(settings.store_ca(path, pem))
    settings.store(path, stored)
    output.say(f"{server} knows this token ({len(document.get('releases', []))} releases); stored in {path}")
