"""The listeners: TLS, with a client certificate where the other end has one; plain for a proxy on this machine."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from aiohttp import web

log = logging.getLogger(__name__)

SHUTDOWN_S = 5.0  # for requests that are being answered
LINGER_S = 1.0  # for the rest of a body that was refused: the answer should arrive, the body need not
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL
LOOK_S = 6 * 3600.0  # how often the server's certificate is looked at; a third of its life is left when it is renewed


class Files(Protocol):
    """Of the authorities: what the server listens with, and whom it believes."""

    @property
    def device_ca(self) -> bytes: ...

    def server_files(self, hosts: Sequence[str]) -> tuple[Path, Path]: ...


class Tls:
    """The context of every TLS listener of this server. Blocks when it is made."""

    def __init__(self, authority: Files, hosts: Sequence[str]) -> None:
        self._authority, self._hosts = authority, hosts
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_verify_locations(cadata=authority.device_ca.decode())
        self.context.verify_mode = ssl.CERT_OPTIONAL  # people have a token instead; who shows one must hold its key
        # An expired one is refused by `Identities`, who can say so: a handshake that fails is only a lost connection.
        self.context.verify_flags |= NO_CHECK_TIME
        self.load()

    def load(self) -> None:
        """The certificate as it is now, made again where it is due; new connections get it."""
        self.context.load_cert_chain(*self._authority.server_files(self._hosts))

    async def keep(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Renew in time, until cancelled."""
        while True:
            await sleep(LOOK_S)
            try:
                await asyncio.to_thread(self.load)
            except Exception:  # a full disk, say: weeks are left
                log.exception("the server's certificate could not be renewed; it is tried again")


async def runner(app: web.Application, stack: AsyncExitStack) -> web.AppRunner:
    """What serves the application on any number of addresses until the stack is closed."""
    made = web.AppRunner(
        app, handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_S, lingering_time=LINGER_S
    )
    await made.setup()
    stack.push_async_callback(made.cleanup)
    return made


async def listen(served: web.AppRunner, address: tuple[str, int], context: ssl.SSLContext | None) -> tuple[str, int]:
    """One more address, with TLS where there is a context; the real address. Raises OSError."""
    await web.TCPSite(served, *address, ssl_context=context).start()
    found = served.addresses[-1]
    return found[0], found[1]
