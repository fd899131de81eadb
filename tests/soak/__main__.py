"""`python -m tests.soak`: simulation seeds, strikes at every point, and fuzzing of the parsers, at length.

Bounded by `--minutes`, resumable: `.soak/state.json` says where the last run ended, and the next one goes on there.
What was found is in `bench-results/soak.json` with the seed that replays it. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.result import FOLDER, commit, machine
from tests.simulation.every_point import points, strike
from tests.simulation.machine import STRIKES
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.weather import random_run
from tests.soak import fuzz

STATE = Path(".soak/state.json")
SLICE_S = 5.0  # of each kind, in turn
SAY_S = 30.0
FOUND_MAX = 20  # then it is time to look


class Soak:
    """Where it stands: the next seed of each kind, counts, findings."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.next: dict[str, int] = {"seeds": 1000, "strikes": 0, "fuzz": 0, **state.get("next", {})}
        self.counts: dict[str, int] = {"seeds": 0, "strikes": 0, "fuzz": 0, "accepted": 0}
        self.found: list[dict[str, Any]] = []
        self._strikes = [(n, p.number, what) for n in SCENARIOS for p in points(n) for what in STRIKES]

    @property
    def strikes(self) -> int:
        """How many there are in all."""
        return len(self._strikes)

    def one(self, kind: str) -> None:
        """The next run of a kind."""
        number = self.next[kind]
        self.next[kind] += 1
        what: Any = number
        try:
            if kind == "seeds":
                random_run(number)
            elif kind == "strikes":
                what = self._strikes[number % len(self._strikes)]
                strike(*what)
            else:
                name = list(fuzz.PARSERS)[number % len(fuzz.PARSERS)]
                what = [name, number]
                self.counts["accepted"] += fuzz.attack(name, number)
        except Exception as finding:  # noqa: BLE001  # whatever it is, it is what was looked for
            self.found.append({"kind": kind, "replay": what, "error": f"{type(finding).__name__}: {finding}"[:2000]})
            print(f"FOUND {kind} {what}: {type(finding).__name__}: {str(finding)[:300]}", flush=True)
        self.counts[kind] += 1


def turns(end: float) -> Iterator[str]:
    """Kinds in turn, a slice of time each, until the end."""
    while True:
        for kind in ("seeds", "strikes", "fuzz"):
            until = min(time.monotonic() + SLICE_S, end)
            while time.monotonic() < until:
                yield kind
            if time.monotonic() >= end:
                return


def main() -> int:
    """Run for so long."""
    parser = argparse.ArgumentParser("python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--fresh", action="store_true", help="do not go on from the last run")
    chosen = parser.parse_args()
    logging.getLogger("interlock").setLevel(logging.CRITICAL)
    state = json.loads(STATE.read_text()) if STATE.exists() and not chosen.fresh else {}
    soak = Soak(state)
    print(f"{chosen.minutes:g} minutes; from {soak.next}; {soak.strikes} strikes in all", flush=True)
    began = said = time.monotonic()
    for kind in turns(began + chosen.minutes * 60):
        soak.one(kind)
        if len(soak.found) >= FOUND_MAX:
            break
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            print(f"{said - began:6.0f} s  {soak.counts}  found {len(soak.found)}", flush=True)
    STATE.parent.mkdir(exist_ok=True)
    STATE.write_text(json.dumps({"next": soak.next}))
    FOLDER.mkdir(exist_ok=True)
    result = {
        "schema": "interlock.soak/1",
        "commit": commit(),
        "machine": machine(),
        "seconds": round(time.monotonic() - began, 1),
        "counts": soak.counts,
        "strikes_in_all": soak.strikes,
        "next": soak.next,
        "found": soak.found,
    }
    (FOLDER / "soak.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{soak.counts}, found {len(soak.found)}; {FOLDER}/soak.json")
    return 1 if soak.found else 0


if __name__ == "__main__":
    sys.exit(main())
