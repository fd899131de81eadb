"""Cloned devices are marked, told as an event, and written into the audit log: once, and then again when it is an hour
old. The rules are in core/clones.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from interlock_server.auditing import record
from interlock_server.core import clones
from interlock_server.core.access import Actor
from interlock_server.core.moments import parse
from interlock_server.ports import Row, Rows
from interlock_shared.documents import Event

log = logging.getLogger(__name__)

EPOCH = "of-the-server"  # of events that no device has sent
QUIET = timedelta(hours=1)
SERVER = Actor("server", "admin", "local")


async def mark(rows: Rows, row: Row, why: str, at: str, addresses: Sequence[str] = ()) -> None:
    """This identity is in use twice."""
    device, before = row["id"], row["clone"]
    clone = clones.marked(before, why, at, addresses)
    await rows.change("devices", {"id": device}, clone=clone)
    row["clone"] = clone
    if before is not None and parse(at) - parse(before["last_at"]) < QUIET:
        return
    log.warning("device %s is in use twice: %s", device, why)
    number = len(await rows.list("events", device=device, epoch=EPOCH)) + 1
    event = Event(device=device, epoch=EPOCH, number=number, at=at, kind="cloned", reason=why, data=clone)
    document = event.model_dump(mode="json", by_alias=True)
    told = {"device": device, "epoch": EPOCH, "number": number, "received_at": at, "kind": "cloned"}
    await rows.insert("events", **told, assignment=None, document=document)
    await record(rows, at, SERVER, "device.cloned", device, why=why)
