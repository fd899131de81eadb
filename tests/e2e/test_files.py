"""Applications that read the model's files: the documented example follows `live`, and its failing hook is a failed
switch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import external
from tests.e2e.test_serving import device
from tests.e2e.world import MODEL, Watcher
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e

MEASURE = """\
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    runs = asked.get("runs", 1)
    print(json.dumps({} if asked["ask"] == "evaluate" else {"wall_ms": [1.0] * runs}), flush=True)
"""


class Following:
    """A device, and an application on it."""

    def __init__(self, one: Watcher, address: str, folder: Path) -> None:
        self.one, self.address, self._folder = one, address, folder

    def release(self, version: str, content: str, trial_s: float = 0.3) -> str:
        """Publish a table; the rollout."""
        made = external.write(self._folder / version, version, content, trial_s=trial_s, requests=0)
        self.one.world.publish(made)
        return self.one.wish(version)

    def says(self) -> str:
        """What the application makes of 2."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/?x=2", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as refused:
            with refused:
                return f"{refused.code} {refused.read().decode()}"


@contextlib.contextmanager
def following(tmp_path: Path) -> Iterator[Following]:
    """The example runs, and is told by its hook."""
    measure = tmp_path / "measure.py"
    measure.write_text(MEASURE)
    program = tmp_path / "application.py"
    program.write_text(external.example("files.md"))
    live = tmp_path / "live"  # a link to `live`, which is not there yet
    with subprocess.Popen(
        [sys.executable, str(program), "0", str(live)], stdout=subprocess.PIPE, text=True
    ) as application:
        assert application.stdout is not None
        address = f"127.0.0.1:{application.stdout.readline().strip()}"
        unit = f'\n[units.{MODEL}.gate]\ncommand = ["{sys.executable}", "{measure}"]\n'
        unit += f'\n[units.{MODEL}.hook]\nhttp = "http://{address}/reload"\n'
        try:
            with device({}, unit) as one:
                live.symlink_to(one.device.state / "slots" / MODEL / "live")
                yield Following(one, address, tmp_path)
        finally:
            application.kill()


def test_an_application_follows_and_one_that_cannot_read_a_release_takes_it_back(tmp_path: Path) -> None:
    with following(tmp_path) as app:
        one = app.one
        assert app.says() == "503 no model yet"
        one.settles("1.0.0", app.release("1.0.0", "3.0"))
        assert app.says() == "6.0"
        one.settles("1.1.0", app.release("1.1.0", "4.0"))
        assert app.says() == "8.0"
        rollout = app.release("1.2.0", "four")
        one.settles("1.2.0", rollout, "reverted", runs="1.1.0")
        assert one.device.ask("status")["units"][MODEL]["reason"] == "hook_failed"
        assert app.says() == "8.0"


def test_a_trial_that_ends_with_the_host_is_told_to_the_application(tmp_path: Path) -> None:
    with following(tmp_path) as app:
        one = app.one
        one.settles("1.0.0", app.release("1.0.0", "3.0"))
        app.release("1.1.0", "4.0", trial_s=600.0)
        one.reaches("trial")
        until(lambda: app.says() == "8.0", "the trial's release to be used")
        one.device.agent.kill()
        one.device.host.kill()
        one.device.start_host()
        until(lambda: app.says() == "6.0", "the confirmed release to be used again")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace of one's own needs root")
def test_a_mount_of_the_models_folder_follows_and_a_mount_of_live_does_not(tmp_path: Path) -> None:
    model, seen, stuck = tmp_path / "slots" / "table", tmp_path / "seen", tmp_path / "stuck"
    for slot in "ab":
        (model / slot).mkdir(parents=True)
        (model / slot / "model.txt").write_text(slot)
    (model / "live").symlink_to("a")
    seen.mkdir()
    stuck.mkdir()
    program = (
        f"mount --bind {model} {seen} && mount --bind {model}/live/ {stuck} && cat {seen}/live/model.txt"
        f" && ln -sfn b {model}/new && mv -T {model}/new {model}/live"
        f" && cat {seen}/live/model.txt {stuck}/model.txt"
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("aba", 0), done.stderr
