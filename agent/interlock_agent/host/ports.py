"""What the host needs from outside itself. A simulation drives `core` and `engine` through fakes of these.

Rules of the file:
- Everything the engine does to the world goes through a method here, and is awaited.
- A failing disk is an `OSError`. A worker that cannot do what it was asked for is a `WorkerError`.
- What the world reports by itself (a worker died, figures) goes to the engine's methods of the same name, in order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from interlock_agent.host.messages import Evaluation, Loaded, Looked, Probe, Promoted, Samples
from interlock_agent.host.states import Release


class WorkerError(Exception):
    """A worker did not do it. `code` is one of `messages.CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass(frozen=True)
class Upstream:
    """A worker as the front sees it."""

    worker: str
    release: str
    generation: int


class Store(Protocol):
    """Durable state: one document a unit, the links, the seals. Everything written is durable on return."""

    async def units(self) -> list[str]:
        """Names of the units that have a document (also a broken one) or a folder of slots."""

    async def read(self, unit: str) -> dict[str, Any] | None:
        """The document; None when there is none. Raises ValueError after it set a broken one aside."""

    async def write(self, unit: str, document: dict[str, Any]) -> None:
        """Replace the document. Raises OSError."""

    async def links(self, unit: str) -> tuple[str, str]:
        """Slots that `confirmed` and `live` point to; "" for a missing or foreign link."""

    async def link(self, unit: str, name: str, slot: str) -> None:
        """Point `confirmed` or `live` to a slot; "" removes the link. Raises OSError."""

    async def seal(self, unit: str, slot: str) -> Release | None:
        """What the seal of a slot says; None when there is no readable one."""

    async def seal_of(self, folder: str) -> Release | None:
        """The same for a folder anywhere."""

    def slot_folder(self, unit: str, slot: str) -> str:
        """The absolute path of a slot."""


class Workers(Protocol):
    """Processes with a loaded model each."""

    async def start(
        self,
        worker: str,
        unit: str,
        folder: str,
        generation: int,
        options: dict[str, Any],
        room: Callable[[], Awaitable[None]] | None = None,
    ) -> Loaded:
        """Start one and wait until it has loaded. Raises WorkerError; then no process is left. From the return on
        the end of the process is reported to the engine as `worker_died`. `room` is awaited when it is verified,
        before the model is opened; its WorkerError ends the worker."""

    async def probe(self, order: Probe) -> Samples:
        """Raises WorkerError; a worker that hangs is killed."""

    async def evaluate(self, worker: str, timeout_s: float, answers: str = "", items: int = 0) -> Evaluation:
        """Raises WorkerError; a worker that hangs is killed."""

    async def look(self, worker: str, timeout_s: float) -> Looked:
        """Raises WorkerError; a worker that hangs is killed."""

    async def serves(self, worker: str) -> None:
        """It is the live one now: a candidate's limits are lifted to the owner's, and it is no longer made nicer."""

    async def end(self, worker: str) -> None:
        """Begin to end its process, also while it starts; does not wait. An unknown one is no error."""

    async def gone(self, worker: str) -> None:
        """Wait until the process of one that was told to end has gone; at once for an unknown one."""

    def pid(self, worker: str) -> int:
        """Its process id, 0 when it has none."""

    def said(self, worker: str) -> list[str]:
        """The last lines on its standard error."""


class Fronts(Protocol):
    """The processes that own the clients, one a unit."""

    async def check(self, unit: str, options: dict[str, Any]) -> None:
        """Whether somebody who asks for new options can have them. Raises OSError, ValueError."""

    async def open(self, unit: str, listen: str, options: dict[str, Any]) -> str:
        """Listen and start the front; the address that clients use. `options`: as `Configure` has them; who may ask is
        among them. Raises OSError, ValueError."""

    async def limit(self, unit: str, options: dict[str, Any]) -> None:
        """The options have changed. Raises OSError, ValueError."""

    async def move(self, unit: str, listen: str, access: dict[str, Any]) -> str:
        """Listen on another address, as `open`. Raises OSError, ValueError; then it is as it was."""

    async def serve(
        self,
        unit: str,
        live: Upstream | None,
        standby: Upstream | None,
        drain_s: float,
        wait_s: float = 0.0,
        expected_s: float = 0.0,
    ) -> Awaitable[Promoted]:
        """Switch. Returns when new requests go to `live`; what is returned is awaited for the end of the former
        one's requests. With `drain_s` 0 those are given to `live` at once. The front that dies is replaced, and
        the last order repeated. Without `live` requests wait for `wait_s` at the least; those that cannot are told to
        come again in `expected_s`."""

    async def settle(self, unit: str) -> None:
        """Return when everything that the front knew when asked has been reported to the engine (bounded)."""


class Hooks(Protocol):
    """How an application that reads `live` is told that it has moved."""

    async def run(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        """Run the owner's hook; what is wrong, or "" when it went well. Bounded by the hook's `timeout_s`."""

    async def lost(self, hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        """Why what was told no longer holds (the server has forgotten it), or ""."""

    async def away(self, hook: Mapping[str, Any]) -> str:
        """Why it would be no use to run it now (the server does not answer), or ""."""


class Clock(Protocol):
    """Time."""

    def now(self) -> float:
        """CLOCK_BOOTTIME in seconds: it goes on in suspend and never jumps."""

    def utc(self) -> float:
        """UTC, seconds since 1970."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Events(Protocol):
    """Where events for the agents go."""

    def push(self, event: dict[str, Any]) -> None:
        """Send to every connected agent; never blocks."""
