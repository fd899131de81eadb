"""The Journal port in memory: what `commit` returned from is safe, what it has not begun is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from interlock_agent.core.records import Quarantined, Transition, from_document, to_document
from interlock_agent.ports import Stored
from interlock_shared.documents import EVENT_SCHEMA
from interlock_shared.errors import NoSpace
from tests.fakes.points import Point, nowhere


@dataclass
class Memory:
    """What is on the disk of the journal."""

    epoch: str = "epoch-0000000001"
    units: dict[str, dict[str, Any]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    quarantine: tuple[Quarantined, ...] = ()
    spent: dict[str, int] = field(default_factory=dict)
    outbox: tuple[tuple[int, str], ...] = ()
    following: int = 1
    history: tuple[dict[str, Any], ...] = ()

    def record(self, unit: str) -> Any:
        """The unit's record, None without one."""
        document = self.units.get(unit)
        return None if document is None else from_document(document)


class FakeJournal:
    """`told(before, after, transition)` is called at the instant of a commit."""

    def __init__(
        self,
        memory: Memory,
        device: str,
        point: Point = nowhere,
        told: Callable[[Memory, Memory, Transition], None] = lambda before, after, transition: None,
        full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.memory, self._device, self._point, self._told, self._full = memory, device, point, told, full

    def _space(self) -> None:
        if self._full():
            raise NoSpace("journal: no space left")

    async def close(self) -> None:
        """Nothing to close."""

    def _become(self, after: Memory) -> None:
        self.memory.__dict__.update(after.__dict__)

    async def load(self) -> Stored:
        """Everything."""
        await self._point("journal load")
        m = deepcopy(self.memory)
        units = {name: from_document(document) for name, document in m.units.items()}
        return Stored(units, {**m.meta, "outbox_epoch": m.epoch}, list(m.quarantine), m.spent)

    async def commit(self, transition: Transition) -> None:
        """One transition, atomically."""
        await self._point(f"journal {transition.event} -> {transition.record.phase}")
        self._space()
        before, record = self.memory, transition.record
        after = replace(before, units={**before.units, record.unit: json.loads(json.dumps(to_document(record)))})
        row = {"at": transition.at, "unit": record.unit, "generation": record.generation}
        row |= {"before": transition.before, "event": transition.event, "after": record.phase}
        row |= {"reason": record.reason, "detail": json.loads(json.dumps(transition.detail))}
        after.history = (*before.history, row)
        if transition.spend:
            key = ":".join(transition.spend)
            after.spent = {**before.spent, key: before.spent.get(key, 0) + 1}
        after.quarantine = (*before.quarantine, *transition.quarantine)
        self._put(after, transition.outbox)
        self._told(replace(before), after, transition)
        self._become(after)
        await self._point(f"journaled {transition.event} -> {transition.record.phase}")

    @staticmethod
    def _put(after: Memory, entries: tuple[dict[str, Any], ...]) -> None:
        for entry in entries:
            after.outbox = (*after.outbox, (after.following, json.dumps(entry)))
            after.following += 1

    async def put_meta(self, values: dict[str, Any], outbox: tuple[dict[str, Any], ...] = ()) -> None:
        """Merge facts, with events."""
        await self._point(f"journal facts {' '.join(sorted(values))}")
        self._space()
        after = replace(self.memory)
        meta = {**after.meta, **json.loads(json.dumps(values))}
        after.meta = {name: value for name, value in meta.items() if value is not None}
        self._put(after, outbox)
        self._become(after)
        await self._point("journaled facts")

    async def forgive(self, payload_sha256: str) -> int:
        """Quarantine and budgets of a payload."""
        await self._point("journal forgive")
        left = tuple(entry for entry in self.memory.quarantine if entry.payload_sha256 != payload_sha256)
        count = len(self.memory.quarantine) - len(left)
        spent = {key: value for key, value in self.memory.spent.items() if f":{payload_sha256}:" not in key}
        self._become(replace(self.memory, quarantine=left, spent=spent))
        return count

    async def pending(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Outbox entries above `after`."""
        await self._point("journal pending")
        head = {"schema": EVENT_SCHEMA, "device": self._device, "epoch": self.memory.epoch}
        rows = [(number, text) for number, text in self.memory.outbox if number > after][:limit]
        return [{**head, "number": number, **json.loads(text)} for number, text in rows]

    async def acknowledge(self, epoch: str, upto: int) -> None:
        """Forget entries."""
        await self._point(f"journal acknowledge {upto}")
        if epoch == self.memory.epoch:
            left = tuple((number, text) for number, text in self.memory.outbox if number > upto)
            self._become(replace(self.memory, outbox=left))

    async def outbox(self) -> tuple[str, int, int]:
        """(epoch, lowest held or next, next)."""
        m = self.memory
        return m.epoch, m.outbox[0][0] if m.outbox else m.following, m.following

    async def history(self, unit: str | None, limit: int) -> list[dict[str, Any]]:
        """Transitions, newest first."""
        rows = [row for row in reversed(self.memory.history) if unit is None or row["unit"] == unit]
        return deepcopy(rows[:limit])


def quarantine_documents(memory: Memory) -> list[dict[str, Any]]:
    """For a look from outside."""
    return [asdict(entry) for entry in memory.quarantine]
