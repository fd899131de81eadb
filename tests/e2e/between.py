"""Stands between agent and host on their socket: an order can be stopped on its way, its answer too, or be refused.

That is how a test gets a unit into exactly one phase: while `promote` is on its way the unit is switching, while
`confirm` is, it is confirming, and so on; nothing depends on time.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct(">I")
Frame = dict[str, Any]
DEADLINE_S = 60.0


def frame(document: Frame) -> bytes:
    """The bytes of a frame."""
    body = json.dumps(document).encode()
    return _LENGTH.pack(len(body)) + body


def read(sock: socket.socket) -> Frame | None:
    """The next frame; None at the end."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = sock.recv(size - len(data))
            if not piece:
                return b""
            data += piece
        return data

    head = exactly(4)
    if not head:
        return None
    body = exactly(_LENGTH.unpack(head)[0])
    return dict(json.loads(body)) if body else None


class Stop:
    """An order that is stopped. `reached`: it is here; `go`: it may pass."""

    def __init__(self, op: str, answer: bool, matches: Callable[[Frame], bool]) -> None:
        self.op, self.answer, self._matches = op, answer, matches
        self.reached, self.go = threading.Event(), threading.Event()
        self.orders: list[Frame] = []

    def takes(self, order: Frame) -> bool:
        """Whether this order is meant."""
        return order.get("op") == self.op and self._matches(order)

    def wait(self) -> Frame:
        """Until the order is here; the order."""
        assert self.reached.wait(DEADLINE_S), f"no order {self.op} came within {DEADLINE_S} s"
        return self.orders[0]


class _Line:
    """One connection of an agent."""

    def __init__(self, agent: socket.socket, host: socket.socket) -> None:
        self.agent, self.host = agent, host
        self.agent_lock, self.host_lock = threading.Lock(), threading.Lock()
        self.asked: dict[int, Frame] = {}

    def to_agent(self, document: Frame) -> None:
        with self.agent_lock, contextlib.suppress(OSError):
            self.agent.sendall(frame(document))

    def to_host(self, document: Frame) -> None:
        with self.host_lock, contextlib.suppress(OSError):
            self.host.sendall(frame(document))

    def end(self) -> None:
        for one in (self.agent, self.host):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Between:
    """Listens where the agent looks for the host; the host listens at `target`."""

    def __init__(self, path: Path, target: Path) -> None:
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._stops: list[Stop] = []
        self._failures: list[tuple[str, str, Callable[[Frame], bool]]] = []
        self._lock = threading.Lock()
        self.refused: list[Frame] = []  # orders that were answered with an error here
        self.change_hello: Callable[[Frame], Frame] | None = None  # of the host, on its way to the agent
        self.change_answer: Callable[[Frame, Frame], Frame] | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextlib.contextmanager
    def stop(
        self, op: str, *, answer: bool = False, matches: Callable[[Frame], bool] = lambda order: True
    ) -> Iterator[Stop]:
        """Stop every such order (or its answer), until `go` is set or the block is left."""
        stop = Stop(op, answer, matches)
        with self._lock:
            self._stops.append(stop)
        try:
            yield stop
        finally:
            with self._lock:
                self._stops.remove(stop)
            stop.go.set()

    def fail(self, op: str, code: str, times: int = 1, matches: Callable[[Frame], bool] = lambda order: True) -> None:
        """The next such orders are refused with that code; the host never sees them."""
        with self._lock:
            self._failures += [(op, code, matches)] * times

    def _accept(self) -> None:
        while True:
            try:
                agent, _ = self._listener.accept()
            except OSError:
                return
            host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                host.connect(str(self._target))
            except OSError:
                agent.close()
                host.close()
                continue
            line = _Line(agent, host)
            threading.Thread(target=self._orders, args=(line,), daemon=True).start()
            threading.Thread(target=self._answers, args=(line,), daemon=True).start()

    def _orders(self, line: _Line) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (order := read(line.agent)) is not None:
                self._order(line, order)
        line.end()
        line.agent.close()

    def _order(self, line: _Line, order: Frame) -> None:
        code = self._failure(order)
        if code:
            self.refused.append(order)
            line.to_agent({"id": order["id"], "error": {"code": code, "message": "refused on the way"}})
            return
        if "id" in order:
            line.asked[int(order["id"])] = order
        self._stopped(order, answer=False, then=lambda: line.to_host(order))

    def _answers(self, line: _Line) -> None:
        first = True
        with contextlib.suppress(OSError, ValueError):
            while (answer := read(line.host)) is not None:
                if first and self.change_hello is not None:
                    answer = self.change_hello(answer)
                first = False
                order = line.asked.pop(int(answer.get("id", 0)), {})
                if self.change_answer is not None:
                    answer = self.change_answer(order, answer)
                self._stopped(order, answer=True, then=lambda answer=answer: line.to_agent(answer))  # type: ignore[misc]
        line.end()
        line.host.close()

    def _failure(self, order: Frame) -> str:
        with self._lock:
            for one in self._failures:
                if order.get("op") == one[0] and one[2](order):
                    self._failures.remove(one)
                    return one[1]
        return ""

    def _stopped(self, order: Frame, *, answer: bool, then: Callable[[], None]) -> None:
        with self._lock:
            stop = next((one for one in self._stops if one.answer == answer and one.takes(order)), None)
        if stop is None:
            then()
            return
        stop.orders.append(order)
        stop.reached.set()

        def later() -> None:
            stop.go.wait()
            then()

        threading.Thread(target=later, daemon=True).start()
