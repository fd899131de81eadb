"""`python -m tests.bench.host`: swaps, kills, ways to ask, memory; then a picture of them. With names, only those, and
no picture. Half an hour in all."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.bench import host, result
from tests.bench.host import kills, memory, picture, swaps, ways

PICTURE = Path("docs") / "host.svg"
PARTS = {"swaps": swaps.figures, "kills": kills.figures, "ways": ways.figures, "memory": memory.figures}


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench.host", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of the full size, for a quick look")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.name if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    return chosen


def main() -> int:
    """Exit code 1 when a target is missed."""
    chosen = _chosen()
    figures: list[result.Figure] = []
    for name in chosen.name or PARTS:
        folder = Path(tempfile.mkdtemp(prefix="il-"))  # short: a Unix socket's path has 107 bytes at most
        print(f"{name} …", flush=True)
        try:
            figures += PARTS[name](folder, chosen.scale)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    name = "-".join(["host", *chosen.name])
    path = result.write(name, figures, (host.__doc__ or "").strip())
    result.show({name: figures})
    print(f"  {path}")
    if not chosen.name and chosen.scale == 1.0:
        PICTURE.write_text(picture.svg(json.loads(path.read_text())))
        print(f"  {PICTURE}")
    missed = [figure.name for figure in figures if figure.met is False]
    if missed:
        print(f"targets missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
