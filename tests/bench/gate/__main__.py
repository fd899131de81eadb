"""`python -m tests.bench.gate record|judge|live`: the halves of `make bench-gate`, each for itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench.gate import record

FOLDER = Path("bench-results") / "gate-traces"
SCRATCH = Path(".bench") / "gate"
MINUTES = 15


def main() -> None:
    """One verb."""
    parser = argparse.ArgumentParser("python -m tests.bench.gate", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="measure pairs under each load; goes on where it was cut off")
    recording.add_argument("--minutes", type=int, default=MINUTES, help=f"of each load (default: {MINUTES})")
    recording.add_argument("--folder", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    record.record(chosen.folder, SCRATCH.resolve(), chosen.minutes)


if __name__ == "__main__":
    main()
