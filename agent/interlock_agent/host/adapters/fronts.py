"""Front processes and the sockets that they listen on.

Rules of the file:
- The host owns the listening sockets: a front that dies is followed by another on the same one, and clients that
  connect meanwhile wait in the kernel's queue.
- The last order is repeated to a new front. What a front reports (a lost worker, figures) goes to the engine in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interlock_agent.host.children import Child, child_environment
from interlock_agent.host.listeners import Listeners, check, check_rpc, limit_file
from interlock_agent.host.messages import Promoted, from_fields
from interlock_agent.host.ports import Upstream

log = logging.getLogger("interlock.host")

SETTLE_S = 1.0  # for a front to say that it has said everything
SWITCH_S = 25.0  # for a front to take an order: it gives up two workers that hang before; one that does not is replaced
RESTART_PAUSE_S = 0.05  # a front that cannot start is not started in a tight loop
OPTIONS = ("access", "grpc_listen", "queue", "revoked")  # what of a unit's options is the front's


def _of_front(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in OPTIONS if options.get(name)}


@dataclass(eq=False)
class Front:
    """One unit's front, across its processes."""

    unit: str
    listener: socket.socket
    address: str
    limits: dict[str, Any]
    options: dict[str, Any]  # those of OPTIONS that are set
    child: Child | None = None
    order: dict[str, Any] = field(default_factory=dict)
    regions: list[dict[str, Any]] = field(default_factory=list)  # memory that applications registered
    waiting: dict[tuple[int, str], asyncio.Future[Any]] = field(default_factory=dict)
    number: int = 0
    up: asyncio.Event = field(default_factory=asyncio.Event)
    may_start: asyncio.Event = field(default_factory=asyncio.Event)  # not while it moves to another address

    def answers_nothing(self) -> None:
        """Its process has ended: what was asked of it gets None."""
        for future in self.waiting.values():
            if not future.done():
                future.set_result(None)
        self.waiting.clear()


