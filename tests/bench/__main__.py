"""`python -m tests.bench [NAME …]`: all benchmarks but those with a verb of their own (gate, host), or those named.
Exits with 1 when a target is missed."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import fetch, health, result
from tests.bench.result import Figure

FOLDER = Path(".bench")

BENCHES: dict[str, Callable[[Path, float], list[Figure]]] = {"fetch": fetch.run, "health": health.run}


def main() -> int:
    """Run, write, print."""
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"one of {', '.join(BENCHES)}; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="a fraction of the full size, for a quick look")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.name if name not in BENCHES]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    results: dict[str, list[Figure]] = {}
    for name in chosen.name or list(BENCHES):
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"{name} …", flush=True)
        try:
            results[name] = BENCHES[name](folder.resolve(), chosen.scale)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        about = (sys.modules[BENCHES[name].__module__].__doc__ or "").strip()
        print(f"  {result.write(name, results[name], about)}", flush=True)
    result.show(results)
    missed = [figure.name for figures in results.values() for figure in figures if figure.met is False]
    if missed:
        print(f"targets missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
