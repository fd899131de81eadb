"""Live requests through the whole story: busy and idle keep-alive connections, answers counted by release.

A failure is anything but a good answer with the right shape and finite numbers. Connections are kept open on purpose:
a swap that works only for new connections would show here.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

TIMEOUT_S = 30.0


@dataclass
class Tally:
    """What the clients saw."""

    sent: int = 0
    failed: int = 0
    non_finite: int = 0
    releases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    good: list[tuple[float, str]] = field(default_factory=list)  # (monotonic time of the answer, release)


class Traffic:
    """Clients on threads. `rows`: int32[N,2048] of real files."""

    def __init__(
        self, address: str, model: str, rows: np.ndarray, *, busy: int = 2, idle: int = 2, pause_s: float = 0.05
    ) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port, self._model, self._rows = host, int(port), model, rows
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.tally = Tally()
        pauses = [pause_s] * busy + [1.0] * idle
        self._answered = dict.fromkeys(range(len(pauses)), 0)
        self._threads = [threading.Thread(target=self._client, args=(n, pause)) for n, pause in enumerate(pauses)]

    def start(self) -> None:
        """Start the clients."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> Tally:
        """End them; the tally."""
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S * 2)
        return self.tally

    def take_turns(self, deadline_s: float = TIMEOUT_S) -> None:
        """Wait until every client has an answer to a request that it sent after this call. Raises TimeoutError."""
        with self._lock:
            wanted = {number: count + 2 for number, count in self._answered.items()}  # one may be on its way now
        end = time.monotonic() + deadline_s
        while any(self._answered[number] < count for number, count in wanted.items()):
            if time.monotonic() > end:
                raise TimeoutError("a client has no answer")
            time.sleep(0.02)

    def count(self, release: str) -> int:
        """Answers of a release so far."""
        with self._lock:
            return self.tally.releases[release]

    def first_good_after(self, moment: float) -> float | None:
        """Seconds from `moment` (monotonic) to the next good answer; None when there was none yet."""
        with self._lock:
            after = [at for at, _ in self.tally.good[-5000:] if at >= moment]
        return min(after) - moment if after else None

    def _client(self, number: int, pause: float) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        place = number * 97
        while not self._stop.is_set():
            row = self._rows[place % len(self._rows)]
            place += 1
            try:
                release, finite = self._ask(connection, row)
                problem = "" if finite else "an answer that is not finite"
            except (OSError, http.client.HTTPException, ValueError) as broken:
                release, finite, problem = "", True, f"{type(broken).__name__}: {broken}"
                connection.close()
            with self._lock:
                self.tally.sent += 1
                self._answered[number] += 1
                if problem:
                    self.tally.failed += 1
                    self.tally.failures.append(problem)
                    self.tally.non_finite += not finite
                else:
                    self.tally.releases[release] += 1
                    self.tally.good.append((time.monotonic(), release))
            self._stop.wait(pause)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, row: np.ndarray) -> tuple[str, bool]:
        tensor = {
            "name": "bytes",
            "datatype": "INT32",
            "shape": [1, len(row)],
            "parameters": {"binary_data_size": row.nbytes},
        }
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        connection.request("POST", f"/v2/models/{self._model}/infer", head + row.tobytes(), headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {body[:200]!r}")
        length = int(answer.headers["Inference-Header-Content-Length"])
        document = json.loads(body[:length])
        output = np.frombuffer(body[length:], dtype=np.float32)
        if output.size != int(np.prod(document["outputs"][0]["shape"])):
            raise ValueError("an answer of another shape")
        return str(answer.headers["interlock-release"]), bool(np.isfinite(output).all())
