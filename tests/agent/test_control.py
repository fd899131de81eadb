"""The control socket and its client: greeting, descriptors, verbs, limits."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from interlock_agent import control_client
from interlock_agent.adapters import control
from interlock_agent.host import messages
from interlock_shared.errors import InterlockError, NotFound


class Api:
    """What the verbs got."""

    def __init__(self) -> None:
        self.read: list[bytes] = []

    async def handle(self, op: str, fields: dict[str, Any], descriptor: int, tell: control.Tell) -> dict[str, Any]:
        if op == "install":
            self.read.append(os.read(descriptor, 100))
            os.close(descriptor)
            await tell({"phase": "fetching"})
            return {"phase": "confirmed"}
        if op == "status":
            return {"fields": fields, "descriptor": descriptor}
        raise NotFound(f"no such request: {op}", code="bad_request", known=["status"])


class Served:
    def __init__(self, path: Path, api: Api) -> None:
        self.path, self.api = path, api

    async def ask(self, op: str, **more: Any) -> dict[str, Any]:
        return await asyncio.to_thread(control_client.ask, self.path, op, **more)


@pytest.fixture
async def served(short_path: Path) -> AsyncIterator[Served]:
    api = Api()
    listening = control.ControlSocket(short_path / "agent.sock", api.handle)
    await listening.start()
    yield Served(short_path / "agent.sock", api)
    await listening.stop()


async def test_a_request_is_answered(served: Served) -> None:
    answer = await served.ask("status", unit="detector")
    assert answer == {"fields": {"unit": "detector"}, "descriptor": -1}
    assert served.path.stat().st_mode & 0o777 == 0o600


async def test_an_open_file_is_passed_on_and_progress_is_told(served: Served) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"bundle")
    told: list[dict[str, Any]] = []
    answer = await served.ask("install", descriptor=reading, progress=told.append)
    os.close(reading)
    os.close(writing)
    assert (answer, told, served.api.read) == ({"phase": "confirmed"}, [{"phase": "fetching"}], [b"bundle"])


async def test_a_foreign_verb_is_refused_with_what_there_is(served: Served) -> None:
    with pytest.raises(NotFound) as refused:
        await served.ask("reboot")
    assert (refused.value.code, refused.value.details["known"]) == ("bad_request", ["status"])


async def test_no_agent_is_said_with_what_to_do(short_path: Path) -> None:
    with pytest.raises(InterlockError, match="systemctl start") as away:
        await asyncio.to_thread(control_client.ask, short_path / "nobody.sock", "status")
    assert away.value.code == "agent_away"


async def test_a_tool_of_another_protocol_is_told_both_ranges(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "hello", lambda version, role: _hello(version, role, 7, 9))
    with pytest.raises(InterlockError) as refused:
        await served.ask("status")
    assert refused.value.code == "protocol"
    for part in ("{'min': 7, 'max': 9}", "{'min': 1, 'max': 1}"):
        assert part in refused.value.message


def _hello(version: str, role: str, low: int, high: int) -> dict[str, Any]:
    ours = (messages.PROTOCOL_MIN, messages.PROTOCOL_MAX) if role == "agent" else (low, high)
    return {"hello": role, "version": version, "protocol": {"min": ours[0], "max": ours[1]}}


FRAMES = {
    "oversized": struct.pack(">I", control.REQUEST_MAX + 1),
    "not JSON": struct.pack(">I", 3) + b"{{{",
    "a list": struct.pack(">I", 2) + b"[]",
    "half a character": struct.pack(">I", 3) + b'"\xff"',
}


def _after_greeting(path: Path, frame: bytes) -> tuple[dict[str, Any], bytes]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        control_client._read(sock)
        sock.sendall(messages.encode(messages.hello("0.1.0", "tool")) + frame)
        return control_client._read(sock), sock.recv(1)


@pytest.mark.parametrize("kind", FRAMES)
async def test_a_malformed_request_ends_its_own_connection_only(served: Served, kind: str) -> None:
    answer, more = await asyncio.to_thread(_after_greeting, served.path, FRAMES[kind])
    assert answer["error"]["code"] == "invalid"
    assert more == b""
    assert (await served.ask("status"))["descriptor"] == -1
