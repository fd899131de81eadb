"""`interlock bundle export`, `interlock bundle permit`: a release as a file, and who may install it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from interlock_server.publisher import archives, export, payload, settings, signers
from interlock_server.publisher.cli import holding, output
from interlock_server.publisher.client import Api
from interlock_server.publisher.keys import ROOT_FILE, KeyFolder
from interlock_server.publisher.passphrases import Passphrases
from interlock_server.publisher.permits import Meant, describe, renew
from interlock_server.publisher.progress import Bar
from interlock_shared.archive import Head

Out = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write; - is a pipe.")]
Device = Annotated[list[str] | None, typer.Option("--device", metavar="ID", help="Permit for this device; repeatable.")]
Class = Annotated[
    list[str] | None,
    typer.Option(
        "--class", metavar="SELECTOR", help="Permit for devices of this class: NAME, or FACT=VALUE,…; repeatable."
    ),
]
ValidFor = Annotated[
    str, typer.Option("--valid-for", metavar="TIME", help="How long the permit holds: 90d, 12h, 2w, 30m.")
]


def _root(known: settings.Settings) -> bytes | None:
    """The root that this side trusts, where it has one."""
    folder = KeyFolder(Path(known.keys)) if known.keys else None
    return folder.root() if folder and (folder.path / ROOT_FILE).is_file() else None


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[BinaryIO]:
    if str(out) != "-":
        with archives.new_file(out) as file:
            yield file
        return
    export.refuse_terminal(sys.stdout.buffer)
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def export_command(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    out: Out,
    valid_for: ValidFor = "30d",
    device: Device = None,
    class_: Class = None,
    server: output.Server = None,
    token: output.Token = None,
    keys: output.Keys = None,
) -> None:
    """Write a published release as one file, with its permit, for [bold]interlock-agent install[/bold].

    Without --device and --class any device of the fleet may install it. A class is what a device knows of itself
    without having met its server: the name that its owner gave it (device.class in its agent.toml), or facts such as
    gpu=NVIDIA L4,arch=x86_64.

    Example: interlock bundle export detector 1.4.0 --device press-7 --valid-for 90d -o detector-1.4.0.bundle
    """
    meant = Meant.of(device or (), class_ or (), valid_for)
    root = _root(settings.load(server, token, keys))

    async def head(api: Api) -> Head:
        return await export.head(api, model, version, meant.body(), output.now(), root)

    async def work(api: Api, file: BinaryIO, made: Head) -> int:
        with Bar("fetching", made.manifest.payload_size) as bar:
            return await export.export(api, made, file, bar.advance)

    made = output.with_api(server, token, head)
    with _writing(out) as file:
        count = output.with_api(server, token, lambda api: work(api, file, made))
    _said(out, f"{model} {version}", count)


def _said(out: Path, release: str, count: int) -> None:
    if str(out) != "-":
        output.say(f"wrote {out}: {release}, {output.size(count)}", f"next: interlock-agent install {out}")


def permit_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle that was exported, whatever its permit.")],
    key: Annotated[str, typer.Option("--key", metavar="KEY", help="A sideload key of the root: a file, or a URI.")],
    out: Out,
    valid_for: ValidFor = "30d",
    device: Device = None,
    class_: Class = None,
    keys: output.Keys = None,
    passphrase_file: holding.PassphraseFile = None,
) -> None:
    """Give a bundle another permit, without the server: for other devices, or since the old one has expired.

    The key is one that the root names for this: [bold]interlock keys generate sideload[/bold] and [bold]export[/bold],
    then [bold]interlock root propose --add[/bold]. Every byte is checked.

    Example: interlock bundle permit old.bundle --key depot/sideload.pem --device press-9 --valid-for 7d -o new.bundle
    """
    meant = Meant.of(device or (), class_ or (), valid_for)
    signer = signers.of_uri(key, signers.Place(Path(), Passphrases(passphrase_file)))
    with payload.open_plain(file) as stream, _writing(out) as target, Bar("writing", file.stat().st_size) as bar:
        root = _root(settings.load(None, None, keys))
        permit, count = renew(stream, target, signer, meant, root=root, now=output.now(), progress=bar.advance)
    if str(out) != "-":
        output.say(f"permit for {describe(permit)}, until {output.when(permit.expires_at)}")
    _said(out, f"{permit.model} {permit.version}", count)
