"""What the server needs of the world, as small as it can be said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from interlock_shared.base import Signed

Row = dict[str, Any]
Clock = Callable[[], datetime]
Joined = Callable[[str, str], Awaitable[None]]  # tells a broker of a device and its password
Changed = Callable[[Iterable[str]], None]  # ids of devices whose desired document may be another one now


class Rows(Protocol):
    """One transaction. Conditions are equalities, or `(operator, value)` with <, >, in."""

    async def find(self, table: str, **where: Any) -> Row | None: ...

    async def list(
        self, table: str, *, order: str = "", newest: bool = False, limit: int | None = None, **where: Any
    ) -> list[Row]: ...

    async def insert(self, table: str, **values: Any) -> None: ...

    async def insert_new(self, table: str, **values: Any) -> bool:
        """False, and nothing done, when a row with this key is there."""
        ...

    async def change(self, table: str, where: Mapping[str, Any], **values: Any) -> int:
        """How many rows were changed."""
        ...

    async def count(self, table: str, by: str) -> dict[str, int]: ...


class Store(Protocol):
    """Transactions; what `writing` has left is durable."""

    def reading(self) -> AbstractAsyncContextManager[Rows]: ...

    def writing(self) -> AbstractAsyncContextManager[Rows]: ...


class Link(Protocol):
    """The broker. Raises Unreachable while there is none: what was not sent is sent again after a reconnect."""

    async def publish(self, topic: str, payload: bytes, *, retain: bool) -> None: ...


class Sealer(Protocol):
    """Signs documents with the director's key, as DSSE envelopes."""

    def seal(self, model: Signed, payload_type: str) -> bytes: ...

    def public(self) -> dict[str, Any]: ...


class Repository(Protocol):
    """TUF metadata in files. Blocks: called in a thread, one call at a time."""

    def status(self) -> dict[str, Any] | None: ...

    def path(self, name: str) -> Path: ...

    def accept_trust(self, document: Mapping[str, Any], now: datetime) -> None: ...

    def check_release(self, model: str, metadata: Mapping[str, Any], now: datetime) -> tuple[dict[str, Any], bytes]:
        """({"old": targets, "new": targets, "version": …}, bytes to store) of metadata whose signature holds."""
        ...

    def add_release(self, model: str, metadata: bytes, now: datetime) -> None: ...

    def refresh(self, now: datetime) -> bool:
        """Sign snapshot and timestamp again when they are due; whether it did."""
        ...


class Receiver(Protocol):
    """One upload; `stored`: bytes of the transport form."""

    stored: int

    def feed(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def discard(self) -> None: ...


class Blobs(Protocol):
    """Segments in their transport form. Blocks: called in a thread."""

    def path(self, sha256: str) -> Path: ...

    def receive(self, sha256: str, form: str, size: int) -> Receiver: ...
