"""Other work on the machine: `quiet` (none of ours), `steady` (one busy process), `toggling` (two that come and go)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

LOADS = ("quiet", "steady", "toggling")

_BUSY = """
import random, sys, time
import numpy as np
dice = random.Random(int(sys.argv[1]))
matrix = np.ones((256, 256), dtype=np.float32)
while True:
    end = time.monotonic() + (3600.0 if sys.argv[2] == "steady" else dice.uniform(0.2, 2.0))
    while time.monotonic() < end:
        matrix = matrix @ matrix / 256
    if sys.argv[2] == "toggling":
        time.sleep(dice.uniform(0.2, 2.0))
"""


@contextlib.contextmanager
def load(kind: str) -> Iterator[None]:
    """Until the block is left."""
    count = {"quiet": 0, "steady": 1, "toggling": 2}[kind]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", _BUSY, str(seed), kind], env=environment) for seed in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
