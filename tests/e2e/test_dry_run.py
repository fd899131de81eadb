"""Judging a bundle without installing it: the real command, the real host, tiny bundles; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from interlock_agent.core.contract import contract_of
from interlock_server.publisher import archives, build, bundle_toml, payload
from interlock_shared.archive import Head
from interlock_shared.base import validate
from interlock_shared.documents import Verdict
from tests.e2e import releases
from tests.e2e.world import temporary
from tests.host import models
from tests.rig.fleet import BIN, until

pytestmark = pytest.mark.e2e


def packed(folder: Path) -> Path:
    """The `.bundle` of a release folder, built and not published."""
    made = build.build(bundle_toml.load(folder))
    target = folder.parent / f"{made.manifest.version}.bundle"
    with archives.new_file(target) as file:
        archives.write(file, Head(made.data, made.manifest), payload.travel(made.folder, made.manifest))
    return target


def bundle(folder: Path, version: str, scale: float, **options: Any) -> Path:
    """A tiny one."""
    return packed(releases.write(folder / version, version, scale, **options))


class Bench:
    """Bundles, a device's folders, and the folder that temporary files are looked for in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary, self.state = folder, folder / "t", folder / "s"
        self.temporary.mkdir()
        self.config = folder / "agent.toml"
        device = f'[device]\nstate_dir = "{self.state}"\nrun_dir = "{folder / "r"}"\n'
        self.config.write_text(device + "[defaults.gate]\nbudget_s = 3.0\n")
        self.old = bundle(folder, "1.0.0", 2.0)
        self.good = bundle(folder, "1.1.0", 3.0)
        self.wrong = bundle(folder, "1.2.0", 3.0, wrong=1.0)

    def command(self, *words: str | Path, program: str = "interlock-agent") -> subprocess.Popen[str]:
        """Start it with a temporary folder of its own."""
        return subprocess.Popen(
            [str(BIN / program), *(str(word) for word in words), "--config", str(self.config)],
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def gate(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        """Judge; exit code and document."""
        process = self.command("gate", "--dry-run", "--json", *words)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return process.returncode, json.loads(out)

    def processes(self) -> list[str]:
        """Command lines of processes that know the temporary folder."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and str(self.temporary) in (line := (entry / "cmdline").read_text()):
                    found.append(line.replace("\0", " "))
            except OSError:
                continue
        return found

    def nothing_is_left(self) -> None:
        """No file and no process."""
        assert list(self.temporary.iterdir()) == []
        until(lambda: not self.processes(), "the private host to be gone")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with temporary() as folder:
        yield Bench(folder)


def test_a_good_bundle_is_accepted_beside_another(bench: Bench) -> None:
    picture = bench.folder / "verdict.svg"
    code, said = bench.gate(bench.good, "--against", bench.old, "--svg", picture)
    verdict = validate(Verdict, said["verdict"], "verdict")
    assert (code, verdict.outcome, verdict.origin) == (0, "accept", "dry-run")
    assert verdict.incumbent is not None
    assert verdict.incumbent.version == "1.0.0"
    assert said["signature"] == "not checked: the bundle carries none"
    stages: dict[str, str] = {stage.stage: stage.outcome for stage in verdict.stages}
    assert stages["fast"] == "pass"
    for side in (verdict.distributions.candidate, verdict.distributions.incumbent):
        assert side is not None
        assert list(side.quantiles_ms) == sorted(side.quantiles_ms)
    assert ET.parse(picture).getroot().tag.endswith("svg")
    assert not bench.state.exists(), "nothing is installed"
    bench.nothing_is_left()


def test_a_wrong_bundle_is_rejected_and_says_why(bench: Bench) -> None:
    code, said = bench.gate(bench.wrong, "--against", bench.old)
    assert (code, said["verdict"]["reason"]) == (1, "golden_mismatch")
    bench.nothing_is_left()


def test_what_is_confirmed_here_can_be_the_incumbent(bench: Bench) -> None:
    slots = bench.state / "slots" / releases.MODEL
    models.make_slot(slots / "a", releases.MODEL, "0.9.0", 7, scale=1.5)
    (slots / "confirmed").symlink_to("a")
    signature = build.build(bundle_toml.load(bench.folder / "1.0.0")).manifest.signature
    (slots / "contract.json").write_text(json.dumps(contract_of(signature)))
    before = sorted(path.name for path in slots.rglob("*"))
    code, said = bench.gate(bench.good, "--against", "installed")
    assert (code, said["verdict"]["incumbent"]["version"]) == (0, "0.9.0"), said
    assert sorted(path.name for path in slots.rglob("*")) == before
    bench.nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(bench: Bench, number: int) -> None:
    process = bench.command("gate", "--dry-run", bench.good, "--against", bench.old)
    until(lambda: any("interlock_agent.host" in line for line in bench.processes()), "the private host")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    bench.nothing_is_left()


def test_the_release_engineers_command_runs_it_and_takes_a_folder_too(bench: Bench) -> None:
    process = bench.command("bundle", "check", bench.folder / "1.2.0", "--against", bench.old, program="interlock")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, "")
    assert out.startswith("filetype 1.2.0 (fp32) beside 1.0.0: reject\nits answers are not the golden ones")
    assert out.endswith("nothing was installed\n")
    bench.nothing_is_left()
