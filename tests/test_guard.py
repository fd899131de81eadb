"""The guards catch what they must, and let through what they must."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import guard

PLANTED = """
import asyncio, pathlib, socket, subprocess, time
def sleep(): time.sleep(0.001)
def read(): pathlib.Path(__file__).read_text()
def run(): subprocess.run(["true"])
def connect(port):
    with socket.socket() as s: s.connect(("127.0.0.1", port))
def fine():
    import json.tool
"""


@pytest.fixture
def planted() -> dict[str, Callable[..., None]]:
    """Functions that seem to be ours."""
    space: dict[str, Callable[..., None]] = {"__file__": __file__}  # type: ignore[dict-item]
    exec(compile(PLANTED, guard.OURS[-1] + "planted.py", "exec"), space)
    return space


@pytest.mark.parametrize("name", ["sleep", "read", "run"])
async def test_a_blocking_call_of_ours_in_the_loop_is_an_error(
    planted: dict[str, Callable[..., None]], name: str
) -> None:
    with pytest.raises(guard.BlockingCall, match=f"in {name}"):
        planted[name]()
    guard.violations.clear()


async def test_a_blocking_connect_in_the_loop_is_an_error(
    planted: dict[str, Callable[..., None]], free_port: Callable[[], int]
) -> None:
    with pytest.raises(guard.BlockingCall):
        planted["connect"](free_port())
    guard.violations.clear()


async def test_a_swallowed_error_is_still_remembered(planted: dict[str, Callable[..., None]]) -> None:
    with contextlib.suppress(AssertionError):
        planted["sleep"]()
    assert len(guard.violations) == 1
    guard.violations.clear()


async def test_threads_imports_and_processes_of_asyncio_are_fine(planted: dict[str, Callable[..., None]]) -> None:
    await asyncio.to_thread(planted["sleep"])
    planted["fine"]()
    process = await asyncio.create_subprocess_exec("true")
    assert await process.wait() == 0


async def test_asyncio_connects_without_complaint(free_port: Callable[[], int]) -> None:
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", port := free_port())
    async with server:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()


def test_blocking_is_fine_where_no_loop_runs(planted: dict[str, Callable[..., None]]) -> None:
    planted["sleep"]()
    planted["read"]()
    time.sleep(0)


async def test_what_is_allowed_is_let_through(
    planted: dict[str, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ALLOWED", (guard.Allowed("planted.py", "sleep", "tried here"),))
    planted["sleep"]()


def test_a_foreign_socket_is_refused() -> None:
    with socket.socket() as client, pytest.raises(guard.ForeignSocket):
        client.connect(("192.0.2.1", 80))
    guard.violations.clear()


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("/run/x.sock", True),
        (b"\0name", True),
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1, 0, 0), True),
        (("localhost", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("10.0.0.1", 1), False),
        (("example.org", 1), False),
        (("2001:db8::1", 1, 0, 0), False),
    ],
)
def test_what_is_local(address: object, local: bool) -> None:
    assert guard.is_local(address) is local


def test_started_processes_are_guarded_too(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import socket\nwith socket.socket() as s: s.connect(('192.0.2.1', 80))\n")
    done = subprocess.run(
        [sys.executable, script], env=guard.guarded_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ForeignSocket" in done.stderr


def test_warnings_are_errors_in_started_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import warnings; warnings.warn('old', DeprecationWarning)"],
        env=guard.guarded_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1


def test_free_ports_differ_and_can_be_listened_on(free_port: Callable[[], int]) -> None:
    ports = {free_port() for _ in range(10)}
    assert len(ports) == 10
    with socket.create_server(("127.0.0.1", ports.pop())):
        pass
