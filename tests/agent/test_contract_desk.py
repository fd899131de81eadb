"""The contract is shown, and changes when a person accepts what was shown."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interlock_agent import cli
from interlock_agent.adapters.control import ControlSocket
from interlock_agent.adapters.slots import SlotFolders
from interlock_agent.contract_desk import ContractDesk
from interlock_agent.core.contract import contract_of
from interlock_agent.core.records import Installed
from interlock_shared import manifest as manifests
from interlock_shared.errors import Conflict, NotFound
from tests.agent.material import UNIT, digest_of, record, tensor, the_manifest

FIRST = the_manifest("1.0.0")
WIDER = {"inputs": [tensor("x"), tensor("z")], "outputs": [tensor("y")]}
CONFIRMED = replace(record(), confirmed=Installed("1.0.0", digest_of(FIRST), FIRST.payload_sha256(), "a"))


class Desk:
    """Over real folders, with a first confirmed release and its contract."""

    def __init__(self, state: Path) -> None:
        self.slots = SlotFolders(state)
        self.forgiven: list[tuple[str, str]] = []
        self.desk = ContractDesk(self.slots, self.forgive)
        slot = state / "slots" / UNIT / "a" / ".interlock"
        slot.mkdir(parents=True)
        (slot / "manifest.json").write_bytes(manifests.to_bytes(FIRST))

    async def forgive(self, payload: str, reason: str) -> int:
        self.forgiven.append((payload, reason))
        return 1

    async def refused(self, **signature: Any) -> dict[str, Any]:
        """A verdict that refuses a candidate of that signature; what it offered."""
        offered = contract_of(the_manifest("1.1.0", signature=WIDER | signature).signature)
        check = {"check": "contract", "outcome": "fail", "detail": {"offered": offered}}
        verdict = {"model": UNIT, "version": "1.1.0", "payload_sha256": "7" * 64, "stages": [{"checks": [check]}]}
        await self.slots.keep_verdict(UNIT, 3, json.dumps(verdict).encode(), b"{}")
        return offered


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    await made.slots.set_contract(UNIT, contract_of(FIRST.signature))
    return made


async def test_the_confirmed_release_keeps_its_own_contract(desk: Desk) -> None:
    shown = await desk.desk.look(CONFIRMED, candidate=False)
    assert (shown["release"], shown["difference"]) == (f"{UNIT} 1.0.0", [])


async def test_a_refused_candidate_becomes_the_contract_and_may_be_tried_again(desk: Desk) -> None:
    offered = await desk.refused()
    shown = await desk.desk.look(CONFIRMED, candidate=True)
    assert (shown["release"], shown["difference"]) == (f"{UNIT} 1.1.0", ["+ input z FP32 [-1, 4]"])
    answer = await desk.desk.accept(CONFIRMED, candidate=True, digest=shown["proposed_sha256"])
    assert (answer["accepted"], await desk.slots.contract(UNIT)) == (True, offered)
    assert desk.forgiven == [("7" * 64, "contract_broken")]


async def test_a_verdict_that_comes_meanwhile_does_not_become_the_contract(desk: Desk) -> None:
    offered = await desk.refused()
    shown = await desk.desk.look(CONFIRMED, candidate=True)
    compared = desk.slots.contract

    async def another_comes(unit: str) -> dict[str, Any] | None:
        await desk.refused(outputs=[tensor("y", [-1, 9])])
        return await compared(unit)

    desk.slots.contract = another_comes  # type: ignore[method-assign]
    await desk.desk.accept(CONFIRMED, candidate=True, digest=shown["proposed_sha256"])
    assert await compared(UNIT) == offered


async def test_what_has_changed_since_it_was_shown_is_not_accepted(desk: Desk) -> None:
    await desk.refused()
    shown = await desk.desk.look(CONFIRMED, candidate=True)
    await desk.refused(outputs=[tensor("y", [-1, 9])])
    with pytest.raises(Conflict):
        await desk.desk.accept(CONFIRMED, candidate=True, digest=shown["proposed_sha256"])
    assert await desk.slots.contract(UNIT) == contract_of(FIRST.signature)
    assert desk.forgiven == []


async def test_there_may_be_nothing_to_accept(desk: Desk) -> None:
    with pytest.raises(NotFound, match="no contract"):
        await desk.desk.look(CONFIRMED, candidate=True)
    with pytest.raises(NotFound, match="nothing is confirmed"):
        await desk.desk.look(record(), candidate=False)


@pytest.mark.parametrize(
    ("words", "typed", "code", "changed"),
    [
        (["accept", UNIT, "--candidate"], "y\n", 0, True),
        (["accept", UNIT, "--candidate"], "n\n", 1, False),
        (["accept", UNIT, "--candidate", "--yes", "--json"], "", 0, True),
        (["accept", UNIT, "--candidate", "--json"], "", 2, False),
        (["show", UNIT, "--candidate"], "", 0, False),
    ],
)
async def test_the_command(
    desk: Desk, short_path: Path, words: list[str], typed: str, code: int, changed: bool
) -> None:
    offered = await desk.refused()

    async def handle(op: str, fields: dict[str, Any], descriptor: int, tell: Any) -> dict[str, Any]:
        del descriptor, tell
        assert op == "contract"
        if "accept" in fields:
            return await desk.desk.accept(CONFIRMED, fields["candidate"], fields["accept"])
        return await desk.desk.look(CONFIRMED, fields["candidate"])

    listening = ControlSocket(short_path / "agent.sock", handle)
    await listening.start()
    config = short_path / "agent.toml"
    config.write_text(f'[device]\nrun_dir = "{short_path}"\n')
    arguments = ["contract", *words, "--config", str(config)]
    done = await asyncio.to_thread(lambda: CliRunner().invoke(cli.app, arguments, input=typed))
    await listening.stop()
    assert done.exit_code == code, done.output
    assert ("+ input z FP32" in done.output) is ("--json" not in words)
    assert (await desk.slots.contract(UNIT) == offered) is changed
