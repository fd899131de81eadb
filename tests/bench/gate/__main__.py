"""`python -m tests.bench.gate`: record what is missing and tell everything. With a verb one part of it alone: `record`
and `judge` pairs, `live` verdicts, what applications `felt`; `slice` cuts what the tests judge."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.bench import result
from tests.bench.gate import felt, figures, judge, live, record, traces
from tests.bench.gate.load import LOADS

FOLDER = result.FOLDER / "gate-traces"
LIVE_FOLDER = result.FOLDER / "gate-live"
SCRATCH = Path(".bench") / "gate"
MINUTES = 15
VERDICTS = 5000
SLICE_PAIRS = 300
SEED = 1


def _read(folder: Path, kind: str) -> dict[str, traces.Pairs]:
    parts = record.parts(folder, kind)
    if not parts:
        sys.exit(f"{folder}: nothing is recorded of {kind}; run `record` first")
    return traces.read(parts)


def _judged(chosen: argparse.Namespace) -> list[result.Figure]:
    """Every load that is recorded."""
    found: list[result.Figure] = []
    for kind in LOADS:
        trace = _read(chosen.folder, kind)
        print(f"{kind}: {len(trace['same'])} pairs a cell, {chosen.verdicts} verdicts a cell …", flush=True)
        found += figures.of_load(kind, judge.tallies(trace, chosen.verdicts, SEED))
    return found


def _live(chosen: argparse.Namespace) -> list[result.Figure]:
    """With what the traces say beside it, where they are there."""
    live.record(LIVE_FOLDER, SCRATCH.resolve(), chosen.live)
    there = [kind for kind in LOADS if record.parts(chosen.folder, kind)]
    return live.figures(
        LIVE_FOLDER,
        {kind: judge.beside(_read(chosen.folder, kind), live.LIVE, chosen.verdicts, SEED) for kind in there},
    )


def _felt(chosen: argparse.Namespace) -> list[result.Figure]:
    felt.record(LIVE_FOLDER, SCRATCH.resolve(), chosen.rounds)
    return felt.figures(LIVE_FOLDER)


PARTS = {  # verb → name of the result, what it is, its figures
    "judge": ("gate", judge.__doc__, _judged),
    "live": ("gate-live", live.__doc__, _live),
    "felt": ("gate-felt", felt.__doc__, _felt),
}


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench.gate", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=("record", *PARTS, "slice"), help="default: record, then the others")
    parser.add_argument("--minutes", type=int, default=MINUTES, help=f"of pairs under each load (default: {MINUTES})")
    parser.add_argument("--verdicts", type=int, default=VERDICTS, help=f"a cell, on the pairs (default: {VERDICTS})")
    parser.add_argument("--live", type=int, default=live.VERDICTS, help=f"verdicts a cell (default: {live.VERDICTS})")
    parser.add_argument("--rounds", type=int, default=felt.ROUNDS, help=f"that are felt (default: {felt.ROUNDS})")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"of the recorded pairs (default: {FOLDER})")
    return parser.parse_args()


def main() -> int:
    """Exit code 1 when a target is missed."""
    chosen = _chosen()
    if chosen.verb in (None, "record"):
        record.record(chosen.folder, SCRATCH.resolve(), chosen.minutes)
    if chosen.verb == "slice":
        for kind in LOADS:
            traces.write(traces.COMMITTED / f"{kind}.npz", traces.cut(record.parts(chosen.folder, kind), SLICE_PAIRS))
    results: dict[str, list[result.Figure]] = {}
    for verb, (name, about, find) in PARTS.items():
        if chosen.verb in (None, verb):
            results[name] = find(chosen)
            print(f"  {result.write(name, results[name], (about or '').strip())}")
    if results:
        result.show(results)
    return 1 if any(figure.met is False for found in results.values() for figure in found) else 0


if __name__ == "__main__":
    sys.exit(main())
