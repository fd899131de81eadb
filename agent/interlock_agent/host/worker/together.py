"""Several inferences at a time, as many clients would ask for them: a thread each, which takes the next item when it is
done with one.

Rules of the file:
- The clock starts when every thread is there, and stops when the last one is done.
- A failure ends the block: what the others are at is finished, nothing new is begun.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


def measure(infer: Callable[[int], Any], runs: int, threads: int) -> dict[str, Any]:
    """`infer(number)` for all of `runs`; `wall_ns` and `work_ns` (evenly shared) of each, `elapsed_ns` of all. Raises
    what an inference raises."""
    numbers = iter(range(runs))  # `next` is one step of the interpreter: no number is given twice
    wall, ends = [0] * runs, [0] * threads
    failures: list[Exception] = []
    marks: list[tuple[int, int]] = []
    start = threading.Barrier(threads, lambda: marks.append((time.process_time_ns(), time.perf_counter_ns())))

    def client(place: int) -> None:
        try:
            start.wait()
            while not failures:
                number = next(numbers, None)
                if number is None:
                    break
                before = time.perf_counter_ns()
                infer(number)
                wall[number] = time.perf_counter_ns() - before
            ends[place] = time.perf_counter_ns()
        except Exception as failure:  # noqa: BLE001 - told to the host, who decides
            failures.append(failure)

    crew = [threading.Thread(target=client, args=(place,), daemon=True) for place in range(threads)]
    try:
        for one in crew:
            one.start()
    except RuntimeError:  # no more threads: those that wait for it must not wait for ever
        start.abort()
        raise
    for one in crew:
        one.join()
    if failures:
        raise failures[0]
    work_before, began = marks[0]
    work = (time.process_time_ns() - work_before) // runs
    return {"wall_ns": wall, "work_ns": [work] * runs, "elapsed_ns": max(ends) - began}
