"""The console script: what it prints and writes, one process a folder, a graceful end."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from interlock_server import __version__, config
from interlock_server.__main__ import main
from interlock_server.adapters.broker import Address
from interlock_server.adapters.device_ca import DeviceCA
from interlock_shared.errors import Invalid

COMMAND = [sys.executable, "-m", "interlock_server", "run", "--listen", "127.0.0.1:0", "--broker-listen", "127.0.0.1:0"]


@contextmanager
def started(folder: Path, environment: Callable[..., dict[str, str]], *more: str) -> Iterator[subprocess.Popen[str]]:
    """A server process that said READY=1."""
    folder.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        name = str(folder / "notify")
        systemd.bind(name)
        systemd.settimeout(30)
        command = [*COMMAND, "--data", str(folder / "data"), *more]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(NOTIFY_SOCKET=name),
        ) as process:
            try:
                assert systemd.recv(100) == b"READY=1", process.stderr
                yield process
            finally:
                process.kill()
        os.unlink(name)


def test_one_command_runs_everything(short_path: Path, guarded_environment: Callable[..., dict[str, str]]) -> None:
    token = short_path / "token"
    with started(short_path, guarded_environment, "--token-file", str(token), "--log-format", "json") as process:
        known = json.loads((short_path / "data" / "server.json").read_text())
        context = ssl.create_default_context(cafile=str(short_path / "data" / "tls_ca.crt"))
        with urlopen(known["url"] + "/v1/status", context=context) as response:
            status = json.load(response)
        assert (status["server"], status["broker"]) == (__version__, known["broker"])
        assert known["pid"] == process.pid
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        for key in (short_path / "data" / "keys").iterdir():
            assert stat.S_IMODE(key.stat().st_mode) == 0o600

        second = [*COMMAND, "--data", str(short_path / "data")]
        other = subprocess.run(
            second, check=False, capture_output=True, text=True, timeout=30, env=guarded_environment()
        )
        assert other.returncode == 1
        assert "another interlock-server runs" in other.stderr

        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=15)
        assert process.returncode == 0
        assert token.read_text().strip() not in out  # under systemd this is the journal
        assert str(token) in out
        assert all(json.loads(line)["level"] == "info" for line in log.splitlines()), log
    with started(short_path, guarded_environment) as process:  # the token is shown once
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=15)
        assert "token" not in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--listen", "8080"],
        ["run", "--listen", "host:99999"],
        ["run", "--broker", "http://x"],
        ["run", "--broker", "mqtt://x:port"],
    ],
)
def test_wrong_options_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("interlock-server: ")


def test_a_folder_that_cannot_be_had_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    DeviceCA.open(tmp_path / "keys")
    words = ["broker-config", "mosquitto", "--data", str(tmp_path), "--host", "b.example", "--output"]
    assert main([*words, str(tmp_path / "file" / "sub")]) == 1
    assert f"interlock-server: {tmp_path}/file" in capsys.readouterr().err


def test_help_and_version_teach(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--version"], __version__), (["--help"], "admin token"), (["run", "--help"], "--data")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert words in capsys.readouterr().out


def test_where_data_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.default_data() == Path("/var/lib/interlock-server")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert config.default_data() == tmp_path / "interlock-server"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert config.default_data() == Path.home() / ".local" / "state" / "interlock-server"


def test_addresses() -> None:
    assert config.address("[::1]:80", "--listen") == ("::1", 80)
    assert config.show("::1", 80) == "[::1]:80"
    assert Address.parse("mqtts://broker.example") == Address("broker.example", 8883)
    assert Address.parse("mqtts://[::1]:1884").public == "mqtts://[::1]:1884"
    for wrong in ("http://x", "mqtts://", "mqtts://x:0", "mqtts://x:1/path", "mqtt://x", "mqtts://user:word@x"):
        with pytest.raises(Invalid):
            Address.parse(wrong)
