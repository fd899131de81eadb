"""Which worker answers: the front's choice of upstream for each request.

Rules of the file:
- The upstream is chosen in the same step that counts the request as inside it; there is no await between.
- At most two upstreams: the live one, and in a trial the standby. New requests go to the live one.
- The live one dies: the standby is live, at once and without asking; what was inside is sent again, once. A request
  with which two workers died is poison: 500, never a third. Suspects are sent one at a time, so that the innocent
  do not share a second death.
- A bad answer (NaN, Inf) is held back and the standby is asked; without one: 500.
- A request waits for its turn, and with no live worker for one, bounded in time and number; then 503 with Retry-After.
- One that has a deadline is answered by then; it leaves the queue, and what a worker makes of it is dropped.
- After a switch without draining nothing of the former worker is let out: what is inside it is asked again.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interlock_agent.host.front.recent import Recent
from interlock_agent.host.front.upstream import Exchange, Upstream
from interlock_agent.host.wire import FLAG_NON_FINITE, INFERENCES

MAX_WAITING_BYTES = 256 * 1024 * 1024
LAST_ERRORS = 5
DEATHS = 2
CLOSED = "this release was revoked by its signers, and the owner of this machine wants no answers of it"


@dataclass(frozen=True)
class Limits:
    """How long, and how many. The owner's and the host's settings."""

    answer_s: float = 30.0  # a worker that does not answer a request in that time hangs
    no_worker_s: float = 10.0  # a request waits so long for a live worker (a reload takes one or two seconds)
    queue_s: float = 60.0  # and so long for its turn at a live worker
    revoked: tuple[str, ...] = ()  # releases that must not answer
    queue_max: int = 1024  # so many wait; at some hundred bytes to megabytes each, a bound on memory too


@dataclass(eq=False)
class Draining:
    """Requests that were inside the former worker at a switch; `done` when none is left."""

    inside: set[Exchange]
    done: asyncio.Future[None]


class Router:
    """The upstreams of one unit, and the requests that wait for them."""

    def __init__(self, report: Callable[[dict[str, Any]], None], limits: Limits) -> None:
        self._report, self._limits = report, limits
        self._loop = asyncio.get_running_loop()
        self.live: Upstream | None = None
        self.standby: Upstream | None = None
        self._waiting: deque[Exchange] = deque()
        self._waiting_bytes = 0
        self._since = self._loop.time()  # that there is a live worker, or none
        self._alarm: asyncio.TimerHandle | None = None  # for those who wait too long
        self._patient_until, self._expected_at = 0.0, 0.0  # as the host has told, where it knows why there is none
        self._suspects: set[Exchange] = set()  # inside a worker, after another one died on them
        self._draining: list[Draining] = []
        self.refused = 0
        self.recent = Recent()

    # --- requests -----------------------------------------------------------------------------------------------

    def submit(self, exchange: Exchange) -> None:
        """A request has arrived."""
        live = self.live
        if self.closed:
            self._refuse(exchange, "release_revoked", CLOSED)
            return
        if exchange.deadline:
            if exchange.deadline <= exchange.arrived:
                self._too_late(exchange)
                return
            exchange.alarm = self._loop.call_at(exchange.deadline, self._too_late, exchange)
        if live is not None and live.idle and not self._waiting:
            live.send(exchange, exchange.arrived)
            return
        if len(self._waiting) >= self._limits.queue_max or self._waiting_bytes + len(exchange.body) > MAX_WAITING_BYTES:
            self._refuse(exchange, "overloaded", "too many requests wait for this model")
            return
        self._queue(exchange)
        self.pump()

    def _queue(self, exchange: Exchange, first: bool = False) -> None:
        self._waiting_bytes += len(exchange.body)
        if first:
            self._waiting.appendleft(exchange)
        else:
            self._waiting.append(exchange)
        if self._alarm is None:
            self._alarm = self._loop.call_at(self._due(exchange), self._ring)

    def _unqueue(self, exchange: Exchange) -> None:
        self._waiting.remove(exchange)
        self._waiting_bytes -= len(exchange.body)

    def _fail(self, exchange: Exchange, status: int, code: str, message: str, retry_after: int = 0) -> None:
        self._settled(exchange)
        exchange.client.fail(exchange, status, code, message, retry_after)

    @staticmethod
    def _settled(exchange: Exchange) -> None:
        if exchange.alarm is not None:
            exchange.alarm.cancel()
            exchange.alarm = None

    def _refuse(self, exchange: Exchange, code: str, message: str) -> None:
        self.refused += 1
        if self.live:
            self.live.counters["refused"] += 1
            self._changed(self.live)
        self._fail(exchange, 503, code, message, self.retry_s)

    @property
    def retry_s(self) -> int:
        """When somebody who cannot wait may come again."""
        left = 0.0 if self.live else self._expected_at - self._loop.time()
        return max(1, math.ceil(left))

    @property
    def closed(self) -> bool:
        """Whether what is live was taken back by its signers, and the owner wants no answers of it."""
        return self.live is not None and self.live.release in self._limits.revoked

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self.live is not None and not self.closed

    def without_until(self, wait_s: float, expected_s: float) -> None:
        """While there is no live worker: how long requests wait for one at the least, and when it is expected."""
        self._patient_until, self._expected_at = self._loop.time() + wait_s, self._loop.time() + expected_s

    def cancel(self, exchange: Exchange) -> None:
        """Its client has gone."""
        exchange.cancelled = True
        self._settled(exchange)
        if exchange in self._waiting:
            self._unqueue(exchange)

    def _too_late(self, exchange: Exchange) -> None:
        """Its deadline has passed: nobody wants the answer. A worker that computes it is not told."""
        self.cancel(exchange)
        message = "the deadline of this request has passed before there was an answer"
        exchange.client.fail(exchange, 504, "deadline_exceeded", message)

    def pump(self) -> None:
        """Send what waits to workers that have a connection free."""
        while self._waiting and self.closed:
            exchange = self._waiting[0]
            self._unqueue(exchange)
            self._refuse(exchange, "release_revoked", CLOSED)
        if not self._waiting:
            return
        now, passed = self._loop.time(), []
        while self._waiting:
            live, standby = self.live, self.standby
            if not (live and live.idle) and not (standby and standby.idle):
                break
            exchange = self._waiting.popleft()
            self._waiting_bytes -= len(exchange.body)
            if exchange.cancelled:
                continue
            if exchange.deadline and exchange.deadline <= now:  # its alarm is about to ring
                self._too_late(exchange)
                continue
            target = live
            if exchange.avoid is not None and exchange.avoid is live:
                target = standby
                if target is None:
                    self._non_finite(exchange)
                    continue
            suspect = exchange.deaths > 0
            if target is None or not target.idle or (suspect and self._suspects):
                passed.append(exchange)
                if target is live and not suspect:
                    break  # the live one is busy: who comes after has to wait as well
                continue
            if suspect:
                self._suspects.add(exchange)
            target.send(exchange, now)
        for exchange in reversed(passed):
            self._queue(exchange, first=True)

    # --- answers ------------------------------------------------------------------------------------------------

    def answered(self, upstream: Upstream, exchange: Exchange, status: int, flags: int, header: int, body: Any) -> None:
        """A worker has answered."""
        self._left(exchange)
        if exchange.cancelled:
            self.pump()
            return
        counters = upstream.counters
        if flags & FLAG_NON_FINITE:
            self._bad_answer(upstream, exchange)
        else:
            if exchange.op in INFERENCES:
                counters["requests"] += 1
                now = self._loop.time()
                self.recent.add(now, now - exchange.arrived)
            if status >= 500:
                counters["errors"] += 1
                self._error(upstream, bytes(body[:200]).decode("utf-8", "replace"))
            elif exchange.op in INFERENCES:
                self._changed(upstream)
            self._settled(exchange)
            exchange.client.answer(exchange, status, upstream.head, header, body)
        if self._waiting:
            self.pump()

    def _bad_answer(self, upstream: Upstream, exchange: Exchange) -> None:
        upstream.counters["requests"] += 1
        upstream.counters["non_finite"] += 1
        other = self.standby if upstream is self.live else self.live
        if other is None or exchange.avoid is not None:
            self._error(upstream, "non_finite_output")
            self._non_finite(exchange)
            return
        upstream.counters["replayed"] += 1
        exchange.avoid = upstream
        self._queue(exchange, first=True)
        self._changed(upstream, at_once=True)
        self.pump()

    def _non_finite(self, exchange: Exchange) -> None:
        self._fail(exchange, 500, "non_finite_output", "the model answered with NaN or Inf; it was held back")

    def _error(self, upstream: Upstream, text: str) -> None:
        upstream.counters["last_errors"] = [*upstream.counters["last_errors"], text][-LAST_ERRORS:]
        self._changed(upstream, at_once=True)

    def _left(self, exchange: Exchange) -> None:
        self._suspects.discard(exchange)
        for draining in self._draining:
            draining.inside.discard(exchange)
            if not draining.inside and not draining.done.done():
                draining.done.set_result(None)

    def _changed(self, upstream: Upstream, at_once: bool = False) -> None:
        if upstream is self.live:
            self._report({"counters": upstream, "at_once": at_once})

    # --- deaths -------------------------------------------------------------------------------------------------

    def died(self, upstream: Upstream, reason: str) -> None:
        """A worker has gone: the standby takes over, what was inside is sent again."""
        inside = list(upstream.busy)
        upstream.busy.clear()
        self._changed(upstream, at_once=True)  # the last figures of a trial come before its end
        if upstream is self.live:
            self.live, self.standby = self.standby, None
            self._since = self._loop.time() if self.live is None else self._since
        elif upstream is self.standby:
            self.standby = None
        self._report({"lost": upstream, "reason": reason})
        for exchange in reversed(inside):
            self._left(exchange)
            exchange.deaths += 1
            if exchange.cancelled:
                continue
            if exchange.deaths >= DEATHS:
                message = "two workers ended while they computed this request; it is not tried again"
                self._fail(exchange, 500, "poison_request", message)
            else:
                self._queue(exchange, first=True)
        self.pump()
        self._set_alarm()

    def sweep(self) -> None:
        """Called now and then: workers that hang."""
        now = self._loop.time()
        for upstream in (self.live, self.standby):
            if upstream and any(now - exchange.sent > self._limits.answer_s for exchange in upstream.busy):
                upstream.lost(f"no answer within {self._limits.answer_s:g} s")

    def _due(self, exchange: Exchange) -> float:
        """When it has waited too long."""
        begin = max(exchange.arrived, self._since)
        if self.live:
            return begin + self._limits.queue_s
        return max(begin + self._limits.no_worker_s, self._patient_until)

    def _ring(self) -> None:
        """Refuse those who have waited too long; come again for the next."""
        self._alarm, now = None, self._loop.time()
        for exchange in [one for one in self._waiting if self._due(one) <= now]:
            if exchange not in self._waiting:  # who was refused before it has asked again, and moved the queue
                continue
            self._unqueue(exchange)
            limit = self._limits.queue_s if self.live else self._limits.no_worker_s
            code = "overloaded" if self.live else "no_live_worker"
            self._refuse(exchange, code, f"no worker took this request within {limit:g} s")
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._waiting:
            self._alarm = self._loop.call_at(min(map(self._due, self._waiting)), self._ring)

    # --- switching ----------------------------------------------------------------------------------------------

    def switch(self, live: Upstream | None, standby: Upstream | None, drain: bool) -> Draining:
        """From now on `live` answers. What is inside the former one stays there (`drain`; returned, and watched from
        this moment on), or is asked again."""
        former = [upstream for upstream in (self.live, self.standby) if upstream]
        if live and live.dead:
            live, standby = standby, None
        if standby and standby.dead:
            standby = None
        if (live is None) != (self.live is None):
            self._since = self._loop.time()
        before, self.live, self.standby = self.live, live, standby
        inside: set[Exchange] = set()
        for upstream in former:
            if upstream is live or (upstream is standby and upstream is not before):
                continue
            if drain and upstream is before:
                inside = set(upstream.busy)
            elif upstream is not standby or not drain:
                self.take_back(upstream, list(upstream.busy))
        draining = Draining(inside, self._loop.create_future())
        if inside:
            self._draining.append(draining)
        self.pump()
        self._set_alarm()
        return draining

    def take_back(self, upstream: Upstream, exchanges: list[Exchange]) -> int:
        """Ask others what is inside `upstream`; how many."""
        count = 0
        for exchange in reversed(exchanges):
            if exchange in upstream.busy:
                upstream.take_back(exchange)
                self._left(exchange)
                if not exchange.cancelled:
                    self._queue(exchange, first=True)
                    count += 1
        self.pump()
        return count

    async def drained(self, draining: Draining, seconds: float) -> bool:
        """Wait until those have ended; whether they did in time."""
        try:
            await asyncio.wait({draining.done}, timeout=seconds)
        finally:
            self._draining.remove(draining)
        return not draining.inside
