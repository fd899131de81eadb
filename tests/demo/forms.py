"""Other forms of 1.1.0, judged beside the story by the command that installs nothing: in eight bits, and doing the work
twice. What is expected of the first is that it is judged by its figures here, whatever they are."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.demo.table import Report
from tests.rig.fleet import BIN, Device, RigError, run

LIMIT = 1.10  # of the ratio: a form of the same model is there to be no slower
ENDS = (0, 1, 4)  # exit codes: accept, reject, inconclusive
DEADLINE_S = 180.0


class Form(NamedTuple):
    """A bundle, and how large its model is."""

    bundle: Path
    model_bytes: int

    @staticmethod
    def of(folder: Path) -> Form:
        """Built from a release folder, beside it. Raises RigError."""
        bundle = folder.parent / f"{folder.name}.bundle"
        run([str(BIN / "interlock"), "bundle", "build", str(folder), "-o", str(bundle)], os.environ)
        return Form(bundle, (folder / "model.onnx").stat().st_size)


class Forms(NamedTuple):
    """The release itself, and what is made of it."""

    whole: Form
    eight_bits: Form
    twofold: Form


@dataclass(frozen=True)
class Said:
    """What the gate said of one, and how long the command took."""

    verdict: dict[str, Any]
    seconds: float

    @property
    def checks(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return {check["check"]: check for stage in self.verdict["stages"] for check in stage["checks"]}

    def ratio(self, scale: str) -> str:
        """With its interval, for people."""
        found = self.checks[f"latency_ratio_{scale}"]
        return f"{scale} ratio {found['measured']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"

    @property
    def ending(self) -> str:
        """For people."""
        return f"{self.verdict['outcome']} ({self.verdict['reason']}) after {self.seconds:.0f} s"


class Judging:
    """Both, one after the other, on a thread."""

    def __init__(self, device: Device, forms: Forms) -> None:
        self._device, self._forms = device, forms
        self._process: subprocess.Popen[str] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._eight_bits = self._pool.submit(self._judge, forms.eight_bits.bundle)
        self._twofold = self._pool.submit(self._judge, forms.twofold.bundle)

    def stop(self) -> None:
        """End what is not done yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.terminate()

    def _judge(self, bundle: Path) -> Said:
        began = time.monotonic()
        command = [str(BIN / "interlock-agent"), "gate", str(bundle), "--against", str(self._forms.whole.bundle)]
        command += ["--dry-run", "--json", "--config", str(self._device.config)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = self._process.communicate()
        if self._process.returncode not in ENDS:
            raise RigError(f"no verdict of {bundle.name}: exit code {self._process.returncode}\n{out}{err}")
        return Said(json.loads(out)["verdict"], time.monotonic() - began)

    def show(self, report: Report) -> None:
        """Wait for both; their rows."""
        with report.step("5 · Smaller is not faster: judged on a dry run meanwhile"):
            report.expect("5 in eight bits", "judged by what it costs on this machine", self._show_eight_bits)
            report.expect("5 twice the work, same answers", "rejected as too slow", self._show_twofold)

    def _show_eight_bits(self) -> tuple[bool, str]:
        said = _result(self._eight_bits)
        share = said.checks["parity_top_k"]["measured"]
        times = self._forms.whole.model_bytes / self._forms.eight_bits.model_bytes
        slow = any(said.checks[f"latency_ratio_{scale}"]["low"] > LIMIT for scale in ("work", "wall"))
        good = said.checks["parity_top_k"]["outcome"] == "pass" and (said.verdict["reason"] == "too_slow") is slow
        items = said.checks["accuracy"]["detail"]["items"]
        same = f"same best class {share:.1%} of {items}"
        figures = f"{times:.1f} × smaller, {same}, {said.ratio('work')}, {said.ratio('wall')}"
        return good, f"{figures}: {said.ending}"

    def _show_twofold(self) -> tuple[bool, str]:
        said = _result(self._twofold)
        return said.verdict["reason"] == "too_slow", f"{said.ratio('work')}, {said.ratio('wall')}: {said.ending}"


def _result(judged: Future[Said]) -> Said:
    return judged.result(timeout=DEADLINE_S)
