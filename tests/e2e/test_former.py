"""An agent and a host of different commits work together: the wheels of the one before, built from this repository's
history, and this one.

`INTERLOCK_FORMER` names another commit than the one before. Without history (a shallow clone, a package) the tests are
skipped, and say so.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from tests.e2e.world import MODEL, Watcher, watched, world
from tests.rig.fleet import BIN

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parent.parent.parent
FORMER = "0.0.1"  # as its wheels call themselves, so that nothing else can be meant

MANIFEST_CHANGED = ("invalid", "needs_agent")  # an unknown field in a signed document is a refusal


def pip(*words: str) -> None:
    """Without any index: what is needed is here."""
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", words[0], *options, *words[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the device's programs are those of the commit before, installed from its wheels."""
    commit = os.environ.get("INTERLOCK_FORMER", "HEAD^")
    try:
        made = subprocess.run(["git", "archive", commit, "agent", "shared"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as missing:
        pytest.skip(f"no history here to take {commit} from: {getattr(missing, 'stderr', missing)!r}")
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=BytesIO(made.stdout)) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # of Python from 3.11.4 on
        archive.extractall(folder)  # made by git, a line above
    for package in ("agent", "shared"):  # another version than today's, so that nothing else can be meant
        project = folder / package / "pyproject.toml"
        project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{FORMER}"', project.read_text()))
    version = folder / "agent" / "interlock_agent" / "__init__.py"
    version.write_text(f'"""Of a former commit."""\n\n__version__ = "{FORMER}"\n')
    built = [
        "wheel",
        "--no-build-isolation",
        "-w",
        str(folder / "wheels"),
        str(folder / "agent"),
        str(folder / "shared"),
    ]
    pip(*built)
    installed = folder / "installed"
    wheels = sorted((folder / "wheels").glob(f"interlock_*-{FORMER}-*.whl"))
    assert len(wheels) == 2, wheels
    pip("install", "--no-compile", "--target", str(installed), *map(str, wheels))
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    look = "import interlock_agent, interlock_shared; print(interlock_agent.__file__, interlock_shared.__file__)"
    found = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.count(str(installed)) == 2, found.stdout
    return environment


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with world() as made:
        found = watched(made, "press-8", {"listen": "127.0.0.1:0"})
        with found.web, found.broker:
            yield found
            found.between.close()


def host_version(one: Watcher) -> str:
    """What the host calls itself, as its own tool of today asks it."""
    command = [str(BIN / "interlock-host"), "status", "--json", "--config", str(one.device.folder / "host.toml")]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(json.loads(said.stdout)["host"]["version"])


def test_releases_are_switched_whichever_side_is_older(one: Watcher, former: dict[str, str]) -> None:
    device, now = one.device, one.device.host.environment
    device.host.environment = former
    device.start()
    one.world.first(device)
    assert host_version(one) == FORMER, "the host was the older one"
    device.agent.stop()
    device.host.stop()
    device.host.environment, device.agent.environment = now, former
    device.start()
    assert host_version(one) != FORMER
    with one.traffic() as traffic:  # what the older host has left is served, and switched
        served, version = device.ask("status")["units"][MODEL]["running"], one.world.release()
        rollout = one.wish(version)
        unit = one.rests(version, assignment=one.world.assignment(rollout)["assignment"])
        traffic.answered(10)
    if unit["reason"] in MANIFEST_CHANGED:
        assert device.ask("status")["units"][MODEL]["running"] == served
        pytest.skip(f"since that commit manifests have changed: its agent says {unit['reason']}, and serves on")
    one.settles(version, rollout)
    assert device.ask("status")["units"][MODEL]["running"] == version
