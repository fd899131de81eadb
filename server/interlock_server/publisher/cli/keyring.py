"""`interlock keys …`, `interlock publish`, `interlock login`: what needs keys, and where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interlock_server.publisher import build, bundle_toml, parcels, release, settings
from interlock_server.publisher.cli import output
from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import ROOT_FILE, KeyFolder
from interlock_server.publisher.progress import Bar
from interlock_server.publisher.release import Parcel
from interlock_shared import canonical, topics

app = output.group("The keys that say a release is genuine. They never leave their folder.")


def _folder(server: str | None, token: str | None, keys: Path | None) -> KeyFolder:
    return KeyFolder(Path(settings.load(server, token, keys).need("keys")))


@app.command()
def init(
    model: Annotated[list[str], typer.Option("--model", metavar="NAME", help="A model to be released; repeatable.")],
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Make a development key set and give the server its trust: root, targets, one release key a model.

    Example: interlock keys init --model detector --keys ~/keys --server http://updates:8080 --token ilk_…
    """
    folder = _folder(server, token, keys)
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
    keys: output.Keys = None,
    server: output.Server = None,
    token: output.Token = None,
    as_json: output.Json = False,
) -> None:
    """Make a release key for one more model, and let targets delegate to it.

    Example: interlock keys add-model classifier --keys ~/keys
    """
    folder = _folder(server, token, keys)
    answer = output.with_api(server, token, lambda api: release.add_model(api, folder, model, output.now()))
    if as_json:
        output.show_json({"model": model, "trust": answer})
    else:
        output.say(f"{folder.path / topics.release_role(model)}.pem may release {model}")


@app.command("show")
def show(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="The folder of keys.")] = None,
    as_json: output.Json = False,
) -> None:
    """Show the public parts of the keys in a folder.

    Example: interlock keys show ~/keys
    """
    known = _folder(None, None, folder)
    found = known.public()
    root = canonical.sha256(known.root()) if (known.path / ROOT_FILE).is_file() else None
    if as_json:
        output.show_json({"keys": found, "root_sha256": root})
        return
    rows = [(one["role"], one["keyid"], one["key"]["keyval"]["public"]) for one in found]
    output.show_table(("role", "key id", "public key"), rows, "there are no keys here")
    if root:
        output.say(f"root_sha256 {root}")


def publish(
    where: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="A folder with a bundle.toml, or a .bundle file.")],
    server: output.Server = None,
    token: output.Token = None,
    keys: output.Keys = None,
    as_json: output.Json = False,
) -> None:
    """Sign a release and publish it: missing segments first, then the word that they are a release.

    Example: interlock publish detector-1.4.0.bundle --server http://updates:8080 --token ilk_… --keys ~/keys
    """
    folder = _folder(server, token, keys)
    parcel = _parcel(where)

    async def work(api: Api) -> dict[str, Any]:
        with Bar("uploading", sum(one.size for one in parcel.manifest.segments().values())) as bar:
            return await release.publish(api, folder, parcel, output.now(), bar.advance)

    document = output.with_api(server, token, work)
    if as_json:
        output.show_json(document)
        return
    release_name = f"{parcel.manifest.model} {parcel.manifest.version}"
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
    keys: output.Keys = None,
) -> None:
    """Remember server, token and keys for later commands, readable by you alone.

    Example: interlock login --server http://updates:8080 --token ilk_… --keys ~/keys
    """
    document = output.with_api(server, token, lambda api: api.get(topics.RELEASES))
    path = settings.file()
    folder = str(keys.expanduser().absolute()) if keys else None
    settings.store(path, {"server": server.rstrip("/"), "token": token, "keys": folder})
    output.say(f"{server} knows this token ({len(document.get('releases', []))} releases); stored in {path}")
