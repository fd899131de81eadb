"""The device's certificate is renewed by the device itself, when two thirds of its life are over.

- What is done is in fetcher/enrolment.py and can be cut short anywhere; here is when, and what people are told.
- A clock that is wrong may say that a fresh certificate is old: once a day of uptime is often enough.
- An expired or revoked certificate is tried all the same: the server's clock is the one that counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from interlock_agent.core.retry import backoff
from interlock_agent.core.times import rfc3339
from interlock_agent.ports import Clock
from interlock_shared.errors import InterlockError, Later

log = logging.getLogger("interlock.renewing")

LOOK_S = 3600.0
AGAIN_S = 24 * 3600.0  # between two renewals
CAP_S = 6 * 3600.0  # of the backoff after failures


class Certificate(Protocol):
    """What is to be known of the identity."""

    def lifetime(self) -> tuple[float, float, float] | None: ...

    def reload(self) -> None: ...


class Renewing:
    """`run` until cancelled; `describe` and `note` for status and report."""

    def __init__(self, certificate: Certificate, renew: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._certificate, self._renew, self._clock = certificate, renew, clock
        self._renewed: float | None = None
        self.trouble = ""

    def due(self) -> bool:
        """Whether it is time."""
        life = self._certificate.lifetime()
        if life is None:
            return False
        rested = self._renewed is None or self._clock.monotonic() - self._renewed >= AGAIN_S
        return rested and self._clock.now() >= life[1]

    async def run(self) -> None:
        """Look, renew, sleep."""
        failures = 0
        while True:
            if self.due():
                failures = 0 if await self.once() else failures + 1
            wait = backoff(failures, self._clock.dice(), cap=CAP_S) if failures else LOOK_S
            await self._clock.sleep(wait)

    async def once(self) -> bool:
        """One renewal; whether it is done."""
        try:
            await self._renew()
            await asyncio.to_thread(self._certificate.reload)
        except (InterlockError, OSError, ValueError) as error:  # the last two: what lies there cannot be read
            trouble = error.message if isinstance(error, InterlockError) else str(error)
            if trouble != self.trouble:
                log.log(logging.INFO if isinstance(error, Later) else logging.WARNING, "not renewed: %s", trouble)
            self.trouble = trouble
            return False
        self.trouble, self._renewed = "", self._clock.monotonic()
        log.info("the certificate was renewed")
        return True

    def describe(self) -> dict[str, str] | None:
        """For the status: when it ends, when it is renewed, what is in the way."""
        life = self._certificate.lifetime()
        if life is None:
            return None
        return {"expires_at": rfc3339(life[2]), "renew_at": rfc3339(life[1]), "trouble": self.trouble}

    def note(self) -> str:
        """What a person should know; empty when all is well."""
        life = self._certificate.lifetime()
        if life is None or self._clock.now() < life[1] or not self.trouble:
            return ""
        if self._clock.now() < life[2]:
            return f"certificate: expires at {rfc3339(life[2])[:19]}Z and is not renewed: {self.trouble}"
        again = "enrol again with a token for exactly this device (interlock-agent enrol --again)"
        return f"certificate: expired at {rfc3339(life[2])[:19]}Z; {again}: {self.trouble}"
