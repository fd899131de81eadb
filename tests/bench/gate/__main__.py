"""`python -m tests.bench.gate`: record what is missing, then judge. `record`, `judge`, `slice`: one of them alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bench import result
from tests.bench.gate import figures, judge, record, traces
from tests.bench.gate.load import LOADS

FOLDER = Path("bench-results") / "gate-traces"
SCRATCH = Path(".bench") / "gate"
MINUTES = 15
VERDICTS = 5000
SLICE_PAIRS = 300


def judged(folder: Path, verdicts: int) -> bool:
    """Judge every load that is recorded; print and write; whether all targets are met."""
    found: list[result.Figure] = []
    for kind in LOADS:
        parts = record.parts(folder, kind)
        if not parts:
            sys.exit(f"{folder}: nothing is recorded of {kind}; run `record` first")
        trace = traces.read(parts)
        print(f"{kind}: {len(trace['same'])} pairs a cell, {verdicts} verdicts a cell …", flush=True)
        found += figures.of_load(kind, judge.tallies(trace, verdicts, seed=1))
    about = (judge.__doc__ or "").strip()
    print(f"  {result.write('gate', found, about)}")
    result.show({"gate": found})
    return all(figure.met is not False for figure in found)


def main() -> int:
    """Exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser("python -m tests.bench.gate", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=("record", "judge", "slice"), help="default: record, then judge")
    parser.add_argument("--minutes", type=int, default=MINUTES, help=f"of each load (default: {MINUTES})")
    parser.add_argument("--verdicts", type=int, default=VERDICTS, help=f"a cell (default: {VERDICTS})")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"of the recordings (default: {FOLDER})")
    chosen = parser.parse_args()
    if chosen.verb in (None, "record"):
        record.record(chosen.folder, SCRATCH.resolve(), chosen.minutes)
    if chosen.verb == "slice":
        for kind in LOADS:
            traces.write(traces.COMMITTED / f"{kind}.npz", traces.cut(record.parts(chosen.folder, kind), SLICE_PAIRS))
    return 0 if chosen.verb in ("record", "slice") or judged(chosen.folder, chosen.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
