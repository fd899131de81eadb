"""docs/key-ceremony.md is true: its commands, as they stand, by people with folders of their own, at a real server."""

from __future__ import annotations

import asyncio
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata

from interlock_server.__main__ import Running
from tests.publisher.test_main_path import Shell, server, shell  # noqa: F401 - fixtures

PAGE = Path(__file__).resolve().parents[2] / "docs" / "key-ceremony.md"
STICK = "/media/usb"
DIGEST = re.compile(r"[0-9a-f]{12}…")


def steps() -> list[tuple[str, str]]:
    """(person, command line) of every line in the page's blocks."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.partition("$ ") for block in blocks for line in block.splitlines()]
    assert all(person.isidentifier() and command for person, _, command in lines)
    return [(person, command) for person, _, command in lines]


async def test_the_page(
    server: Running,  # noqa: F811
    shell: Shell,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stick, digest, said = tmp_path / "usb", "", ""
    stick.mkdir()
    both = (await asyncio.to_thread((tmp_path / "server" / "tls_ca.crt").read_text)) * 2
    (stick / "both.pem").write_text(both)
    monkeypatch.setenv("INTERLOCK_PASSPHRASE", "several words of a person")
    for person, command in steps():
        monkeypatch.setenv("INTERLOCK_KEYS", str(tmp_path / person))
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
        words = shlex.split(DIGEST.sub(digest, command).replace(STICK, str(stick)))
        assert words.pop(0) == "interlock"
        said = await shell(*words)
        if command.endswith("/first.root") and "publish" in command:
            digest = re.findall(r"root_sha256 ([0-9a-f]{64})", said)[0]
    assert said.startswith("the server has it: root 6, targets 5")
    await _after(tmp_path, shell)


async def _after(folder: Path, shell: Shell) -> None:  # noqa: F811
    found = {one["role"]: one for one in (await shell.document("root", "show"))["roles"]}
    assert {role: (one["threshold"], len(one["keys"])) for role, one in found.items()} == {
        "root": (2, 3), "targets": (1, 2), "snapshot": (1, 1), "timestamp": (1, 1),
        "release-detector": (2, 2), "release-reader": (1, 1),
    }  # fmt: skip
    assert [one.removesuffix(" (here)") for one in found["root"]["keys"]] == ["alice", "dave", "bob-2"]
    metadata = folder / "server" / "tuf"
    root: Metadata[Any] = Metadata.from_bytes(await asyncio.to_thread((metadata / "6.root.json").read_bytes))
    assert root.signed.unrecognized_fields["x-interlock"]["tls_ca"].count("BEGIN CERTIFICATE") == 2
    for pem in folder.glob("*/*.pem"):
        if pem.parent.name != "usb":
            assert pem.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----"), pem
            assert pem.stat().st_mode & 0o777 == 0o600
            assert pem.read_text().splitlines()[1] not in shell.everything
    assert not [path for path in (folder / "usb").iterdir() if "PRIVATE" in path.read_text()]
