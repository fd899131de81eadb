"""The owner's command measures what Interlock does not run: the documented example, as an owner would use it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import external
from tests.e2e.test_dry_run import Bench, packed
from tests.e2e.test_serving import device
from tests.e2e.world import MODEL, temporary
from tests.host import clients
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e

RIGHT, HALF = 3.0, 3.5  # of the example's items: all are right, one is


def example() -> str:
    """The program that the reference shows."""
    return external.example("command.md")


def write(folder: Path, version: str, scale: float, ratio: float = 100.0) -> Path:
    """A release of that table."""
    gates = f"accuracy_min = 0.9\nlatency_ratio_max = {ratio}"
    return external.write(folder, version, f"{scale}\n", gates=gates)


class Owner(Bench):
    """A machine whose owner has configured the command; `slow` multiplies the candidate's work."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.old = packed(write(folder / "table" / "one", "3.0.0", RIGHT))

    def configure(self, program: str, more: str = "") -> None:
        """Install it."""
        path = self.folder / "measure.py"
        path.write_text(program)
        unit = f'[units.{MODEL}.gate]\ncommand = ["{sys.executable}", "{path}"]\nbudget_s = 20.0\n{more}'
        plain = self.config.read_text().partition("[units")[0]
        self.config.write_text(plain + unit)

    def judge(self, scale: float, name: str, ratio: float = 100.0) -> tuple[int, dict[str, Any]]:
        """The verdict on a new table beside the old one."""
        code, said = self.gate(
            packed(write(self.folder / "table" / name, "3.1.0", scale, ratio)), "--against", self.old
        )
        return code, said["verdict"]


@pytest.fixture(scope="module")
def owner() -> Iterator[Owner]:
    with temporary() as folder:
        yield Owner(folder)


def checks(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["check"]: check for stage in verdict["stages"] for check in stage["checks"]}


def test_the_documented_command_measures_both_sides(owner: Owner) -> None:
    owner.configure(example())
    code, verdict = owner.judge(RIGHT, "equal")
    found = checks(verdict)
    assert (code, verdict["outcome"]) == (0, "accept"), verdict["message"]
    assert (verdict["variant"], verdict["runtime"]) == ("table", "table 1.0")
    assert found["command_deterministic"]["outcome"] == "pass"
    assert (found["accuracy"]["measured"], found["accuracy"]["incumbent"]) == (1.0, 1.0)
    assert found["accuracy_drop"]["outcome"] == "pass"
    assert found["self_test"]["outcome"] == "pass"
    assert found["latency_ratio_work"]["detail"]["pairs"] >= 12
    assert found["latency_p95"]["incumbent"] > 0
    assert found["memory_peak"]["measured"] > 5_000_000, "the command's own process"
    assert found["signature"]["reason"] == found["providers"]["reason"] == "external"
    owner.nothing_is_left()


def test_its_score_decides_by_the_same_limits(owner: Owner) -> None:
    owner.configure(example())
    code, verdict = owner.judge(HALF, "wrong")
    assert (code, verdict["reason"]) == (1, "accuracy_below_floor")
    owner.nothing_is_left()


def test_its_times_decide_by_the_same_statistics(owner: Owner) -> None:
    """Twice the work for the candidate alone."""
    twice = 'range(20_000 * (2 if __import__("os").environ["INTERLOCK_ROLE"] == "candidate" else 1))'
    owner.configure(example().replace("range(20_000)", twice))
    code, verdict = owner.judge(RIGHT, "slower", ratio=1.25)
    assert (code, verdict["reason"]) == (1, "too_slow")
    assert 1.5 < checks(verdict)["latency_ratio_work"]["measured"] < 3.0
    owner.nothing_is_left()


def test_a_command_that_is_not_there_refuses_nothing(owner: Owner) -> None:
    owner.configure(example())
    owner.config.write_text(owner.config.read_text().replace(sys.executable, "/no/such/program"))
    process = owner.command("gate", "--dry-run", "--json", owner.old)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "no_command" in out
    owner.nothing_is_left()


def test_without_a_command_such_a_model_is_refused(owner: Owner) -> None:
    owner.config.write_text(owner.config.read_text().partition("[units")[0])
    code, said = owner.gate(owner.old)
    assert (code, said["verdict"]["reason"]) == (1, "no_command")
    owner.nothing_is_left()


def test_on_a_device_it_goes_live_and_an_application_reads_it_there(tmp_path: Path) -> None:
    program = tmp_path / "measure.py"
    program.write_text(example())
    unit = f'\n[units.{MODEL}.gate]\ncommand = ["{sys.executable}", "{program}"]\nbudget_s = 20.0\n'
    with device({}, unit) as one:
        live = one.device.state / "slots" / MODEL / "live" / "model.txt"
        for version, scale in (("3.0.0", RIGHT), ("3.1.0", RIGHT)):
            one.world.publish(write(tmp_path / version, version, scale))
            one.settles(version, one.wish(version))
        assert live.read_text() == f"{RIGHT}\n"
        one.world.publish(write(tmp_path / "wrong", "3.2.0", HALF))
        one.settles("3.2.0", one.wish("3.2.0"), "rejected", runs="3.1.0")
        described = asyncio.run(clients.get(one.address(), f"/v2/models/{MODEL}")).json()
        assert described["platform"] == "external"
        until(lambda: "measure.py" not in command_lines(), "no process of the command is left")


def command_lines() -> str:
    """Command lines of all processes."""
    lines = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                lines.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return "\n".join(lines)
