"""The command line: help that teaches, one clear line for every error, documented exit codes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command

from interlock_server import cli
from interlock_server.publisher import progress
from interlock_server.publisher.cli import devices, fleet, output
from interlock_shared.errors import Invalid
from tests.publisher import models


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def commands(command: Any, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", {})
    return [one for name, inner in below.items() for one in commands(inner, (*words, name))] or [(words, command)]


@pytest.mark.parametrize(("words", "command"), commands(get_command(cli.app)), ids=lambda one: str(one)[:40])
def test_every_command_shows_an_example(words: tuple[str, ...], command: Any, capsys: Any) -> None:
    assert f"Example: interlock {' '.join(words)}" in command.help
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0
    assert "Example" in out


def test_help_and_version(capsys: Any) -> None:
    assert "Exit codes" in run(capsys, "--help")[1]
    assert run(capsys, "--version")[1].startswith("interlock 0.")


WRONG = [
    (2, "", ["frobnicate"]),
    (2, "", ["bundle", "build", "--frob"]),
    (2, "", ["bundle", "export", "m", "1.0.0"]),
    (2, "invalid", ["bundle", "export", "m", "1.0.0", "-o", "x", "--valid-for", "0d"]),
    (2, "invalid", ["bundle", "export", "m", "1.0.0", "-o", "x", "--valid-for", "3661d"]),
    (1, "invalid", ["bundle", "export", "m", "1.0.0", "-o", "x", "--class", "colour=red"]),
    (2, "", ["keys", "init"]),
    (1, "no_bundle_toml", ["bundle", "build", "nowhere"]),
    (1, "missing_file", ["bundle", "show", "nowhere"]),
    (1, "not_a_plain_file", ["bundle", "show", "."]),
    (1, "no_bundle_toml", ["publish", "x.bundle", "--keys", "k", "--server", "http://h", "--token", "t"]),
    (1, "not_logged_in", ["release", "list"]),
    (1, "not_logged_in", ["release", "list", "--server", "http://127.0.0.1:1"]),
    (1, "not_logged_in", ["keys", "show"]),
    (1, "no_key", ["keys", "show", "nowhere"]),
    (1, "invalid", ["release", "list", "--server", "ftp://x", "--token", "t"]),
    (1, "invalid", ["release", "list", "--server", "http://127.0.0.1:99999", "--token", "t"]),
    (1, "invalid", ["release", "list", "--server", "http://127.0.0.1:1", "--token", "t\nx"]),
    (1, "invalid", ["release", "show", "a/b", "1.0.0", "--server", "http://127.0.0.1:1", "--token", "t"]),
    (2, "invalid", ["rollout", "start", "m", "1.0.0", "--to", "site", "--server", "http://h", "--token", "t"]),
    (1, "invalid", ["bundle", "init", "nowhere"]),
    (3, "unreachable", ["release", "show", "m", "1.0.0", "--server", "http://127.0.0.1:1", "--token", "t"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "error", "words"), WRONG, ids=str)
def test_what_is_asked_wrongly_is_one_clear_line(
    code: int, error: str, words: list[str], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interlock_server.publisher.client.BACKOFF_FIRST_S", 0.0)
    got, out, err = run(capsys, *words)
    assert got == code
    if error:
        assert err.startswith(f"error[{error}]: ")
        assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_a_document_for_programs(capsys: Any) -> None:
    code, out, err = run(capsys, "bundle", "show", "nowhere", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (1, "missing_file")
    assert err.startswith("error[missing_file]")


def test_a_check_without_the_agent_says_how_to_get_it(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    code, out, err = run(capsys, "bundle", "check", "x.bundle")
    assert (code, out) == (3, "")
    assert err.startswith("error[no_agent]: ")
    assert "pip install" in err


def test_a_check_passes_words_and_exit_code_on(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    agent = tmp_path / "interlock-agent"
    agent.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\nexit 4\n')
    agent.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    words: list[str | Path] = ["--against", tmp_path / "y.bundle", "--svg", "-", "--config", "c.toml", "--json"]
    assert run(capsys, "bundle", "check", tmp_path / "x.bundle", *words)[0] == 4
    said = (tmp_path / "words").read_text().split()
    assert said == ["gate", "--dry-run", f"{tmp_path}/x.bundle", *(str(word) for word in words)]


def test_a_defect_is_one_line_too(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a\nb")

    monkeypatch.setattr("interlock_server.publisher.template.write", broken)
    code, _, err = run(capsys, "bundle", "init")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error[defect]: RuntimeError: a b")
    monkeypatch.setenv(cli.DEBUG_ENV, "1")
    with pytest.raises(RuntimeError):
        cli.main(["bundle", "init"])


def test_a_folder_becomes_a_bundle(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = models.folder(tmp_path / "detector")
    code, out, _ = run(capsys, "bundle", "build", folder, "--check-golden")
    assert code == 0
    assert "100.00%" in out
    file = tmp_path / "detector-1.4.0.bundle"
    assert "every byte is right" in run(capsys, "bundle", "verify", file)[1]
    assert "[-1, 4]" in run(capsys, "bundle", "show", file)[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert json.loads(run(capsys, "bundle", "verify", "-", "--json")[1])["signed"] is False
    data = bytearray(file.read_bytes())
    data[-3000] ^= 1
    file.write_bytes(data)
    assert run(capsys, "bundle", "verify", file)[0] == 1
    root = tmp_path / "root.json"
    root.write_text("{}")
    assert run(capsys, "bundle", "verify", file, "--root", root)[0] == 1


def test_golden_outputs_that_disagree_are_found(capsys: Any, tmp_path: Path) -> None:
    folder = models.folder(tmp_path / "detector", models.linear(seed=9))
    code, _, err = run(capsys, "bundle", "build", folder, "--check-golden", "-o", tmp_path / "x.bundle")
    assert code == 1
    assert err.startswith("error[golden_failed]")
    assert not (tmp_path / "x.bundle").exists()


def test_init_asks_for_what_it_cannot_know(capsys: Any, tmp_path: Path) -> None:
    folder = models.folder(tmp_path / "My Model")
    (folder / "bundle.toml").unlink()
    (folder / "b.onnx").write_bytes(b"")
    assert "--model-file" in run(capsys, "bundle", "init", folder)[2]
    assert run(capsys, "bundle", "init", folder, "--model-file", "model.onnx")[0] == 0
    assert 'model = "my-model"' in (folder / "bundle.toml").read_text()
    assert "bundle_toml_exists" in run(capsys, "bundle", "init", folder, "--model-file", "model.onnx")[2]


def test_what_to_means() -> None:
    assert fleet.target(["all"]) == {"all": True}
    assert fleet.target(["device=a"]) == {"device": "a"}
    assert fleet.target(["site=berlin", "line=2"]) == {"labels": {"site": "berlin", "line": "2"}}
    for wrong in (["device=a", "site=b"], ["site=a", "site=b"], ["site"], ["=x"]):
        with pytest.raises(Invalid):
            fleet.target(wrong)


ROLLOUT = {
    "id": "r-1",
    "model": "detector",
    "version": "1.4.0",
    "state": "active",
    "counts": {"confirmed": 3, "rejected": 2, "trial": 1},
    "assignments": [{"device": "press-7", "state": "rejected", "reason": "slow\x1b[2J"}],
}


def test_results_are_counted_apart_and_cannot_move_the_cursor(capsys: Any) -> None:
    fleet._rollout(ROLLOUT)
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["confirmed", "rejected", "reverted", "failed", "other"]
    assert out.splitlines()[2].split() == ["3", "2", "0", "0", "1"]
    assert "\x1b" not in out


def test_a_device_and_a_verdict_are_shown(capsys: Any) -> None:
    unit = {"offered": "1.1.0", "installed": {"a": "1.0.0", "b": None}, "confirmed": "1.0.0", "running": "1.0.0"}
    device = {"id": "press-7", "labels": {"site": "berlin"}, "online": False, "last_seen": None, "agent": "0.1.0"}
    devices._device({**device, "units": {"detector": unit}, "assignments": []})
    out = capsys.readouterr().out
    assert "site=berlin" in out
    assert "a:1.0.0" in out
    check = {"check": "p95", "outcome": "fail", "measured": 12.34567, "limit": 10.0, "unit": "ms"}
    verdict = {"model": "detector", "version": "1.1.0", "device": "press-7", "outcome": "reject", "reason": "p95"}
    devices._verdict({"verified": False, "verdict": {**verdict, "stages": [{"stage": "fast", "checks": [check]}]}})
    out = capsys.readouterr().out
    assert "NOT SIGNED" in out
    assert "12.35" in out


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 2.0, 11.0])
    pipe = io.StringIO()
    with progress.Bar("hashing", 100, Console(file=pipe, force_terminal=False), lambda: next(clock)) as bar:
        for _ in range(3):
            bar.advance(25)
    assert pipe.getvalue() == "hashing: 75 bytes of 100 bytes\n"
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    terminal = io.StringIO()
    with progress.Bar("hashing", 100, Console(file=terminal, force_terminal=True)) as bar:
        bar.advance(50)
    assert "hashing" in terminal.getvalue()


def test_sizes_are_for_people() -> None:
    assert [output.size(count) for count in (0, 1023, 1024, 3 * 2**20, 2**50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "1024.0 TiB",
    ]
