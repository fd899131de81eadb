"""A key that does not answer: what it costs, when the agent begins anew for it, and when not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from interlock_agent import key_watch
from interlock_agent.core.states import Event
from interlock_shared.documents import Verdict
from interlock_shared.errors import Later
from tests.agent.test_gating import Bench, Clock, Key


@dataclass
class Script:
    """What the key does at each look: `w`ell, `h`ere again, `o`nly others are answered, `a`way."""

    looks: str
    asked: list[str] = field(default_factory=list)

    @property
    def key_trouble(self) -> str:
        return "" if self.looks[:1] == "w" else "it does not answer"

    async def answers(self) -> bool:
        self.asked.append("here")
        if self.looks[0] == "h":
            self.looks = self.looks[1:]
            return True
        return False

    async def answers_others(self) -> bool:
        self.asked.append("elsewhere")
        look, self.looks = self.looks[0], self.looks[1:]
        return look == "o"


class Ticking(Clock):
    def __init__(self, key: Script) -> None:
        self.key, self.waits = key, list[float]()

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if self.key.looks[:1] == "w" and len(self.waits) > 1:
            self.key.looks = self.key.looks[1:]
        if not self.key.looks:
            raise asyncio.CancelledError


async def test_it_ends_when_others_are_answered_and_it_is_not() -> None:
    key = Script("haaao")
    await key_watch.lost(key, Ticking(key))
    assert key.asked == ["here", *["here", "elsewhere"] * 4]


@pytest.mark.parametrize("looks", ["www", "hhh", "aaaa"])
async def test_else_it_goes_on(looks: str) -> None:
    key = Script(looks)
    clock = Ticking(key)
    with pytest.raises(asyncio.CancelledError):
        await key_watch.lost(key, clock)
    assert ("elsewhere" in key.asked) == ("a" in looks)
    assert max(clock.waits) <= key_watch.CAP_S


async def test_a_key_that_does_not_answer_costs_the_release_nothing() -> None:
    """The device's key may be in a TPM or a token; a verdict is not one before it is signed."""

    class Away(Key):
        async def sign_verdict(self, verdict: Verdict) -> bytes:
            raise Later("tpm: the key cannot be used", code="key_away")

    bench = Bench()
    bench.shared.ports = replace(bench.shared.ports, signer=Away())
    happened = await bench.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "key_away")
