"""`python -m tests.fuzz`: every target in turn, by hypothesis and, where it is there, by atheris.

Bounded by `--minutes`. What was found is written to `tests/vectors/TARGET/`, where `make test` runs it for ever after,
and into `bench-results/fuzz.json`. Atheris keeps what it has learnt in `.fuzz/`. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interlock_shared import canonical
from tests.bench.result import FOLDER, commit, machine
from tests.fuzz import guessing
from tests.fuzz.targets import MAX_BYTES, believed, targets

VECTORS = Path(__file__).parents[1] / "vectors"
CORPUS = Path(".fuzz")
EXAMPLES = 60  # of hypothesis at a time
INPUT_S = 10  # an input that takes longer is a finding
STARTS_S = 120  # of a process, instrumented, on a busy machine
_EXECUTED = re.compile(r"number_of_executed_units:\s*(\d+)")


@dataclass
class Tally:
    """What became of a target."""

    guessed: int = 0
    accepted: int = 0
    executed: int = 0  # by atheris
    late: int = 0  # runs of atheris that did not end in time
    found: list[dict[str, Any]] = field(default_factory=list)

    def finding(self, name: str, data: bytes, by: str, error: str) -> None:
        """Keep it as a vector."""
        folder = VECTORS / name
        folder.mkdir(parents=True, exist_ok=True)
        vector = folder / canonical.sha256(data)[:16]
        vector.write_bytes(data)
        self.found.append({"by": by, "vector": f"{name}/{vector.name}", "error": error[:2000]})
        print(f"FOUND {name} by {by}: {error[:300]}; tests/vectors/{name}/{vector.name}", flush=True)


def guess(name: str, tally: Tally, seconds: float) -> None:
    """Hypothesis, for so long or until it finds something."""
    end, seed = time.monotonic() + seconds, tally.guessed
    while time.monotonic() < end:
        tried, accepted, finding = guessing.guess(targets()[name], EXAMPLES, seed := seed + 1)
        tally.guessed, tally.accepted = tally.guessed + tried, tally.accepted + accepted
        if finding is not None:
            tally.finding(name, finding[0], "hypothesis", f"{type(finding[1]).__name__}: {finding[1]}")
            return


def _run(command: list[str], timeout_s: float) -> tuple[int | None, str]:
    """(exit code, what it said); None where the machine was too busy: an input that hangs ends by itself."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def cover(name: str, tally: Tally, seconds: float) -> None:
    """Atheris, in a process of its own."""
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets()[name].seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    with tempfile.TemporaryDirectory() as folder:
        options = (f"-max_total_time={max(1, round(seconds))}", f"-timeout={INPUT_S}", "-rss_limit_mb=2048")
        command = [
            *(sys.executable, "-m", "tests.fuzz.coverage_guided", name, *options, f"-max_len={MAX_BYTES}"),
            *("-print_final_stats=1", f"-artifact_prefix={folder}/", str(corpus)),
        ]
        code, said = _run(command, seconds + INPUT_S + STARTS_S)
        executed = _EXECUTED.search(said)
        tally.executed += int(executed[1]) if executed else 0
        left = sorted(Path(folder).iterdir())
        for artifact in left:
            tally.finding(name, artifact.read_bytes(), "atheris", said[-1500:])
        tally.late += code is None
        if code and not left:
            tally.finding(name, b"", "atheris", f"ended with {code}: {said[-1500:]}")


def main() -> int:
    """Run for so long."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--target", action="append", choices=sorted(targets()), help="only this; repeatable")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    names = chosen.target or sorted(targets())
    guided = importlib.util.find_spec("atheris") is not None
    if not guided:
        print("ATHERIS IS NOT THERE (no wheel for this Python, or no index): hypothesis alone", flush=True)
    for name in names:
        if not all(believed(targets()[name], seed) for seed in targets()[name].seeds):
            raise SystemExit(f"{name}: its own seed is refused, nothing behind it would be reached")
    began, tallies = time.monotonic(), {name: Tally() for name in names}
    end, starts_s = began + chosen.minutes * 60, 3.0
    for place, (name, tally) in enumerate(tallies.items()):
        slice_s = max(0.0, end - time.monotonic()) / (len(names) - place)
        guess(name, tally, slice_s / 2 if guided else slice_s)
        if guided:
            asked, at = max(2.0, slice_s / 2 - starts_s), time.monotonic()
            cover(name, tally, asked)
            starts_s = max(0.0, time.monotonic() - at - asked)  # the next one takes about as long
        print(
            f"{time.monotonic() - began:6.0f} s  {name}: {tally.guessed} guessed, {tally.executed} covered", flush=True
        )
    found = sum(len(tally.found) for tally in tallies.values())
    FOLDER.mkdir(exist_ok=True)
    result = {
        "schema": "interlock.fuzz/1",
        "commit": commit(),
        "machine": machine(),
        "seconds": round(time.monotonic() - began, 1),
        "engines": ["hypothesis", *(["atheris"] if guided else [])],
        "targets": {name: asdict(tally) for name, tally in tallies.items()},
    }
    (FOLDER / "fuzz.json").write_text(json.dumps(result, indent=2) + "\n")
    total = sum(tally.guessed + tally.executed for tally in tallies.values())
    print(f"{len(names)} targets, {total} inputs, found {found}; {FOLDER}/fuzz.json")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
