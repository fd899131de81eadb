"""What the server needs of the world, as small as it can be said."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from interlock_server.core.releases import Content
from interlock_shared.base import Signed

Row = dict[str, Any]
Clock = Callable[[], datetime]
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

    async def remove(self, table: str, **where: Any) -> int:
        """How many rows were removed."""
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

    @property
    def epoch(self) -> int:
        """Under which documents are ordered: the director's, as trusted metadata says."""
        ...

    def begin(self, roles: Collection[str]) -> None:
        """Make fresh online keys, to be named by metadata. Blocks."""
        ...


class OnlineSigners(Protocol):
    """The signers of snapshot, timestamp and director."""

    def candidates(self, role: str) -> Sequence[Any]:
        """Signers that metadata may name: the used one, and a fresh one."""
        ...

    def settle(self, named: Mapping[str, Collection[str]], epoch: int) -> None:
        """What trusted metadata names: the key ids of each role, the director's epoch."""
        ...


@dataclass(frozen=True)
class Checked:
    """A release role's next metadata: what it said, what it says, whose signatures hold, how many are needed; `data`:
    the bytes to store."""

    old: Content
    new: Content
    keyids: tuple[str, ...]
    threshold: int
    version: int
    data: bytes


class Issued(Protocol):
    """A certificate: PEM with its chain, serial, end of life."""

    @property
    def pem(self) -> bytes: ...
    @property
    def serial(self) -> str: ...
    @property
    def expires_at(self) -> datetime: ...


class Authority(Protocol):
    """Certificates for devices. Blocks: called in a thread."""

    def public_of(self, csr_pem: bytes) -> dict[str, Any]:
        """`{"keyid", "key"}` of a signing request. Raises Invalid (`bad_csr`)."""
        ...

    def issue(self, csr_pem: bytes, device: str, now: datetime, lifetime: timedelta) -> Issued: ...


class Repository(Protocol):
    """TUF metadata in files. Blocks: called in a thread, one call at a time."""

    def status(self) -> dict[str, Any] | None: ...

    def path(self, name: str) -> Path: ...

    def accept_trust(self, document: Mapping[str, Any], now: datetime) -> None: ...

    def check_release(self, model: str, metadata: Mapping[str, Any], now: datetime) -> Checked: ...

    def signers_of(self, model: str) -> tuple[dict[str, str], int]: ...

    def version_of(self, model: str) -> int: ...

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
