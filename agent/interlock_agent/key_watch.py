"""A key in a TPM or a token that this process has lost, and another could use.

What stands between OpenSSL and the device (a provider, a PKCS#11 module) may keep a broken connection for as long as
its process lives: after a resource manager was restarted, or a token was away. Then the agent ends, and systemd starts
it anew; what serves goes on meanwhile, as at every restart of the agent.
"""

from __future__ import annotations

import logging
from typing import Protocol

from interlock_agent.core.retry import backoff
from interlock_agent.ports import Clock

log = logging.getLogger("interlock.key")

LOOK_S = 5.0
CAP_S = 600.0  # between two tries of a key that is away: each starts a process


class HeldKey(Protocol):
    """The device's key."""

    @property
    def key_trouble(self) -> str:
        """Of its last use here; empty when it was well."""

    async def answers(self) -> bool:
        """Whether it does here, now."""

    async def answers_others(self) -> bool:
        """Whether it does in a process that begins now."""


async def lost(key: HeldKey, clock: Clock) -> None:
    """Returns when this process has lost the key, and another has not."""
    failures = 0
    while True:
        await clock.sleep(backoff(failures, clock.dice(), cap=CAP_S) if failures else LOOK_S)
        if not key.key_trouble or await key.answers():
            failures = 0
        elif await key.answers_others():
            log.warning("the device's key answers others and not this process, which begins anew: %s", key.key_trouble)
            return
        else:
            failures += 1
