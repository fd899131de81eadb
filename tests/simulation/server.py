"""The server, far away: it wants releases, and keeps what it is told."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from securesystemslib.signer import CryptoSigner

from interlock_agent.core.times import rfc3339
from interlock_shared import trust
from interlock_shared.documents import Ack, Assignment, Desired, Event
from interlock_shared.errors import Unreachable
from tests.fakes.fetcher import Shelf
from tests.fakes.loop import EPOCH
from tests.simulation import releases

if TYPE_CHECKING:
    from tests.simulation.agent_life import AgentLife
    from tests.simulation.machine import Machine

ACK_S = 0.05


@cache
def director() -> CryptoSigner:
    """The director's key; one for all runs, since making and checking keys is what takes time."""
    return CryptoSigner.generate_ed25519()


@cache
def signed(counter: int, units: tuple[tuple[str, str, str], ...], spread_s: float) -> bytes:
    """A desired document, signed: (unit, version, assignment)."""
    wanted = {
        unit: Assignment(
            version=version,
            manifest_sha256=releases.digest(releases.CATALOGUE[version][0]),
            assignment=assignment,
            rollout="r1",
        )
        for unit, version, assignment in units
    }
    desired = Desired(
        device="device-1",
        epoch=1,
        counter=counter,
        issued_at=rfc3339(EPOCH),
        expires_at=rfc3339(EPOCH + 30 * 86_400),
        start_spread_s=spread_s,
        units=wanted,
    )
    return trust.seal(desired, trust.DESIRED_TYPE, director())


@cache
def acknowledgement(epoch: str, upto: int) -> bytes:
    """Signed."""
    return trust.seal(Ack(device="device-1", epoch=epoch, upto=upto), trust.ACK_TYPE, director())


class Server:
    """What is wanted, and what was heard."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.online = True
        self.counter = 0
        self.document: bytes | None = None
        self.said: list[bytes] = []  # older documents
        self.events: dict[int, dict[str, Any]] = {}
        self.acknowledged = 0
        key = director().public_key
        self.shelf = Shelf(
            {version: manifest for version, (manifest, _) in releases.CATALOGUE.items()},
            {"epoch": 1, "keys": {key.keyid: key.to_dict()}},
            self._desired,
            lambda: not self.online or machine.faults.unreachable(),
            machine.faults.full,
            lambda version: version not in releases.FORGED,
        )
        machine.journal.meta = {"director": self.shelf.director, "floors": {"root": 1}}

    async def _desired(self) -> bytes | None:
        return self.document

    def want(self, version: str | None, assignment: str = "", spread_s: float = 0.0) -> None:
        """A new statement: this release, or none; told at once where the device listens."""
        self.counter += 1
        units = () if version is None else ((releases.UNIT, version, assignment or f"a{self.counter}"),)
        if self.document is not None:
            self.said.append(self.document)
        self.document = signed(self.counter, units, spread_s)
        agent = self.machine.agent
        if agent is not None and agent.alive and agent.ready:
            self.tell(agent)

    def tell(self, agent: AgentLife, times: int = 1) -> None:
        """The retained message arrives."""
        if self.document is not None and self.online and not self.machine.faults.lose():
            for _ in range(times):
                agent.spawn(agent.link.message("desired", self.document))

    def greet(self, agent: AgentLife) -> None:
        """A session is open."""
        if self.online:
            agent.spawn(agent.link.connected())
            self.tell(agent)

    def set_online(self, online: bool) -> None:
        """The network comes and goes."""
        self.online = online
        if online and self.machine.agent is not None and self.machine.agent.ready:
            self.greet(self.machine.agent)

    def receive(self, agent: AgentLife, kind: str, payload: bytes) -> None:
        """A message of the device. Raises Unreachable."""
        if not self.online or (kind == "event" and self.machine.faults.lose()):
            raise Unreachable("broker: lost")
        if kind != "event":
            return
        document = json.loads(payload)
        event = Event.model_validate_json(payload)
        known = self.events.get(event.number)
        if known is not None and known != document:
            self.machine.truth.note(f"event {event.number} was told twice, differently: {known} {document}")
        if known is None and event.number != len(self.events) + 1:
            self.machine.truth.note(f"event {event.number} came after {len(self.events)}: a gap")
        self.events[event.number] = document
        self.machine.later(ACK_S, lambda: self._acknowledge(agent))

    def _acknowledge(self, agent: AgentLife) -> None:
        if agent.alive and self.online and not self.machine.faults.lose():
            ack = acknowledgement(self.machine.journal.epoch, len(self.events))
            agent.spawn(agent.link.message("ack", ack))

    def knows_all(self) -> bool:
        """Nothing waits in the outbox."""
        return not self.online or not self.machine.journal.outbox

    def kinds(self) -> list[str]:
        """What was told, in order."""
        return [str(self.events[number]["kind"]) for number in sorted(self.events)]
