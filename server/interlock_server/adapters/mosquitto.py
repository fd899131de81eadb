"""An external Mosquitto: this server keeps its revocation list, and ends the sessions of who is on it.

A list read again does not drop an open session; taking over the client id does. Mosquitto is told to use the
certificate's name as the client id (`broker-config mosquitto`), so that a stand-in, a certificate of a few minutes in
the device's name, takes over exactly its session. To know, and not to hope, that the list is read:

1. A first stand-in is put on the list together with the device; the list is written, Mosquitto gets SIGHUP.
2. The first stand-in connects until it is refused: then the list is read, and the device cannot come back either.
3. A second one connects, and leaves: whatever session was open under this name has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from interlock_server.core import mqtt
from interlock_shared import durable
from interlock_shared.errors import Unreachable

log = logging.getLogger(__name__)

MODE = 0o644  # the list is no secret
CUT_S = 9.0  # a device that was revoked is out within ten seconds
AGAIN_S = 0.1  # between two tries of the first stand-in
CONNECT_S = 3.0
WRITE_EVERY_S = 6 * 3600.0  # the list has an end of its own, and a broker with an old one refuses everybody
RETRY_S = 30.0  # after a cut that could not be shown to hold


class Authority(Protocol):
    """What of the device CA is needed. Blocks."""

    @property
    def tls_ca(self) -> bytes: ...

    def crl(self, revoked: Mapping[str, datetime], now: datetime) -> bytes: ...

    def stand_in(self, device: str) -> tuple[bytes, str]:
        """(key and certificate as PEM, serial) of a few minutes in the device's name."""
        ...


@dataclass(frozen=True)
class Place:
    """Where Mosquitto is, and its files."""

    host: str
    port: int
    crl: Path
    pid: Path | None


class Mosquitto:
    """`start` once, then `run`, and `cut` for each device that is revoked. `revoked`: {serial: since when}."""

    def __init__(
        self,
        place: Place,
        authority: Authority,
        revoked: Callable[[], Awaitable[Mapping[str, datetime]]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._place, self._authority, self._revoked, self._sleep = place, authority, revoked, sleep
        self._lock = asyncio.Lock()
        self.uncertain: set[str] = set()  # devices whose cut could not be shown to hold

    async def start(self) -> None:
        """Write the list. Raises OSError."""
        async with self._lock:
            await self._write({})

    async def run(self) -> None:
        """Keep the list young, and try again what did not succeed. Until cancelled."""
        passed = 0.0
        while True:
            await self._sleep(RETRY_S)
            passed += RETRY_S
            try:
                for device in sorted(self.uncertain):
                    with contextlib.suppress(Unreachable):
                        await self.cut(device)
                if passed >= WRITE_EVERY_S:
                    await self.start()
                    passed = 0.0
            except Exception:  # the database or the disk: the server goes on, and tries again
                log.exception("the revocation list %s could not be kept; it is tried again", self._place.crl)

    async def cut(self, device: str) -> None:
        """The device's session has ended, and it is refused, when this returns. Raises Unreachable: that could not be
        shown in CUT_S; it is tried again by `run`.
        """
        self.uncertain.add(device)
        try:
            async with asyncio.timeout(CUT_S), self._lock:
                await self._cut(device)
        except (TimeoutError, OSError) as bad:
            why = "it does not read its list again" if isinstance(bad, TimeoutError) else str(bad)
            message = f"Mosquitto may still serve {device}: {why} ({self._place.crl}, {self._place.pid})"
            log.error("%s", message)
            raise Unreachable(message) from None
        self.uncertain.discard(device)

    async def _cut(self, device: str) -> None:
        first, serial = await asyncio.to_thread(self._authority.stand_in, device)
        await self._write({serial: datetime.now(UTC)})  # 1
        while True:
            if not await self._connects(first):  # 2
                second, _ = await asyncio.to_thread(self._authority.stand_in, device)
                if await self._connects(second):  # 3: else the refusal before it was not the list's
                    return
            await self._sleep(AGAIN_S)

    async def _write(self, more: Mapping[str, datetime]) -> None:
        revoked = {**await self._revoked(), **more}

        def work() -> None:
            _replace(self._place.crl, self._authority.crl(revoked, datetime.now(UTC)))
            self._reload()

        await asyncio.to_thread(work)

    def _reload(self) -> None:
        if self._place.pid is None:
            return
        try:
            os.kill(int(self._place.pid.read_text()), signal.SIGHUP)
        except (OSError, ValueError) as bad:
            log.warning("Mosquitto was not told to read its files again (%s): %s", self._place.pid, bad)

    async def _connects(self, pem: bytes) -> bool:
        """Whether Mosquitto lets this certificate in. Raises OSError: it does not answer at all."""
        context = await asyncio.to_thread(_context, pem, self._authority.tls_ca)
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self._place.host, self._place.port)
            try:
                await writer.start_tls(context, server_hostname=self._place.host)
                writer.write(mqtt.connect("stand-in"))
                answer = await reader.readexactly(4)
                writer.write(mqtt.DISCONNECT_PACKET)
                await writer.drain()
            except ssl.SSLCertVerificationError:
                raise  # the broker's own certificate: this is no answer about the device's
            except (OSError, asyncio.IncompleteReadError):
                return False
            finally:
                writer.close()
        return answer == mqtt.connack(mqtt.ACCEPTED)


def _context(pem: bytes, tls_ca: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=tls_ca.decode())
    with tempfile.NamedTemporaryFile() as file:  # 0600; `ssl` reads keys from files alone
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _replace(path: Path, data: bytes) -> None:
    """Owner, group and mode of a file that is there stay: Mosquitto has to be able to read it."""
    try:
        before = path.stat()
    except FileNotFoundError:
        durable.replace_file(path, data, mode=MODE)
        return
    durable.replace_file(path, data, mode=before.st_mode & 0o777)
    with contextlib.suppress(PermissionError):  # an ordinary user: the folder's group must do
        os.chown(path, before.st_uid, before.st_gid)
