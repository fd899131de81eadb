"""The link's two directions: what devices send goes into the database, what is wanted of them goes out.

Rules of the file:
- Nothing polls: a change names the devices it concerns, a message wakes the intake, a new connection names everybody.
- Everything it does can be done again: a restart at any point begins with every device named.
- It owns no rule: what is wanted is said by `Wishes`, what is taken by `Intake`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from interlock_server.intake import Intake, Message
from interlock_server.ports import Link, Sealer
from interlock_server.wishes import Wishes
from interlock_shared import topics
from interlock_shared.errors import Later
from interlock_shared.limits import DOCUMENT_MAX_BYTES

log = logging.getLogger(__name__)

BATCH_MAX = 256  # messages in one transaction; what waits longer is in the next one
WAITING_MAX = 10_000  # messages in memory; more are dropped, their devices send them again
WAITING_MAX_BYTES = 64 * 1024 * 1024
OF_ONE_MAX = 256  # of one device, which sends 20 and waits: one that floods does not take the others' place
RENEW_S = 6 * 3600.0  # metadata and documents are looked at for renewal; each is renewed days before it expires
RETRY_S = 1.0  # after a failed write: the disk is full, or a backup holds the lock


class Renews(Protocol):
    """What must be signed again now and then."""

    async def refresh(self) -> None: ...


class Engine:
    """Reacts; `run` until it is cancelled."""

    def __init__(
        self, intake: Intake, wishes: Wishes, link: Link, sealer: Sealer, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._intake, self._wishes, self._link, self._sealer, self._sleep = intake, wishes, link, sealer, sleep
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(WAITING_MAX)
        self._waiting_bytes = 0
        self._waiting: Counter[str] = Counter()  # of each device
        self._changed: set[str] = set()
        self._everybody = False
        self._notice = False
        self._wake = asyncio.Event()
        self.dropped = 0

    # --- what happens ----------------------------------------------------------------------------------------------

    def received(self, topic: str, payload: bytes) -> None:
        """A message came over the link."""
        parsed = topics.parse_device_topic(topic)
        if parsed is None or parsed[1] not in topics.DEVICE_MAY_PUBLISH:
            return
        device, size = parsed[0], len(payload)
        full = self._inbox.full() or self._waiting_bytes + size > WAITING_MAX_BYTES
        if full or size > DOCUMENT_MAX_BYTES or self._waiting[device] >= OF_ONE_MAX:
            self.dropped += 1
            return
        self._waiting_bytes += size
        self._waiting[device] += 1
        self._inbox.put_nowait(Message(*parsed, payload))

    def connected(self) -> None:
        """The link is there (again): the embedded broker has forgotten everything that was retained."""
        self._everybody = True
        self._wake.set()

    def changed(self, devices: Iterable[str]) -> None:
        """These devices' documents may be other ones now."""
        self._changed.update(devices)
        self._wake.set()

    def moved(self) -> None:
        """There is new metadata."""
        self._notice = True
        self._wake.set()

    # --- what is done ----------------------------------------------------------------------------------------------

    async def run(self, renews: Renews) -> None:
        """Until cancelled."""
        self._everybody = True
        self._wake.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take())
            group.create_task(self._send())
            group.create_task(self._renew(renews))

    async def _take(self) -> None:
        while True:
            batch = [await self._inbox.get()]
            while len(batch) < BATCH_MAX and not self._inbox.empty():
                batch.append(self._inbox.get_nowait())
            for message in batch:
                self._waiting_bytes -= len(message.payload)
                self._waiting[message.device] -= 1
                if not self._waiting[message.device]:
                    del self._waiting[message.device]
            try:
                await self._batch(batch)
            except Exception:
                # Not acknowledged, so the devices send it again; one message must not hold up the others for ever.
                log.exception("a batch of %d messages could not be stored; they are tried one by one", len(batch))
                await self._sleep(RETRY_S)
                await self._singly(batch)

    async def _singly(self, batch: list[Message]) -> None:
        for message in batch:
            try:
                await self._batch([message])
            except Exception:
                log.exception("a message of %s could not be stored", message.device[:80])

    async def _batch(self, batch: list[Message]) -> None:
        result = await self._intake.take(batch)
        for topic, payload in await asyncio.to_thread(lambda: list(result.messages(self._sealer))):
            try:
                await self._link.publish(topic, payload, retain=False)
            except Later:
                pass  # the device sends its events again when it is back, and is answered then
        if result.touched:
            self.changed(result.touched)

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._everybody:
                self._everybody = False
                self._changed.update(await self._wishes.devices())
            if self._notice:
                self._notice = False
                await self._publish(topics.NOTICE, b'{"schema":"interlock.notice/1"}', retain=False)
            while self._changed:
                await self._one(self._changed.pop())

    async def _one(self, device: str) -> None:
        try:
            envelope = await self._wishes.due(device)
        except Exception:
            log.exception("the desired document of %s could not be made; it is tried again", device)
            await self._sleep(RETRY_S)
            self.changed([device])
            return
        if envelope is not None:
            await self._publish(topics.device_topic("desired", device), envelope, retain=True)

    async def _publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        try:
            await self._link.publish(topic, payload, retain=retain)
        except Later:
            pass  # `connected` names every device again

    async def _renew(self, renews: Renews) -> None:
        while True:
            try:
                await renews.refresh()
            except Exception:
                log.exception("the metadata could not be signed again; it is tried again")
            await self._sleep(RENEW_S)
            self._everybody = True
            self._wake.set()
