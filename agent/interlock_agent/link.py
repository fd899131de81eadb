"""The link to the server: what is wanted comes in, what happened goes out. The network is a doorbell.

- A desired document is believed by shared.trust, journaled, and only then acted upon; a repetition is a no-op.
- The outbox is sent in order, few at a time, and an entry is forgotten when the server has acknowledged it. After
  each connection everything that is still held is sent again: duplicates are no-ops at the other end.
- Where MQTT is silent, a slow jittered poll over HTTP asks for the desired document.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from interlock_agent.core import time_floor
from interlock_agent.core.retry import backoff
from interlock_agent.core.times import rfc3339, seconds
from interlock_agent.engine import Engine
from interlock_agent.ports import Ports
from interlock_shared import canonical, trust
from interlock_shared.documents import Assignment, Desired
from interlock_shared.errors import InterlockError, Later, Unreachable, Untrusted
from interlock_shared.limits import MQTT_INFLIGHT

log = logging.getLogger("interlock.link")

RESEND_S = 30.0  # an entry that was sent and not acknowledged is sent again
ASK_AGAIN_S = 60.0  # between two looks for a newer director because of a message that nobody known has signed
REPORT_EVERY_S = 0.2  # changes within this time are one report

Found = TypeVar("Found")


class Broker(Protocol):
    """The part of the MQTT connection that the link needs."""

    async def publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        """Raises Unreachable."""

    @property
    def connected(self) -> bool:
        """Whether a session is open."""


class Link:
    """Between engine and server. `describe(number)` gives the reported document."""

    def __init__(
        self, ports: Ports, engine: Engine, broker: Broker, describe: Callable[[int], Any], poll_s: float
    ) -> None:
        self._ports, self._engine, self._broker, self._describe = ports, engine, broker, describe
        self._poll_s = poll_s
        self._sent = 0
        self._wake = asyncio.Event()
        self._report_due = asyncio.Event()
        self._incoming = asyncio.Lock()
        self.on_notice: Callable[[], None] = lambda: None  # there may be newer metadata
        self._doubt = asyncio.Event()  # something was refused that a newer director may have signed
        self._asked_at: float | None = None  # when a document last made us ask for newer metadata
        self.refusals: dict[str, int] = {}  # `document:reason` -> how many; each is reported once, not once a message

    async def run(self) -> None:
        """Pump, report and poll until cancelled."""
        await asyncio.gather(self._pump(), self._report(), self._poll(), self._clear_up())

    # --- in -----------------------------------------------------------------------------------------------------

    async def connected(self) -> None:
        """A new session: everything held is sent again, and the state is reported."""
        self._sent = 0
        self._wake.set()
        self._report_due.set()
        self.on_notice()  # one may have been missed

    async def message(self, kind: str, payload: bytes) -> None:
        """One message from the broker."""
        try:
            if kind == "notice":
                self.on_notice()
            elif kind == "desired":
                await self.desired(payload)
            elif kind == "ack":
                await self._acknowledged(payload)
        except InterlockError as error:
            await self._refuse(kind, error)

    async def desired(self, payload: bytes, *, asked: bool = False) -> None:
        """Believe, journal, act. `asked`: it is the server's answer, not a message. Raises InterlockError."""
        async with self._incoming:
            desired = await self._believe(lambda: self._open(payload), asked)
            if desired is None:
                return
            units = {name: wish.model_dump(mode="json") for name, wish in desired.units.items()}
            facts: dict[str, Any] = {"desired_at": [desired.epoch, desired.counter], "desired": units}
            facts |= {"spread_s": desired.start_spread_s, "sideload": desired.sideload}
            facts |= self._time_of(desired)
            await self._ports.journal.put_meta(facts)
            self._engine.stored.meta.update(facts)
        await self._engine.desire(dict(desired.units), desired.start_spread_s)
        self._report_due.set()

    def _time_of(self, desired: Desired) -> dict[str, Any]:
        """A signed time raises the floor, but not beyond the expiry of the trusted metadata: a stolen director key must
        not make the metadata that takes it away look expired."""
        until = self._engine.stored.meta.get("signed_until")
        if not until:
            return {}
        clock = self._ports.clock
        clock.raise_floor(min(seconds(desired.issued_at), seconds(str(until))))
        return time_floor.fact(self._engine.stored.meta, clock.floor())

    async def _believe(self, look: Callable[[], Found], asked: bool) -> Found:
        """What `look` finds; once more with fresh trust where the director may be a new one."""
        try:
            return look()
        except Untrusted as error:
            if error.code not in ("unknown_key", "bad_signature", "wrong_epoch"):
                raise
            now = self._ports.clock.monotonic()
            if not asked and self._asked_at is not None and now - self._asked_at < ASK_AGAIN_S:
                self._doubt.set()  # whoever floods the broker does not make the device ask without end
                raise
            self._asked_at = now
        await self._engine.shared.trust_moved(await self._ports.fetcher.refresh())
        return look()

    async def _acknowledged(self, payload: bytes) -> None:
        """Forget what the server has. Signed, since a broker could make the device forget what nobody has."""
        device = self._engine.device
        ack = await self._believe(lambda: trust.open_ack(payload, self._director(), device=device), asked=False)
        epoch, _, following = await self._ports.journal.outbox()
        if ack.epoch == epoch and ack.upto >= following:
            raise Untrusted(f"ack: {ack.upto} is acknowledged, {following - 1} was the last", code="ack_beyond")
        await self._ports.journal.acknowledge(ack.epoch, ack.upto)

    def _director(self) -> list[Any]:
        return trust.load_keys((self._engine.stored.meta.get("director") or {}).get("keys") or {})

    def _open(self, payload: bytes) -> Desired | None:
        meta = self._engine.stored.meta
        director = meta.get("director") or {}
        epoch, counter = meta.get("desired_at") or (0, 0)
        if counter and "desired" not in meta:
            counter -= 1  # the journal was lost, the floor was not: what it said is to be heard again
        return trust.open_desired(
            payload,
            self._director(),
            device=self._engine.device,
            last=(int(epoch), int(counter)),
            epoch=int(director.get("epoch", 0)),
            now=rfc3339(self._ports.clock.now()),
        )

    async def _refuse(self, kind: str, error: InterlockError) -> None:
        key = f"{kind}:{error.code}"
        self.refusals[key] = self.refusals.get(key, 0) + 1
        if self.refusals[key] > 1:
            return
        log.warning("%s ignored, further ones are counted: %s", kind, error.message)
        self._report_due.set()
        if isinstance(error, Later):
            return
        entry = {"kind": "refused", "at": rfc3339(self._ports.clock.now()), "reason": error.code}
        entry["data"] = {"document": kind, "message": error.message[:500]}  # type: ignore[assignment]
        try:
            await self._ports.journal.put_meta({}, (entry,))
        except Later:  # a full disk: told when it happens again
            del self.refusals[key]
        self._wake.set()

    async def resume(self) -> None:
        """After a start: what was wanted when the agent ended is still wanted."""
        meta = self._engine.stored.meta
        units = {name: Assignment.model_validate(wish) for name, wish in (meta.get("desired") or {}).items()}
        await self._engine.desire(units, float(meta.get("spread_s") or 0.0))

    # --- out ----------------------------------------------------------------------------------------------------

    def changed(self, unit: str) -> None:
        """A transition was journaled: its events wait in the outbox, and the report is out of date."""
        del unit
        self._wake.set()
        self._report_due.set()

    async def _pump(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), RESEND_S)
                self._wake.clear()
            except asyncio.TimeoutError:
                self._sent = 0  # what is still held was not acknowledged
            while self._broker.connected:
                try:
                    entries = await self._ports.journal.pending(self._sent, MQTT_INFLIGHT)
                except Later as error:
                    log.error("outbox: %s", error.message)
                    break
                if not entries or not await self._send(entries):
                    break

    async def _send(self, entries: list[dict[str, Any]]) -> bool:
        for entry in entries:
            try:
                await self._broker.publish("event", json.dumps(entry).encode())
            except Unreachable:
                return False
            self._sent = int(entry["number"])
        return True

    async def _report(self) -> None:
        number = int(self._engine.stored.meta.get("report", 0))
        while True:
            await self._report_due.wait()
            self._report_due.clear()
            if not self._broker.connected:
                continue
            number += 1
            try:
                await self._ports.journal.put_meta({"report": number})
                document = await self._describe(number)
                await self._broker.publish("reported", canonical.encode(document), retain=True)
            except InterlockError as error:
                log.debug("not reported: %s", error.message)
            await self._ports.clock.sleep(REPORT_EVERY_S)

    async def _poll(self) -> None:
        failures = 0
        while True:
            if not self._engine.stored.meta.get("director"):
                try:  # a device that was just enrolled learns who directs it
                    await self._engine.shared.trust_moved(await self._ports.fetcher.refresh())
                except InterlockError as error:
                    failures += 1
                    log.warning("no trust yet: %s", error.message)
                    await self._ports.clock.sleep(backoff(failures, self._ports.clock.dice()))
                    continue
            await self._ask()
            await self._ports.clock.sleep(self._poll_s * (0.5 + self._ports.clock.dice()))

    async def _clear_up(self) -> None:
        """What was refused unseen is asked for at its source."""
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            await self._ports.clock.sleep(ASK_AGAIN_S)
            await self._ask()

    async def _ask(self) -> None:
        before = self._engine.stored.meta.get("desired_at")
        try:
            document = await self._ports.fetcher.poll()
            if document is not None:
                await self.desired(document, asked=True)
        except Later as error:
            log.debug("poll: %s", error.message)
        except InterlockError as error:
            if error.code == "older" and self._engine.stored.meta.get("desired_at") != before:
                return  # no replay: while the answer was under way, a message overtook it
            await self._refuse("desired", error)
