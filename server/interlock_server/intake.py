"""What devices send, into the database: a batch is one transaction, and acknowledgements follow its commit.

A bad message is counted and logged once a device, not once a message, and never stops a batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlock_server import clones, sideloads
from interlock_server.core import clones as core
from interlock_server.core import events
from interlock_server.core.moments import stamp
from interlock_server.identities import keys_of
from interlock_server.ports import Clock, Row, Rows, Sealer, Store
from interlock_server.rollouts import derive
from interlock_server.withdrawals import move
from interlock_shared import canonical, trust
from interlock_shared.documents import Ack, Event, Reported
from interlock_shared.errors import InterlockError, Invalid
from interlock_shared.limits import VERDICT_MAX_BYTES
from interlock_shared.topics import device_topic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """One message of a device: `kind` as in topics.DEVICE_TOPICS."""

    device: str
    kind: str
    payload: bytes


@dataclass
class Result:
    """What a batch asks for: acknowledgements to send, devices whose document may change."""

    acks: dict[tuple[str, str], int] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)

    def messages(self, sealer: Sealer) -> Iterable[tuple[str, bytes]]:
        """(topic, payload) of each acknowledgement: a device forgets what one names, so a broker must not make them."""
        for (device, epoch), upto in self.acks.items():
            yield device_topic("ack", device), sealer.seal(Ack(device=device, epoch=epoch, upto=upto), trust.ACK_TYPE)


class Intake:
    """Figures for /metrics: `stored`, `duplicates`, `refused`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._complained: set[str] = set()
        self.addresses: dict[str, tuple[str, str]] = {}  # of devices whose connection was taken over by another
        self.figures = {"stored": 0, "duplicates": 0, "refused": 0}

    async def start(self) -> None:
        """Nobody is online before they say so."""
        async with self._store.writing() as rows:
            await rows.change("devices", {}, online=False)

    async def take(self, batch: Sequence[Message]) -> Result:
        """Store a batch, in order; what is to be sent once it is durable."""
        result, at = Result(), stamp(self._clock())
        async with self._store.writing() as rows:
            for message in batch:
                row = await rows.find("devices", id=message.device)
                if row is None:
                    self._complain(message.device, InterlockError("is not enrolled"))
                    continue
                if row["revoked_at"] is not None:  # a broker may still serve it
                    self.figures["refused"] += 1
                    continue
                try:
                    await self._one(rows, row, message, at, result)
                except InterlockError as refused:
                    self._complain(message.device, refused)
                    await rows.change("devices", {"id": message.device}, refused=row["refused"] + 1)
            await derive(rows, sorted(result.touched), at)
            await move(rows, sorted(result.touched), at)
        return result

    def _complain(self, device: str, why: InterlockError) -> None:
        self.figures["refused"] += 1
        if device not in self._complained:
            self._complained.add(device)
            log.warning("device %s sent what is refused, further ones are counted: %s", device[:80], why.message)

    async def _one(self, rows: Rows, row: Row, message: Message, at: str, result: Result) -> None:
        if message.kind == "event":
            await self._event(rows, row, events.parse_event(row["id"], message.payload), at, result)
        elif message.kind == "reported":
            await self._reported(rows, row, events.parse_reported(row["id"], message.payload), at, result)
        elif message.kind == "presence":
            online = events.parse_presence(message.payload)
            await rows.change("devices", {"id": row["id"]}, online=online, last_seen=at)

    async def _event(self, rows: Rows, row: Row, event: Event, at: str, result: Result) -> None:
        device = row["id"]
        epoch = await self._epoch(rows, device, event.epoch)
        document = event.model_dump(mode="json", by_alias=True)
        new = await rows.insert_new(
            "events",
            device=device,
            epoch=event.epoch,
            number=event.number,
            received_at=at,
            kind=event.kind,
            assignment=event.assignment,
            document=document,
        )
        self.figures["stored" if new else "duplicates"] += 1
        if new:
            result.touched.add(device)
            if event.kind == "verdict":
                await self._verdict(rows, row, event, at)
            await rows.change("devices", {"id": device}, last_seen=at)
        else:
            await self._same(rows, row, event, document, at)
        upto = epoch["upto"]
        if event.number == upto + 1:
            upto = await self._advance(rows, device, event.epoch, upto)
        result.acks[device, event.epoch] = upto

    async def _same(self, rows: Rows, row: Row, event: Event, document: Row, at: str) -> None:
        """An event that came before says the same as it did: a device sends it again as it is in its outbox."""
        before = await rows.find("events", device=row["id"], epoch=event.epoch, number=event.number)
        if before is not None and before["document"] != document:
            await clones.mark(rows, row, core.NUMBER_REUSED, at, self.addresses.get(row["id"], ()))

    @staticmethod
    async def _epoch(rows: Rows, device: str, epoch: str) -> Row:
        found = await rows.find("epochs", device=device, epoch=epoch)
        if found is None:
            rank = len(await rows.list("epochs", device=device)) + 1
            if rank > events.EPOCHS_MAX:
                raise Invalid("event: one more outbox epoch than a device can have", code="too_many_epochs")
            found = {"device": device, "epoch": epoch, "rank": rank, "upto": 0, "lost": []}
            await rows.insert("epochs", **found)
        return found

    @staticmethod
    async def _advance(rows: Rows, device: str, epoch: str, upto: int) -> int:
        above = await rows.list("events", device=device, epoch=epoch, number=(">", upto))
        reached = events.advance(upto, [one["number"] for one in above])
        if reached > upto:
            await rows.change("epochs", {"device": device, "epoch": epoch}, upto=reached)
        return reached

    async def _reported(self, rows: Rows, row: Row, reported: Reported, at: str, result: Result) -> None:
        device = row["id"]
        instances, came_back = core.heard(row["instances"], reported.instance)
        if instances != row["instances"]:
            await rows.change("devices", {"id": device}, instances=instances)
        if came_back:
            await clones.mark(rows, row, core.CAME_BACK, at, self.addresses.get(device, ()))
        if not events.newer_report(row["reported"], reported):
            return
        document = reported.model_dump(mode="json", by_alias=True)
        kept = await sideloads.heard(rows, row, reported)
        await rows.change("devices", {"id": device}, reported=document, sideloads=kept, last_seen=at)
        result.touched.add(device)
        epoch = await self._epoch(rows, device, reported.outbox_epoch)
        gap = events.lost(epoch["upto"], reported.outbox_floor)
        if gap is not None:
            # Neither side has these any more: the gap is kept and shown, and what comes after it goes on.
            where = {"device": device, "epoch": reported.outbox_epoch}
            await rows.change("epochs", where, upto=gap[1], lost=[*epoch["lost"], list(gap)])
            result.acks[device, reported.outbox_epoch] = await self._advance(
                rows, device, reported.outbox_epoch, gap[1]
            )

    async def _verdict(self, rows: Rows, row: Row, event: Event, at: str) -> None:
        envelope: Any = event.data.get("envelope")
        data = envelope.encode() if isinstance(envelope, str) else canonical.encode(envelope)
        document, error = None, ""
        try:
            if len(data) > VERDICT_MAX_BYTES:
                raise Invalid(f"verdict: {len(data)} bytes, at most {VERDICT_MAX_BYTES} are kept")
            keys = trust.load_keys(await keys_of(rows, row["id"]))  # of former certificates too: a verdict may be old
            verdict = trust.open_verdict(data, keys, device=row["id"])
            document = json.loads(canonical.encode(verdict.model_dump(mode="json", by_alias=True)))
        except InterlockError as bad:
            error = bad.message
            self._complain(row["id"], bad)
        await rows.insert(
            "verdicts",
            device=row["id"],
            received_at=at,
            document=document,
            envelope=data[:VERDICT_MAX_BYTES],
            verified=document is not None,
            error=error,
        )
