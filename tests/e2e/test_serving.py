"""What applications see of a device: the public client against its address, the default socket, answers that are no
numbers, a runtime in another Python; and what agent and fetcher need of the memory."""

from __future__ import annotations

import contextlib
import os
import sysconfig
import threading
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from tests.e2e import stopped
from tests.e2e.world import MODEL, Watcher, eventually, watched, world
from tests.host import clients
from tests.rig.fleet import until

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
MAGIC = 77.0


@contextlib.contextmanager
def device(unit: dict[str, object], more: str = "") -> Iterator[Watcher]:
    """A server and one device; nothing rolled out."""
    with world() as made:
        found = watched(made, "press-7", unit)
        with found.device.config.open("a") as config:
            config.write(more)
        with found.web, found.broker:
            found.device.start()
            yield found
            found.between.close()


def peak(pid: int) -> int:
    """VmHWM of a process in bytes; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class Fetchers(threading.Thread):
    """Watches the children of the agent."""

    def __init__(self, agent: int) -> None:
        super().__init__(daemon=True)
        self._agent, self._over = agent, threading.Event()
        self.peak = 0

    def run(self) -> None:
        children = Path(f"/proc/{self._agent}/task/{self._agent}/children")
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                for pid in children.read_text().split():
                    if b"interlock_agent.fetcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        self.peak = max(self.peak, peak(int(pid)))
            time.sleep(0.002)

    def end(self) -> int:
        self._over.set()
        self.join(10)
        return self.peak


def test_triton_s_client_and_the_memory_of_a_rollout() -> None:
    with device({"listen": "127.0.0.1:0"}) as one:
        watch = Fetchers(one.device.agent.pid)
        watch.start()
        version = one.world.first(one.device, padding=24 * MIB)
        fetcher, agent = watch.end(), peak(one.device.agent.pid)
        print(f"VmHWM: agent {agent / MIB:.1f} MiB, fetcher {fetcher / MIB:.1f} MiB")
        assert 0 < agent <= 64 * MIB
        assert 0 < fetcher <= 110 * MIB
        client = tritonclient.http.InferenceServerClient(one.address())
        assert client.is_server_live()
        assert client.is_model_ready(MODEL)
        assert client.get_model_metadata(MODEL)["versions"] == [version]
        x = np.array([[1, 2, 3, 4]], np.float32)
        given = tritonclient.http.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(x, binary_data=True)
        answer = client.infer(MODEL, [given])
        assert np.allclose(answer.as_numpy("y"), x * one.world.scales[version])
        client.close()


def test_without_a_word_of_the_owner_a_model_listens_on_a_unix_socket() -> None:
    with device({}) as one:
        version = one.world.first(one.device)
        address = one.address()
        assert address == f"unix:{one.device.folder}/run/{MODEL}.sock"
        assert stopped.infer(address).release.endswith(version)
        one.device.host.kill()
        one.device.start_host()
        assert stopped.infer(address).release.endswith(version)


def test_a_first_release_that_answers_nan_is_taken_back_and_nothing_serves() -> None:
    """Without a standby the client gets an error, never the answer."""
    with device({"listen": "127.0.0.1:0"}) as one:
        bad = one.world.release(nan_on=MAGIC, trial_s=60.0)
        rollout = one.wish(bad)
        one.reaches("trial")
        reply = stopped.infer(one.address(), MAGIC)
        assert reply.status == 500
        assert "non_finite_output" in reply.json()["error"] or reply.json().get("code") == "non_finite_output"
        assert one.rests(bad)["phase"] == "reverted"
        one.world.server_says(rollout, "reverted")
        unit = until(lambda: (u := one.device.ask("status")["units"][MODEL])["running"] is None and u, "nothing to run")
        assert (unit["confirmed"], unit["reason"]) == (None, "non_finite")
        good = one.world.release()
        one.settles(good, one.wish(good))


def test_an_output_that_may_be_nan_is_served_as_it_is() -> None:
    with device({"listen": "127.0.0.1:0"}) as one:
        allowed = '\n[signature.outputs.y]\nnon_finite = "allowed"\n'
        one.world.first(one.device, nan_on=MAGIC, more=allowed)
        address = one.address()
        reply = stopped.infer(address, MAGIC)
        assert reply.status == 200, reply.body
        assert b"NaN" in reply.body or b"null" in reply.body
        assert stopped.infer(address).status == 200


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A Python with numpy and a runtime, and nothing of ours: the system's on a Jetson."""
    home = tmp_path / "foreign"
    venv.create(home, symlinks=True, with_pip=False)
    site = next(home.glob("lib/python*/site-packages"))
    source = Path(sysconfig.get_paths()["purelib"])
    wanted = ("numpy", "numpy.libs", "onnxruntime", "onnxruntime-*.dist-info", "flatbuffers", "packaging", "google")
    for found in (path for name in wanted for path in source.glob(name)):
        os.symlink(found, site / found.name)
    return home / "bin" / "python"


def test_gate_and_serving_in_another_python(foreign: Path) -> None:
    with device({"listen": "127.0.0.1:0", "worker_python": str(foreign)}) as one:
        one.world.first(one.device)
        with one.traffic() as traffic:
            version = one.world.release()
            one.settles(version, one.wish(version))
            traffic.answered(10)
        verdict = one.device.ask("verdict", unit=MODEL)["verdict"]
        assert verdict["outcome"] == "accept"
        assert verdict["fingerprint"].get("onnxruntime"), verdict["fingerprint"]
        host = one.device.ask("status")["units"][MODEL]["host"]
        for worker in host["workers"]:
            assert Path(f"/proc/{worker['pid']}/cmdline").read_bytes().startswith(str(foreign).encode())
        address = one.address()
        one.device.host.kill()
        one.device.start_host()
        assert stopped.infer(address).release.endswith(version)


def test_a_python_that_is_not_there_is_no_release_s_fault() -> None:
    """It is rejected with the reason, nothing serves, and nothing else breaks."""
    with device({"listen": "127.0.0.1:0", "worker_python": "/nonexistent/python"}) as one:
        version = one.world.release()
        one.wish(version)
        unit = one.rests(version)
        assert unit["phase"] in {"rejected", "failed"}
        assert unit["running"] is None
        assert eventually(lambda: one.device.ask("verdict", unit=MODEL), "a verdict")["verdict"]["outcome"] == "reject"


def test_models_have_addresses_of_their_own() -> None:
    with device({}, '[units.filetype]\nlisten = "127.0.0.1:0"\n') as one:
        one.world.first(one.device)
        assert one.address().startswith("127.0.0.1:")
        assert clients.INFER.split("/")[3] == MODEL