class ProcessFronts:
    """`ports.Fronts` as processes. `connections` tells how many requests a worker takes at once."""

    def __init__(
        self,
        run: Path,
        packages: Path,
        path_of: Callable[[str], tuple[str, int]],
        limits: dict[str, Any],
        lost: Callable[[str, str], Awaitable[None]],
        counted: Callable[[str, str, dict[str, Any]], None],
        listeners: Listeners,
    ) -> None:
        self._records, self._packages, self._path_of, self._limits = run / "children", packages, path_of, limits
        self._lost, self._counted, self._listeners = lost, counted, listeners
        self._fronts: dict[str, Front] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reports: set[asyncio.Task[None]] = set()

    async def check(self, unit: str, options: dict[str, Any]) -> None:
        """As `ports.Fronts`. An address of gRPC that cannot be had at a start of the host is no reason not to serve:
        the front tries again, and says so in the log."""
        rpc, front = options.get("grpc_listen", ""), self._fronts.get(unit)
        if rpc:
            free = front is None or rpc != front.options.get("grpc_listen")
            access = options.get("access") or {}
            await asyncio.get_running_loop().run_in_executor(None, check_rpc, rpc, access, free)

    async def open(self, unit: str, listen: str, options: dict[str, Any]) -> str:
        """Listen, start the front. Raises OSError, ValueError."""
        loop, options = asyncio.get_running_loop(), _of_front(options)
        access = options.get("access", {})
        listener, address = await loop.run_in_executor(None, lambda: self._listeners.open(unit, listen, access))
        front = Front(unit, listener, address, self._limits, options)
        front.may_start.set()
        self._fronts[unit] = front
        task = loop.create_task(self._keep(front))
        self._tasks.add(task)
        await front.up.wait()
        return address

    async def limit(self, unit: str, options: dict[str, Any]) -> None:
        """Other settings: another front takes over, on the same socket; open connections end."""
        front, options = self._fronts[unit], _of_front(options)
        if front.options == options:
            return
        access = options.get("access", {})
        check(front.address, access)
        await asyncio.get_running_loop().run_in_executor(None, limit_file, front.listener, access)
        front.options = options
        if front.child is not None:
            front.child.end()

    async def move(self, unit: str, listen: str, access: dict[str, Any]) -> str:
        """Listen on another address, with which the former one may collide; the address. Open connections end. Raises
        OSError, ValueError; then it is as it was."""
        front, loop = self._fronts[unit], asyncio.get_running_loop()
        check(listen, access)
        if front.may_start.is_set():
            await front.up.wait()
        front.may_start.clear()
        if front.child is not None:
            front.child.end()
            await asyncio.shield(front.child.ended)

        def reopen(listen: str, access: dict[str, Any]) -> tuple[socket.socket, str]:
            self._listeners.close(unit, front.listener)
            return self._listeners.open(unit, listen, access)

        try:
            front.listener, front.address = await loop.run_in_executor(None, reopen, listen, access)
            front.options = {**front.options, "access": access}
        except (OSError, ValueError):
            front.listener, front.address = await loop.run_in_executor(
                None, reopen, front.address, front.options.get("access", {})
            )
            raise
        finally:
            if front.listener.fileno() >= 0:
                front.may_start.set()
        return front.address

    async def _keep(self, front: Front) -> None:
        """A front process, always."""
        command = [sys.executable, "-m", "interlock_agent.host.front", "{control}", "{parent}"]
        while True:
            await front.may_start.wait()
            try:
                child = await Child.start(
                    [*command, str(front.listener.fileno())],
                    self._records,
                    child_environment(self._packages),
                    pass_fds=(front.listener.fileno(),),
                    on_line=lambda line: log.info("unit=%s front stderr=%r", front.unit, line),
                )
            except OSError as failure:
                log.error("unit=%s the front does not start: %s", front.unit, failure)
                await asyncio.sleep(RESTART_PAUSE_S)
                continue
            child.send(
                {
                    "setup": {
                        "unit": front.unit,
                        "limits": front.limits,
                        "regions": front.regions,
                        **front.options,
                    }
                }
            )
            if front.order:
                front.number += 1
                child.send({"n": front.number, "serve": {**front.order, "drain_s": 0.0}})
            front.child = child
            front.up.set()
            try:
                await self._listen(front, child)
            finally:
                child.end()
            front.child = None
            front.up.clear()
            ended = await asyncio.shield(child.ended)
            front.answers_nothing()
            log.error("unit=%s front ended (%s); starting another: %s", front.unit, ended, child.last_words())
            await asyncio.sleep(RESTART_PAUSE_S)

    async def _listen(self, front: Front, child: Child) -> None:
        while True:
            try:
                said = await child.read()
            except (EOFError, OSError, ValueError):
                return
            if "lost" in said:
                task = asyncio.ensure_future(self._lost(said["lost"]["worker"], said["lost"]["reason"]))
                self._reports.add(task)
                task.add_done_callback(self._reports.discard)
            elif "counters" in said:
                self._counted(front.unit, said["counters"]["worker"], said["counters"]["counters"])
            elif "regions" in said:
                front.regions = said["regions"]
            elif "re" in said:
                for kind in ("switched", "drained", "settled", "stopped"):
                    future = front.waiting.pop((said["re"], kind), None) if kind in said else None
                    if future and not future.done():
                        future.set_result(said[kind])

    def _ask(self, front: Front, question: dict[str, Any], *kinds: str) -> list[asyncio.Future[Any]]:
        """Send with a number; a future for each kind of answer (None when the front dies before)."""
        front.number += 1
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in kinds]
        for kind, future in zip(kinds, futures, strict=True):
            front.waiting[front.number, kind] = future
        assert front.child is not None
        front.child.send({"n": front.number, **question})
        return futures

    async def serve(
        self,
        unit: str,
        live: Upstream | None,
        standby: Upstream | None,
        drain_s: float,
        wait_s: float = 0.0,
        expected_s: float = 0.0,
    ) -> Awaitable[Promoted]:
        """Switch; what is returned is awaited for the end of the former one's requests."""
        front = self._fronts[unit]
        front.order = {"live": self._document(live), "standby": self._document(standby)}
        if live is None:
            front.order |= {"wait_s": wait_s, "expected_s": expected_s}
        if front.child is None:  # the next one begins with this order
            return _nothing()
        switched, drained = self._ask(front, {"serve": {**front.order, "drain_s": drain_s}}, "switched", "drained")
        try:
            await asyncio.wait_for(asyncio.shield(switched), SWITCH_S)
        except asyncio.TimeoutError:
            log.error("unit=%s the front does not answer; it is replaced", unit)
            front.child.kill()  # the next one gets the order

        async def end() -> Promoted:
            figures = await asyncio.shield(drained)
            return from_fields(Promoted, figures) if figures else Promoted(0, 0, 0.0)

        return asyncio.get_running_loop().create_task(end())

    def _document(self, upstream: Upstream | None) -> dict[str, Any] | None:
        if upstream is None:
            return None
        path, connections = self._path_of(upstream.worker)
        return {**asdict(upstream), "path": path, "connections": connections}

    async def settle(self, unit: str) -> None:
        """Everything the front knew has been handed to the engine."""
        front = self._fronts[unit]
        if front.child is None:
            return
        (settled,) = self._ask(front, {"settle": True}, "settled")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(settled, SETTLE_S)
        if self._reports:
            await asyncio.wait(set(self._reports), timeout=SETTLE_S)

    async def close(self, drain_s: float) -> None:
        """Accept no more, let requests end for a while, end the processes."""
        asked = [
            f for front in self._fronts.values() if front.child for f in self._ask(front, {"stop": drain_s}, "stopped")
        ]
        if asked:
            await asyncio.wait(asked, timeout=drain_s + 1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        children = [front.child for front in self._fronts.values() if front.child]
        for child in children:
            child.end()
        await asyncio.gather(*(asyncio.shield(child.ended) for child in children))
        for front in self._fronts.values():
            # A worker that died at the same time may have a switch under way, which must not hold the end up.
            front.child = None
            front.answers_nothing()
            front.listener.close()


def _nothing() -> asyncio.Future[Promoted]:
    done: asyncio.Future[Promoted] = asyncio.get_running_loop().create_future()
    done.set_result(Promoted(0, 0, 0.0))
    return done
