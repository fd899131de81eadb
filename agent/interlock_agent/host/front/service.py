"""The front of one model: its clients, its router, and the host's orders over the control stream.

Rules of the file:
- It ends with the host: at the end of the control stream at once, or when the host dies.
- Orders are handled one after the other; a switch is one step between two of the loop's callbacks.
- Figures are reported on change, at most every 100 ms; at once for bad answers and errors. Deaths are reported at once,
  in the order in which they were seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from interlock_agent import __version__
from interlock_agent.host.front import routes
from interlock_agent.host.front.bodies import Bodies
from interlock_agent.host.front.client import HEAD_TIMEOUT_S, Client
from interlock_agent.host.front.http import Request
from interlock_agent.host.front.memory import Memory, Refused
from interlock_agent.host.front.router import Draining, Limits, Router
from interlock_agent.host.front.sharing import Channel
from interlock_agent.host.front.upstream import Exchange, Upstream
from interlock_agent.host.wire import (
    LENGTH,
    MAX_BODY_BYTES,
    MAX_DOCUMENT_BYTES,
    NO_HEADER,
    allow_descriptors,
    decode,
    encode,
)

if TYPE_CHECKING:
    from interlock_agent.host.front.access import Access
    from interlock_agent.host.front.rpc import Rpc

REPORT_EVERY_S = 0.1
SWEEP_EVERY_S = 0.5
ACCESS_EVERY_S = 1.0  # how soon a renewed certificate, or a changed file of tokens, holds
RPC_EVERY_S = 1.0  # where its address cannot be had
MAX_CLIENTS = 1024
IDLE_S = 60.0  # of a client that makes place for another where there are as many as may be
BACKLOG = 1024
SCRATCH_BYTES = 64 * 1024  # read at once; a large body's rest goes where it belongs


class Service:
    """One unit's front."""

    def __init__(self, control: socket.socket, listener: socket.socket) -> None:
        self._control, self._listener = control, listener
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._clients: set[Client] = set()
        self._unit = ""
        self.max_body = MAX_BODY_BYTES
        self.stopping = False
        self.memory = Memory()
        self.bodies = Bodies(self.now)
        self.unread = 0  # bytes of answers that clients have not read yet
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._known: dict[str, Upstream] = {}
        self._leaving: list[Upstream] = []  # once for each switch that waits for the requests inside
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._writer: asyncio.StreamWriter
        self._server: asyncio.AbstractServer | None = None
        self.access: Access | None = None
        self._rpc: Rpc | None = None
        self.router: Router

    async def run(self) -> None:
        """Serve until the host ends the control stream."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._control)
        setup = (await self._read(reader))["setup"]
        self._unit = str(setup["unit"])
        limits = setup.get("limits") or {}
        self.max_body = int(limits.get("max_body_bytes") or MAX_BODY_BYTES)
        self.memory.restore(setup.get("regions") or [])
        self.router = Router(self._report, _limits(limits, setup.get("queue") or {}, setup.get("revoked") or ()))
        if setup.get("access"):  # what it needs is not in the memory of a front without
            from interlock_agent.host.front.access import Access

            self.access = Access(setup["access"])
        tasks = [self._loop.create_task(self._open()), self._loop.create_task(self._sweep())]
        if setup.get("grpc_listen"):
            tasks.append(self._loop.create_task(self._open_rpc(setup["grpc_listen"])))
        try:
            while True:
                await self._obey(await self._read(reader))
        except (EOFError, OSError):
            pass
        finally:
            for task in tasks:
                task.cancel()

    async def _open(self) -> None:
        """Accept clients; with TLS when there is a certificate."""
        tls = None
        while self.access is not None:
            await self._look_at_access()
            try:
                tls = await self._loop.run_in_executor(None, self.access.tls)
                break
            except (OSError, ValueError):  # no certificate: told by `load`; clients wait in the kernel's queue
                await asyncio.sleep(ACCESS_EVERY_S)
        self._server = await self._loop.create_server(
            lambda: Client(self),
            sock=self._listener,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=HEAD_TIMEOUT_S if tls else None,
        )
        while self.access is not None:
            await asyncio.sleep(ACCESS_EVERY_S)
            await self._look_at_access()

    async def _open_rpc(self, listen: str) -> None:
        """Take calls of gRPC; tried again where that is not possible now."""

        def load() -> type[Rpc]:
            from interlock_agent.host.front.rpc import Rpc

            return Rpc

        wrong = ""
        while True:
            try:
                made = (await self._loop.run_in_executor(None, load))(self, listen)
                await made.start()
            except (ImportError, OSError, RuntimeError) as failure:
                if str(failure) != wrong:
                    wrong = str(failure)
                    _complain(f"grpc_listen {listen}: {wrong}")
                await asyncio.sleep(RPC_EVERY_S)
            else:
                self._rpc = made
                return

    async def _look_at_access(self) -> None:
        assert self.access is not None
        wrong = await self._loop.run_in_executor(None, self.access.load)
        if wrong:
            _complain(wrong)

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> dict[str, Any]:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if length > MAX_DOCUMENT_BYTES:
            raise EOFError("the host spoke nonsense")
        return decode(await reader.readexactly(length))

    def _send(self, document: dict[str, Any]) -> None:
        self._writer.write(encode(document))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.router.sweep()
            self.bodies.sweep()
            now = self.now()
            for client in list(self._clients):
                client.sweep(now)

    # --- clients ----------------------------------------------------------------------------------------------------

    def join(self, client: Client) -> bool:
        """A client is there; False when there are too many. One that has asked nothing for long makes place."""
        if len(self._clients) >= MAX_CLIENTS:
            oldest = min(self._clients, key=lambda one: one.idle_since)
            if oldest.idle_since < self.now() - IDLE_S:
                oldest.stop()
                self._clients.discard(oldest)
        self._clients.add(client)
        return len(self._clients) <= MAX_CLIENTS

    @property
    def crowded(self) -> bool:
        """Not even those that are told so are waited for: descriptors are needed for what comes from workers."""
        return len(self._clients) > 2 * MAX_CLIENTS

    def leave(self, client: Client) -> None:
        """It has gone."""
        self._clients.discard(client)

    def route(self, request: Request) -> routes.Operation | routes.Sharing | routes.Reply:
        """What a request asks for."""
        return routes.route(
            request,
            self._unit,
            __version__,
            self.router.live is not None and not self.router.closed,
            self.router.retry_s,
        )

    def share(self, exchange: Exchange, asked: routes.Sharing) -> None:
        """Register or end regions, or tell of them; answered when it holds, in every worker too."""
        user, name, told = exchange.user, asked.name, list[dict[str, Any]]()
        try:
            if asked.verb == b"status":
                told = self.memory.status(user, name)
            elif asked.verb == b"unregister" or name is None:
                self.memory.unregister(user, name)
            else:
                key, start, size, life = (asked.document.get(f) for f in ("key", "offset", "byte_size", "lifetime"))
                if self.memory.register(user, name, key, 0 if start is None else start, size, life != "connection"):
                    exchange.client.registered(name, life == "connection")
        except Refused as refused:
            exchange.client.fail(exchange, refused.status, refused.code, refused.message)
            return
        if asked.verb == b"status":
            exchange.client.answer(exchange, 200, b"", NO_HEADER, json.dumps(told).encode())
        else:
            self._shared(lambda: exchange.client.answer(exchange, 200, b"", NO_HEADER, b"{}"))

    def unshare(self, user: int, names: list[str]) -> None:
        """What ends with a connection."""
        for name in names:
            self.memory.unregister(user, name)
        self._shared(lambda: None)

    def _shared(self, then: Callable[[], None]) -> None:
        """The regions have changed: the host and the workers learn it, and then ..."""
        self._send({"regions": self.memory.kept()})

        async def tell() -> None:
            await asyncio.gather(*(upstream.share() for upstream in self._known.values()))
            then()

        task = self._loop.create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the host -----------------------------------------------------------------------------------------------------

    async def _obey(self, order: dict[str, Any]) -> None:
        if "serve" in order:
            await self._serve(int(order["n"]), order["serve"])
        elif "settle" in order:
            self._send({"re": order["n"], "settled": True})
        elif "stop" in order:
            await self._stop(float(order["stop"]))
            self._send({"re": order["n"], "stopped": True})

    async def _serve(self, number: int, order: dict[str, Any]) -> None:
        began = self.now()
        try:
            live = await self._upstream(order.get("live"))
        except OSError as error:
            live = None
            self._send({"lost": {"worker": order["live"]["worker"], "reason": f"cannot connect: {error}"}})
        try:
            standby = await self._upstream(order.get("standby"))
        except OSError as error:
            standby = None
            self._send({"lost": {"worker": order["standby"]["worker"], "reason": f"cannot connect: {error}"}})
        if order.get("live") and live is None:  # it did not live to serve: the standby does
            live, standby = standby, None
        drain_s = float(order.get("drain_s") or 0.0)
        before = self.router.live
        self.router.without_until(float(order.get("wait_s") or 0.0), float(order.get("expected_s") or 0.0))
        draining = self.router.switch(live, standby, drain=drain_s > 0)
        swap_ms = (self.now() - began) * 1000
        self._send({"re": number, "switched": {"swap_ms": swap_ms}})
        if draining.inside and before:
            self._leaving.append(before)
            task = self._loop.create_task(self._drain(number, before, draining, drain_s, swap_ms))
            task.add_done_callback(lambda done: done.exception())
        else:
            self._forget()
            self._send({"re": number, "drained": {"drained": 0, "cut": 0, "swap_ms": swap_ms}})

    async def _drain(self, number: int, former: Upstream, draining: Draining, seconds: float, swap_ms: float) -> None:
        count, cut = len(draining.inside), 0
        if not await self.router.drained(draining, seconds):
            cut = self.router.take_back(former, list(draining.inside))
        self._leaving.remove(former)
        self._forget()
        self._send({"re": number, "drained": {"drained": count - cut, "cut": cut, "swap_ms": swap_ms}})

    async def _upstream(self, order: dict[str, Any] | None) -> Upstream | None:
        if not order:
            return None
        known = self._known.get(order["worker"])
        if known:
            return None if known.dead else known
        upstream = Upstream(
            order["worker"],
            order["release"],
            int(order["generation"]),
            order["path"],
            int(order["connections"]),
            self.router,
            Channel(order["path"], self.memory),
        )
        await upstream.connect()
        self._known[upstream.worker] = upstream  # what is registered from now on, it is told too
        await upstream.share()
        if upstream.dead:
            raise OSError("it ended at once")
        return upstream

    def _forget(self) -> None:
        """Close what is neither live nor standby, unless it is still draining."""
        for worker, upstream in list(self._known.items()):
            if upstream not in (self.router.live, self.router.standby, *self._leaving):
                upstream.close()
                del self._known[worker]

    # --- reports ------------------------------------------------------------------------------------------------------

    def _report(self, what: dict[str, Any]) -> None:
        if "lost" in what:
            self._send({"lost": {"worker": what["lost"].worker, "reason": what["reason"]}})
        elif what["at_once"]:
            self._counters()
        elif self._timer is None:
            self._timer = self._loop.call_later(REPORT_EVERY_S, self._counters)

    def _counters(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        live = self.router.live
        if live:
            counters = {**live.counters, "recent": self.router.recent.figures(self.now())}
            self._send({"counters": {"worker": live.worker, "counters": counters}})

    async def _stop(self, seconds: float) -> None:
        """Accept no more; let what was begun end."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        if self._rpc is not None:
            calls = self._loop.create_task(self._rpc.stop(seconds))
            self._tasks.add(calls)
        deadline = self.now() + seconds
        while self._clients and self.now() < deadline:
            for client in list(self._clients):
                client.stop()
            await asyncio.sleep(0.02)
        if self._rpc is not None:
            await calls


def _complain(wrong: str) -> None:
    """The host writes it into its log."""
    sys.stderr.write(f"{wrong}\n")
    sys.stderr.flush()


def _limits(host: dict[str, Any], owner: dict[str, Any], revoked: Sequence[str]) -> Limits:
    """As they were set; what was not is as it is."""
    said = {"answer_s": host.get("answer_timeout_s"), "no_worker_s": host.get("no_worker_s")}
    said |= {"revoked": tuple(revoked) or None}
    said |= {"queue_s": owner.get("s"), "queue_max": owner.get("max")}
    return Limits(**{name: value for name, value in said.items() if value is not None})


def main(arguments: list[str]) -> None:
    """Entry of the process: descriptors of the control stream and of the listening socket."""
    allow_descriptors()
    control, listener = (socket.socket(fileno=int(number)) for number in arguments)

    async def run() -> None:
        await Service(control, listener).run()

    asyncio.run(run())
    sys.stderr.flush()
    os._exit(0)  # the host has gone, or wants it so: nothing here is worth waiting for
