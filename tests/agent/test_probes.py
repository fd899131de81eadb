"""The owner's probes against real processes and sockets: what is well, what is wrong, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from interlock_agent.adapters import probes
from interlock_agent.adapters.probes import OwnersProbes
from interlock_shared.errors import Refused

FACTS = {"UNIT": "detector", "RELEASE": "1.1.0"}
SHELL = "/bin/sh"


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        ("exit 0", ""),
        ("echo no frames; echo for 60 s >&2; exit 3", "exit 3: no frames\nfor 60 s"),
        ("exit 1", "exit 1: it said nothing"),
        ("kill -9 $$", "signal 9: it said nothing"),
        ('test "$INTERLOCK_UNIT $INTERLOCK_RELEASE" = "detector 1.1.0"', ""),
        ('test -z "$SECRET_OF_OURS" && test "$PWD" = /', ""),
        ("read line && exit 0; exit 4", "exit 4: it said nothing"),  # nothing to read
    ],
)
async def test_a_command_is_well_where_it_exits_with_nothing(
    script: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "x")
    assert await OwnersProbes().exec([SHELL, "-c", script], FACTS) == trouble


async def test_of_what_a_command_says_the_end_is_told() -> None:
    said = await OwnersProbes().exec([SHELL, "-c", f"yes | head -c {2**20}; echo the end; exit 1"], FACTS)
    assert said.endswith("the end")
    assert len(said) < 2 * probes.WORDS_BYTES


async def test_a_command_that_is_not_there_is_wrong() -> None:
    assert "No such file" in await OwnersProbes().exec(["/no/such/probe"], FACTS)


async def _ended(pid: int) -> None:
    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(gone):  # noqa: ASYNC110  # the kernel tells nobody who is not its parent
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("waits", [True, False])
async def test_what_a_command_has_started_ends_with_it(waits: bool, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {told}.new; mv {told}.new {told}; {'wait' if waits else 'exit 0'}"
    asked = asyncio.ensure_future(OwnersProbes().exec([SHELL, "-c", script], FACTS))
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(told.exists):  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.01)
    if waits:
        asked.cancel()  # its time is over
        with contextlib.suppress(asyncio.CancelledError):
            await asked
    else:
        assert await asked == ""
    await _ended(int(told.read_text()))


async def test_a_unit_is_well_where_systemctl_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "systemctl"
    fake.write_text('#!/bin/sh\necho "$@"; test "$3" = good.service\n')
    fake.chmod(0o755)
    monkeypatch.setattr(probes, "SYSTEMCTL", (str(fake), *probes.SYSTEMCTL[1:]))
    assert await OwnersProbes().systemd("good.service") == ""
    assert await OwnersProbes().systemd("bad.service") == "exit 1: --no-ask-password is-active bad.service"


# --- HTTP -------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answering(answer: bytes, path: Path | None = None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Somebody who says that to everybody; its address, and what it was asked."""
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()

    if path is not None:
        server = await asyncio.start_unix_server(talk, str(path))
        address = f"unix:{path}"
    else:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        address = "{}:{}".format(*server.sockets[0].getsockname())
    async with server:
        yield address, asked


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", ""),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "HTTP 503"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP 404"),
        (b"SSH-2.0-OpenSSH_9\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 what\r\n", "invalid literal"),
        (b"x" * 2**18, "does not speak HTTP"),
        (b"", "0 bytes read"),
    ],
)
async def test_an_address_is_well_where_it_answers_so(answer: bytes, trouble: str) -> None:
    async with answering(answer) as (address, asked):
        said = await OwnersProbes().http(f"http://user@{address}/healthz?deep=1")
        assert bool(said) == bool(trouble)
        assert trouble in said
        assert asked[0].startswith(b"GET /healthz?deep=1 HTTP/1.1\r\nHost: " + address.encode() + b"\r\n")


async def test_an_address_where_nobody_is_is_wrong() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert "onnect" in await OwnersProbes().http(f"http://127.0.0.1:{one.getsockname()[1]}/")


async def test_a_model_is_ready_where_its_own_address_says_so(tmp_path: Path) -> None:
    look = OwnersProbes().ready
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n", tmp_path / "s") as (address, asked):
        assert await look(address, "detector") == ""
        assert asked[0].startswith(b"GET /v2/models/detector/ready HTTP/1.1\r\n")
    async with answering(b"HTTP/1.1 503 no\r\n\r\n") as (address, _):
        assert await look(address, "detector") == "HTTP 503"
    async with answering(b"HTTP/1.1 401 who\r\n\r\n") as (address, _):
        with pytest.raises(Refused, match="may not ask"):
            await look(address, "detector")
    assert await look(f"unix:{tmp_path}/nobody", "detector")


def test_this_file_runs_where_probes_run() -> None:
    assert os.access(SHELL, os.X_OK)
    assert sys.platform == "linux"
