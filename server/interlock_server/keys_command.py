"""`interlock-server keys`: the public parts of the online keys, as the machine itself has them.

For a ceremony: keyholders see key ids that came over the network, the operator reads these to them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from interlock_server import config
from interlock_server.adapters.keys import NAMES, OnlineKeys
from interlock_shared.errors import NotFound

HELP = """\
Public parts of this server's online keys, read from its data folder: what keyholders compare before they sign.

  interlock-server keys                       role, key id, public key; `next` is a fresh key that waits for its turn
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommand."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("keys", help="public parts of the online keys", description=HELP, formatter_class=raw)
    parser.add_argument("--data", type=Path, metavar="DIR", help="the server's data folder, as of run")


def run(given: argparse.Namespace) -> int:
    """The subcommand. Raises NotFound (`no_key`), Invalid (`broken_store`), OSError."""
    folder = (given.data or config.default_data()).absolute() / "keys"
    missing = [name for name in NAMES if not (folder / f"{name}.pem").exists()]
    if missing:
        raise NotFound(f"there is no {folder / missing[0]}.pem: the server makes it at its first start", code="no_key")
    shown = OnlineKeys.open(folder).public()
    for role in NAMES:
        for name, one in ((role, shown[role]), (f"{role} next", shown[role].get("next"))):
            if one is not None:
                sys.stdout.write(f"{name:<14}  {one['keyid']}  {one['key']['keyval']['public']}\n")
    return 0
