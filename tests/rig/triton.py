"""A real Triton Inference Server for tests: the one that the wheel of PyTriton carries, with its Python backend.

Rules of the file:
- Two wheels are fetched by name, version and SHA-256, unpacked into `.models/`, never installed: the server, and the
  numpy 1 that its Python backend was built against.
- Where they cannot be had, or do not run, a test is skipped, and says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import onnxruntime
import pytest

from tests.models.fetch import CACHE, OFFLINE

WHEELS = {
    "nvidia-pytriton==0.7.0": "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    "numpy==1.26.4": "666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5",
}
PYTHON = (3, 11)  # of the numpy above; the server has a stub for it
FOLDER = CACHE / "triton-2.51"
DEADLINE_S = 60.0

CONFIG = """\
backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
"""
# How an ONNX model gets into the Python backend. PATHS are the numpy above, and ONNX Runtime of this Python. The model
# is refused when a file REFUSED-VERSION is there.
MODEL = """\
import os, sys
sys.path[:0] = PATHS
import onnxruntime
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        version = args["model_version"]
        if os.path.exists(REFUSED + "-" + version):
            raise ValueError("this one is not for me")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = os.path.join(args["model_repository"], version, "model.onnx")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(pb.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]

    def answer(self, x):
        return pb.InferenceResponse([pb.Tensor("y", self.session.run(None, {"x": x})[0])])
"""


def unpacked() -> Path:
    """The folder with both. Skips where they cannot be had."""
    if sys.version_info[:2] != PYTHON or os.uname().machine != "x86_64":
        pytest.skip(f"Triton's wheel is tried with Python {PYTHON} on x86_64")
    if (FOLDER / "whole").exists():
        return FOLDER
    if os.environ.get(OFFLINE) == "1":
        pytest.skip(f"Triton is not in {FOLDER}, and {OFFLINE}=1 forbids to fetch it")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetching-") as temporary:
        for wheel, digest in WHEELS.items():
            _unpack(wheel, digest, Path(temporary), Path(temporary) / "unpacked")
        folder = Path(temporary) / "unpacked"
        stub = folder / "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub"
        shutil.copy(stub, folder / "pytriton/tritonserver/backends/python")
        for name in ("bin/tritonserver", "backends/python/triton_python_backend_stub"):
            (folder / "pytriton/tritonserver" / name).chmod(0o755)
        (folder / "whole").touch()
        shutil.rmtree(FOLDER, ignore_errors=True)
        folder.replace(FOLDER)
    return FOLDER


def _unpack(wheel: str, digest: str, temporary: Path, into: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--retries", "2", "--dest", str(temporary), wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{wheel} could not be fetched from the package index: {done.stderr[-500:]}")
    (file,) = temporary.glob(f"{wheel.partition('=')[0].replace('-', '_')}-*.whl")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found == digest, f"{file.name}: SHA-256 {found}, not {digest}"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(into)
    file.unlink()


class TritonServer:
    """The server's process on a repository of its own. Everything blocks."""

    def __init__(self, folder: Path, port: int) -> None:
        self._wheel = unpacked()
        self.folder, self.port, self.url = folder, port, f"http://127.0.0.1:{port}"
        self.repository, self.template = folder / "models", folder / "template"
        for made in (self.repository, self.template):
            made.mkdir()
        (self.template / "config.pbtxt").write_text(CONFIG)
        runtime = Path(str(onnxruntime.__file__)).parent.parent
        paths = [str(self._wheel), str(runtime)]
        text = MODEL.replace("PATHS", repr(paths)).replace("REFUSED", repr(str(folder / "refused")))
        (self.template / "model.py").write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers. Skips where the program does not run at all."""
        home = self._wheel / "pytriton" / "tritonserver"
        command = [str(home / "bin" / "tritonserver"), f"--backend-directory={home / 'backends'}"]
        command += ["--model-control-mode=explicit", f"--model-repository={self.repository}", "--exit-timeout-secs=1"]
        command += ["--http-address=127.0.0.1", f"--http-port={self.port}", "--allow-grpc=0", "--allow-metrics=0"]
        command += ["--http-thread-count=4", f"--backend-config=python,shm-region-prefix-name=il{self.port}"]
        environment = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(self._wheel / "nvidia_pytriton.libs")}
        with (self.folder / "triton.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + DEADLINE_S
        while self.ask("/v2/health/live")[0] != 200:
            if self._process.poll() is not None:
                pytest.skip(f"tritonserver does not run here: {self.log()[-500:]}")
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def stop(self) -> None:
        """As a person does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            for left in Path("/dev/shm").glob(f"il{self.port}*"):
                left.unlink(missing_ok=True)

    def log(self) -> str:
        """What it has said."""
        return (self.folder / "triton.log").read_text(errors="replace")

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status (0: nobody is there) and document."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.url + path, data), timeout=DEADLINE_S) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except URLError as failed:
            return getattr(failed, "code", 0), {}
        except OSError:
            return 0, {}

    def infer(self, model: str) -> tuple[int, Any]:
        """Status, and what it makes of 1: the scale of the release that answers."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 1.0, 1.0, 1.0]}
        status, said = self.ask(f"/v2/models/{model}/infer", {"inputs": [tensor]})
        return status, said["outputs"][0]["data"][0] if status == 200 else None

    def settings(self, **more: Any) -> dict[str, Any]:
        """Of a unit, as the host takes them."""
        given = {"url": self.url, "repository": str(self.repository), "template": str(self.template), "name": ""}
        return {"hook": {"triton": {**given, "request": "", "answer_ms_max": 0.0, **more}, "timeout_s": DEADLINE_S}}
