"""Every command, asked wrongly: one line that says what is wrong, the documented exit code, never a traceback, and
nothing changed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from interlock_server import cli
from tests.e2e import releases
from tests.e2e.world import MODEL, Watcher, watched, world
from tests.rig.fleet import BIN

pytestmark = pytest.mark.e2e

GIBBERISH = bytes(range(256)) * 64


@dataclass
class Place:
    """Where commands are run: a fleet, and a folder full of bad files."""

    one: Watcher
    folder: Path
    dead: str
    before: str = ""  # the state before all that
    done: dict[str, Future[subprocess.CompletedProcess[str]]] = field(default_factory=dict)

    def run(self, words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command; {names} are filled."""
        names = {
            "folder": str(self.folder),
            "config": str(self.one.device.config),
            "dead": self.dead,
            "url": self.one.world.url,
            "run": str(self.one.device.folder / "run"),
            "model": MODEL,
            "zeros": "0" * 64,
        }
        program, *arguments = words.format(**names).split()
        filled = {name: value.format(**names) for name, value in environment.items()}
        given = {**self.one.world.admin_environment(), "INTERLOCK_CONFIG": "", **filled}
        given = {name: value for name, value in given.items() if value}
        if program == "interlock":
            return self._inside(arguments, given)
        return subprocess.run(
            [str(BIN / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=given,
            cwd=self.folder,
            check=False,
        )

    def _inside(self, arguments: list[str], given: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """`interlock` in this process: its start is a second, and what it says is said by `main`."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            patch.setenv("XDG_CONFIG_HOME", str(self.folder))
            patch.chdir(self.folder)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = cli.main(arguments)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "noise").write_bytes(GIBBERISH)
    (folder / "noise.bundle").write_bytes(GIBBERISH)
    (folder / "empty.bundle").touch()
    (folder / "bad.toml").write_text("this is = = not toml")
    (folder / "unknown.toml").write_text('colour = "red"\n')
    (folder / "wrong.toml").write_text("[device]\nstate_dir = 7\n")
    (folder / "away.toml").write_text(f'[device]\nstate_dir = "{folder}/s"\nrun_dir = "{folder}/r"\n')
    (folder / "away-host.toml").write_text(f'state_dir = "{folder}/s"\nrun_dir = "{folder}/r"\n')
    (folder / "host-type.toml").write_text('concurrency = "two"\n')
    good = releases.write(folder / "good", "1.0.0", 2.0)
    for name, old, new in (
        ("command", "[health]", '[health]\nexec = "rm -rf /"'),
        ("version", 'version = "1.0.0"', 'version = "one"'),
        ("absent", 'file = "model.onnx"', 'file = "absent.onnx"'),
        ("climbing", 'file = "model.onnx"', 'file = "../model.onnx"'),
        ("foreign", f'model = "{MODEL}"', 'model = "nobodys"'),
    ):
        releases.write(folder / name, "1.0.0", 2.0)
        (folder / name / "bundle.toml").write_text((good / "bundle.toml").read_text().replace(old, new, 1))
    releases.write(folder / "no-onnx", "1.0.0", 2.0)
    (folder / "no-onnx" / "model.onnx").write_bytes(GIBBERISH)
    releases.write(folder / "no-golden", "1.0.0", 2.0)
    (folder / "no-golden" / "golden.npz").write_bytes(GIBBERISH)
    with world() as made, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        one = watched(made, "press-7", {"listen": "127.0.0.1:0"})
        with one.web, one.broker:
            one.device.start()
            made.first(one.device)
            found = Place(one, folder, f"127.0.0.1:{closed.getsockname()[1]}")
            found.before = state(one)
            with ThreadPoolExecutor(3) as pool:  # starting a program is most of the time
                found.done = {
                    words: pool.submit(found.run, words) for words, _, _ in ROWS if not words.startswith("interlock ")
                }
                yield found
            one.between.close()


def state(one: Watcher) -> str:
    """What a wrong word must not change."""
    status = one.device.ask("status")
    made = one.world
    listed = [made.ask("GET", path) for path in ("/v1/releases", "/v1/rollouts", "/v1/tokens", "/v1/trust")]
    unit = {key: status["units"][MODEL][key] for key in ("phase", "generation", "running", "confirmed", "installed")}
    return json.dumps([unit, status["quarantine"], sorted(status["units"]), listed], sort_keys=True)


# (command, exit code, what the message names)
ROWS: tuple[tuple[str, int, str], ...] = (
    ("interlock no-such-command", 2, "no-such-command"),
    ("interlock publish", 2, "DIR|FILE"),
    ("interlock publish {folder}/absent-folder", 1, "absent-folder"),
    ("interlock publish {folder}/noise", 1, "bundle"),
    ("interlock publish {folder}/noise.bundle", 1, "bundle"),
    ("interlock publish {folder}/empty.bundle", 1, "bundle"),
    ("interlock publish {folder}/command", 1, "exec"),
    ("interlock publish {folder}/version", 1, "version"),
    ("interlock publish {folder}/absent", 1, "absent.onnx"),
    ("interlock publish {folder}/climbing", 1, "file"),
    ("interlock publish {folder}/foreign", 1, "nobodys"),
    ("interlock publish {folder}/no-onnx", 1, "model.onnx"),
    ("interlock publish {folder}/no-golden", 1, "golden"),
    ("interlock publish {folder}/good --server http://{dead}", 3, "{dead}"),
    ("interlock publish {folder}/good --server gopher://x", 1, "gopher"),
    ("interlock publish {folder}/good --token ilk_wrong", 1, "unauthenticated"),
    ("interlock publish {folder}/good --keys {folder}/absent-keys", 1, "absent-keys"),
    ("interlock bundle show {folder}/noise.bundle", 1, "bundle"),
    ("interlock bundle verify {folder}/empty.bundle", 1, "bundle"),
    ("interlock bundle build {folder}/version", 1, "version"),
    ("interlock bundle export {model} 99.0.0 -o {folder}/x.bundle", 1, "99.0.0"),
    ("interlock rollout start {model} 99.0.0 --to all", 1, "99.0.0"),
    ("interlock rollout start {model} 1.1.0 --to site", 2, "site"),
    ("interlock rollout start {model} 1.1.0 --to site=mars", 1, "no_device"),
    ("interlock rollout show r-0", 1, "r-0"),
    ("interlock rollout abort r-0", 1, "r-0"),
    ("interlock device show nobody", 1, "nobody"),
    ("interlock device show ../../v1/tokens", 1, ""),
    ("interlock device history press-7 --limit 0", 2, "limit"),
    ("interlock device list --label berlin", 2, "berlin"),
    ("interlock keys init --model {model}", 1, ""),
    ("interlock login --server {url} --token wrong", 1, "unauthenticated"),
    ("interlock-agent no-such-command", 2, "no-such-command"),
    ("interlock-agent status --config {folder}/absent.toml", 2, "absent.toml"),
    ("interlock-agent status --config {folder}/bad.toml", 2, "bad.toml"),
    ("interlock-agent status --config {folder}/unknown.toml", 2, "colour"),
    ("interlock-agent status --config {folder}/wrong.toml", 2, "state_dir"),
    ("interlock-agent status --config {folder}/noise", 2, "noise"),
    ("interlock-agent status --config {folder}/away.toml", 3, "agent"),
    ("interlock-agent run --config {folder}/bad.toml", 2, "bad.toml"),
    ("interlock-agent run --config {folder}/away.toml", 2, "enrol"),
    ("interlock-agent run --config {config}", 3, "another agent"),
    ("interlock-agent history nobody --config {config}", 1, "nobody"),
    ("interlock-agent history --limit 0 --config {config}", 2, "limit"),
    ("interlock-agent verdict nobody --config {config}", 1, "nobody"),
    ("interlock-agent verdict {model} --generation 9999 --config {config}", 1, "verdict"),
    ("interlock-agent rollback nobody --config {config}", 1, "nobody"),
    ("interlock-agent forgive {zeros} --config {config}", 1, "quarantine"),
    ("interlock-agent install {folder}/absent.bundle --config {config}", 1, "absent.bundle"),
    ("interlock-agent install {folder} --config {config}", 1, ""),
    ("interlock-agent install {folder}/noise.bundle --config {config}", 18, "bundle"),
    ("interlock-agent install {folder}/empty.bundle --config {config}", 14, "bundle"),
    ("interlock-agent install - --config {config}", 14, "bundle"),
    ("interlock-agent install {folder}/noise.bundle --config {folder}/away.toml", 3, "agent"),
    ("interlock bundle export {model} 1.1.0 -o {folder}/x.bundle --valid-for soon", 2, "--valid-for"),
    ("interlock bundle export {model} 1.1.0 -o {folder}/x.bundle --class colour=red", 1, "colour"),
    ("interlock-agent enrol --config {folder}/away.toml", 2, "--token"),
    (
        "interlock-agent enrol --server https://{dead} --token t --root-sha256 {zeros} --config {folder}/away.toml",
        3,
        "{dead}",
    ),
    ("interlock-agent enrol --server {url} --token t --root-sha256 {zeros} --config {folder}/away.toml", 1, "root"),
    (
        "interlock-agent enrol --server ftp://x --token t --root-sha256 {zeros} --config {folder}/away.toml",
        2,
        "https://",
    ),
    ("interlock-host no-such-command", 2, "no-such-command"),
    ("interlock-host run --config {folder}/absent.toml", 2, "absent.toml"),
    ("interlock-host run --config {folder}/bad.toml", 2, "bad.toml"),
    ("interlock-host run --config {folder}/unknown.toml", 2, "colour"),
    ("interlock-host run --config {folder}/host-type.toml", 2, "concurrency"),
    ("interlock-host run --config {folder}/noise", 2, "noise"),
    ("interlock-host status --config {folder}/away-host.toml", 1, "no host"),
    ("interlock-server no-such-command", 2, "no-such-command"),
    ("interlock-server run --listen nowhere", 2, "nowhere"),
    ("interlock-server run --listen 127.0.0.1:99999", 2, "99999"),
    ("interlock-server run --broker http://x", 2, "http"),
    ("interlock-server run --start-spread soon", 2, "soon"),
    ("interlock-server run --plain-listen nowhere", 2, "--plain-listen"),
    ("interlock-server run --certificate-days 0", 2, "--certificate-days"),
    ("interlock-server run --mosquitto-crl crl.pem", 2, "--broker"),
    ("interlock-server run --broker mqtts://x --mosquitto-pid p", 2, "--mosquitto-crl"),
    ("interlock-server run --data {folder}/noise", 1, "noise"),
    ("interlock-server run --log-format xml", 2, "xml"),
)


@pytest.mark.parametrize(("words", "code", "names"), ROWS, ids=[row[0] for row in ROWS])
def test_a_wrong_word_is_one_clear_line(place: Place, words: str, code: int, names: str) -> None:
    done = place.done[words].result() if words in place.done else place.run(words)
    said = done.stderr + done.stdout
    assert "Traceback" not in said
    assert done.returncode == code, said
    assert names.format(dead=place.dead) in said, said
    usage = done.returncode == 2 and ("Usage" in said or "usage" in said)  # the parsers say more, in their own way
    assert usage or len(done.stderr.strip().splitlines()) <= 1, said


def test_after_all_that_nothing_has_changed(place: Place) -> None:
    for one in place.done.values():
        one.result()
    assert state(place.one) == place.before
    assert not (place.folder / "x.bundle").exists()
    assert not (place.folder / "s" / "identity").exists()
    incoming = place.one.device.state / "incoming"
    assert not [path for path in incoming.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("interlock release list --json --token wrong", 1),
        ("interlock device show nobody --json", 1),
        ("interlock-agent verdict nobody --json --config {config}", 1),
        ("interlock-agent install {folder}/noise.bundle --json --config {config}", 18),
    ],
)
def test_a_program_gets_the_error_as_a_document(place: Place, words: str, code: int) -> None:
    done = place.run(words)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == code
    assert error["code"]
    assert error["message"]


@pytest.mark.parametrize("name", ["agent.sock", "h.sock"])
def test_noise_on_a_control_socket_harms_nobody(place: Place, name: str) -> None:
    path = place.one.device.folder / "run" / name
    for noise in (GIBBERISH, b"\0\0\0\2{}", b"\xff\xff\xff\xff", b"\0\0\0\4null", b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(path))
            try:
                sock.sendall(noise)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert place.one.device.ask("status")["units"][MODEL]["phase"] == "confirmed"
    assert place.one.device.host.pid
    for log in ("agent.log", "host.log"):
        assert "Traceback" not in (place.one.device.folder / log).read_text()


def test_no_process_has_written_a_traceback(place: Place) -> None:
    for log in (*place.one.device.folder.glob("*.log"), place.one.world.folder / "server.log"):
        assert "Traceback" not in log.read_text(), log
    assert os.path.exists(place.one.world.data)
