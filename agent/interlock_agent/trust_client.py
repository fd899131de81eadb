"""The device's trust on its own: `python -m interlock_agent.trust_client`, for conformance suites and for looking.

    --metadata-dir D init ROOT
    --metadata-dir D --metadata-url U refresh
    --metadata-dir D --metadata-url U --target-name T --target-base-url B --target-dir O download

- It is the code that a device uses (`fetcher.trust`, `fetcher.http`), with the floors in the same folder.
- D is the only state: `root.json`, `timestamp.json`, … without versions in their names; `embedded`, the root that
  `init` was given and that stays the anchor; `floors`.
- A target that is there already, with the right bytes, is not asked for again.
- The exit code is 0, or 1 with one line that says why.
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import time
from pathlib import Path
from urllib.parse import quote

from interlock_agent.fetcher.http import Server
from interlock_agent.fetcher.trust import Trust, matches, walked
from interlock_shared import durable
from interlock_shared.errors import InterlockError, Invalid, NotFound
from interlock_shared.floors import Floors

EMBEDDED, FLOORS = "embedded", "floors"


class _Repository:
    """A MetadataSource: any repository's files below an address."""

    def __init__(self, url: str) -> None:
        self._server = Server(url, ssl.create_default_context())

    def __enter__(self) -> _Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def get(self, path: str, limit: int) -> bytes | None:
        """A file; None when there is none."""
        return self._server.get(f"/{path}", limit)

    def metadata(self, name: str, limit: int) -> bytes | None:
        """A TUF metadata file."""
        return self.get(name, limit)

    def director(self, limit: int) -> bytes:
        """No repository but ours has one."""
        raise NotFound(f"no director within {limit} bytes", code="not_a_target")


def _floors(folder: Path) -> Floors:
    try:
        return dict(json.loads((folder / FLOORS).read_bytes()))
    except FileNotFoundError:
        return {}


def init(folder: Path, root: Path) -> None:
    """Embed a root; nothing is asked of anybody. Raises OSError."""
    data = root.read_bytes()
    durable.make_folder(folder, 0o700)
    durable.replace_file(folder / EMBEDDED, data)
    durable.replace_file(folder / "root.json", data)


def refresh(folder: Path, source: _Repository) -> tuple[Trust, Floors]:
    """Trusted metadata; the new floors. Raises InterlockError, OSError."""
    root = (folder / EMBEDDED).read_bytes()
    trust, floors = walked(root, folder, source, time.time(), _floors(folder))
    durable.replace_file(folder / FLOORS, json.dumps(floors).encode())
    return trust, floors


def download(folder: Path, source: _Repository, name: str, targets: _Repository, into: Path) -> Path:
    """A target, verified; where it lies now. Raises InterlockError, OSError."""
    trust, floors = refresh(folder, source)
    target, floors = trust.target(name, floors)
    durable.replace_file(folder / FLOORS, json.dumps(floors).encode())
    place = into / quote(name, "")
    try:
        matches(target, place.read_bytes(), name)
        return place
    except (FileNotFoundError, InterlockError):
        pass  # not there yet, or another version of it
    data = targets.get(quote(trust.path_of(target), "/%"), target.length)
    if data is None:
        raise NotFound(f"{name} is not there", code="target_missing")
    matches(target, data, name)
    durable.make_folder(into)
    durable.replace_file(place, data)
    return place


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser("python -m interlock_agent.trust_client", description=__doc__.partition("\n")[0])
    parser.add_argument("--metadata-dir", type=Path, required=True, help="the only state")
    parser.add_argument("--metadata-url", help="where the repository's metadata is")
    parser.add_argument("--target-name")
    parser.add_argument("--target-base-url", help="where its targets are")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="embed a root").add_argument("root", type=Path)
    commands.add_parser("refresh", help="bring the trusted metadata up to date")
    commands.add_parser("download", help="refresh, then bring one target, verified")
    given = parser.parse_args(arguments)
    try:
        if given.command == "init":
            init(given.metadata_dir, given.root)
        elif not given.metadata_url:
            raise Invalid(f"{given.command} needs --metadata-url")
        elif given.command == "refresh":
            with _Repository(given.metadata_url) as source:
                refresh(given.metadata_dir, source)
        elif not (given.target_name and given.target_base_url and given.target_dir):
            raise Invalid("download needs --target-name, --target-base-url and --target-dir")
        else:
            with _Repository(given.metadata_url) as source, _Repository(given.target_base_url) as targets:
                download(given.metadata_dir, source, given.target_name, targets, given.target_dir)
    except InterlockError as error:
        return _told(f"{error.code}: {error.message}")
    except (OSError, ValueError) as error:
        return _told(str(error))
    return 0


def _told(why: str) -> int:
    sys.stderr.write(f"{why}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
