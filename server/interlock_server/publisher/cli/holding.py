"""What commands that open keys share: whose folder, which passphrase, public parts in files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from securesystemslib.signer import Key

from interlock_server.publisher import settings
from interlock_server.publisher.keys import KeyFolder, check_role
from interlock_server.publisher.passphrases import Passphrases
from interlock_shared import canonical
from interlock_shared.errors import Forbidden, Invalid
from interlock_shared.limits import MIB
from interlock_shared.trust import load_keys

PUBLIC_SCHEMA = "interlock.public-keys/1"

PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="It holds the passphrase; else $INTERLOCK_PASSPHRASE, else you are asked.",
    ),
]
NoPassphrase = Annotated[
    bool, typer.Option("--no-passphrase", help="Write new keys unencrypted: whoever can read the file has the key.")
]
Holder = Annotated[
    str, typer.Option("--holder", metavar="NAME", help="Who holds the key, as others see it in a ceremony.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write what is to be signed, for several holders; else sign and publish."
    ),
]


def folder(keys: Path | None, passphrase_file: Path | None = None, *, none: bool = False) -> KeyFolder:
    """The folder of keys: the option, the environment, the login's. Raises NotFound."""
    return KeyFolder(Path(settings.load(keys=keys).need("keys")), Passphrases(passphrase_file, none))


def public_document(found: KeyFolder, role: str | None) -> bytes:
    """What `keys export` writes. Raises Invalid where there is nothing to write."""
    keys = [one for one in found.public() if role in (None, one["role"])]
    if not keys:
        raise Invalid(f"there is no key {f'for {role} ' if role else ''}in {found.path}", code="no_key")
    parts = [{name: one[name] for name in ("role", "keyid", "key")} for one in keys]
    return canonical.encode({"schema": PUBLIC_SCHEMA, "keys": parts}) + b"\n"


def read_public(paths: Iterable[Path]) -> dict[str, list[Key]]:
    """The keys of exported files by role. Raises Forbidden, Invalid."""
    found: dict[str, list[Key]] = {}
    for path in paths:
        try:
            document = canonical.decode(path.read_bytes(), limit=MIB, what=path.name)
        except OSError as bad:
            raise Forbidden(f"{path}: {bad.strerror}", code="no_key") from None
        if document.get("schema") != PUBLIC_SCHEMA or not isinstance(document.get("keys"), list):
            raise Invalid(f"{path}: it is not what `interlock keys export` writes", code="bad_keys_file")
        for one in document["keys"]:
            try:
                role, key = check_role(str(one["role"])), load_keys({str(one["keyid"]): one["key"]})[0]
            except (KeyError, TypeError) as bad:
                raise Invalid(f"{path}: {bad!r}", code="bad_keys_file") from None
            found.setdefault(role, []).append(key)
    return found
