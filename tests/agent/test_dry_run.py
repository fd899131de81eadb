"""`interlock-agent gate`: what is asked, how it ends, and what a machine without a runtime says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from interlock_agent import cli, dry_run
from interlock_agent.config import Config, Unit
from interlock_shared.errors import Invalid, Later, Never
from tests.agent.test_report import VERDICT


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["interlock-agent", *words])
    return cli.main()


@pytest.fixture
def empty_config(tmp_path: Path) -> str:
    (tmp_path / "agent.toml").write_text("")
    return str(tmp_path / "agent.toml")


def ending(monkeypatch: pytest.MonkeyPatch, end: Any) -> list[Any]:
    """The gate ends so: with an outcome, or an error. What it was asked."""
    asked: list[Any] = []

    def judged(config: Config, bundle: Path, against: str | None, tell: Any) -> dry_run.Judged:
        asked.append((bundle, against))
        if isinstance(end, BaseException):
            raise end
        return dry_run.Judged(VERDICT | {"outcome": end}, "not checked: the bundle carries none")

    monkeypatch.setattr(dry_run, "run", judged)
    return asked


ENDS = [
    ("accept", 0),
    ("reject", 1),
    ("inconclusive", 4),
    (Never("broken", code="truncated"), 1),
    (Later("no room", code="no_space"), 3),
    (Invalid("of another model", field="--against"), 2),
    (KeyboardInterrupt(), 130),
]


@pytest.mark.parametrize(("end", "code"), ENDS, ids=str)
def test_the_exit_code_says_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, empty_config: str, end: Any, code: int
) -> None:
    asked = ending(monkeypatch, end)
    assert run(monkeypatch, "gate", "x.bundle", "--against", "y.bundle", "--dry-run", "--config", empty_config) == code
    assert asked == [(Path("x.bundle"), "y.bundle")]


def test_without_dry_run_nothing_is_judged_and_the_right_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ending(monkeypatch, "accept")
    assert run(monkeypatch, "gate", "x.bundle") == 2
    assert "interlock-agent install x.bundle" in capfd.readouterr().err
    assert asked == []


def test_people_are_told_what_was_not_checked(
    monkeypatch: pytest.MonkeyPatch, empty_config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, "reject")
    run(monkeypatch, "gate", "x.bundle", "--dry-run", "--config", empty_config)
    said = capsys.readouterr().out
    assert "signature: not checked: the bundle carries none\nnothing was installed\n" in said
    assert "latency_ratio_work" in said


def test_programs_get_the_document_and_the_picture(
    monkeypatch: pytest.MonkeyPatch, empty_config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ending(monkeypatch, "reject")
    words = ["gate", "x.bundle", "--dry-run", "--json", "--config", empty_config, "--svg"]
    assert run(monkeypatch, *words, str(tmp_path / "x.svg")) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"]["outcome"], said["signature"][:11]) == ("reject", "not checked")
    assert (tmp_path / "x.svg").read_text(encoding="utf-8").startswith("<svg ")
    assert run(monkeypatch, *words, "-") == 1
    assert capsys.readouterr().out.startswith("<svg ")


def test_a_folder_stands_for_its_only_bundle(tmp_path: Path) -> None:
    for there in ([], ["a.bundle", "b.bundle"]):
        for name in there:
            (tmp_path / name).touch()
        with pytest.raises(Invalid) as refused:
            dry_run.find_bundle(tmp_path)
        assert refused.value.code == "no_bundle"
    (tmp_path / "b.bundle").unlink()
    assert dry_run.find_bundle(tmp_path) == tmp_path / "a.bundle"
    assert dry_run.find_bundle(tmp_path / "a.bundle") == tmp_path / "a.bundle"


def test_a_machine_without_a_runtime_says_nothing_of_the_bundle() -> None:
    with pytest.raises(Later, match=r"interlock-agent\[cpu\]") as refused:
        dry_run._check_runtime(Unit(), {"python": "3.12.3"})
    assert refused.value.code == "no_runtime"
    dry_run._check_runtime(Unit(), {"onnxruntime": "1.23.0"})
