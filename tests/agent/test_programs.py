"""The owner's command as a process: where it stands, and what happens while it is not there."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from interlock_agent.adapters.programs import OwnersPrograms, ProgramProcess
from interlock_agent.config import Config
from interlock_agent.core.states import Event
from interlock_agent.host import messages
from interlock_agent.steps import gating
from interlock_agent.steps.gate.command import ByCommand
from interlock_shared.limits import ATTEMPTS_MAX
from tests.agent.material import UNIT
from tests.agent.test_gating import NOW, Bench
from tests.fakes.fetcher import FakeHardware


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is new in 3.11")
async def test_a_release_brings_no_module_to_a_command_in_python(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("print('the release ran', flush=True)\n")
    command = (sys.executable, "-c", "import json; print('the command ran', flush=True)")
    program = await OwnersPrograms().start(command, {}, str(tmp_path))
    try:
        assert await program.line(20.0) == b"the command ran\n"
    finally:
        await program.end()


SLOW = """
import sys, time
for question in sys.stdin:
    time.sleep(0.3)
    print("to " + question, end="", flush=True)
"""


async def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    program = await OwnersPrograms().start((sys.executable, "-c", SLOW), {}, str(tmp_path))
    try:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(program.ask(b"one\n", 20.0), 0.05)  # as a stage's budget ends it
        assert await program.ask(b"two\n", 20.0) == b"to two\n"
        assert await program.ask(b"three\n", 20.0) == b"to three\n"
    finally:
        await program.end()


class Watched(OwnersPrograms):
    """Starts this program, whatever the unit's is, and keeps it."""

    def __init__(self, *program: str) -> None:
        self.program, self.started = program, list[ProgramProcess]()

    async def start(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> ProgramProcess:
        del command, folder
        self.started.append(await super().start(self.program, environment, "/"))
        return self.started[-1]


async def test_a_command_whose_start_is_given_up_is_ended() -> None:
    bench, programs = Bench(), Watched("/bin/sleep", "600")
    by_command = ByCommand(bench.host, programs, FakeHardware(), bench.shared.ports.clock, bench.step().unit)
    order = messages.Load(UNIT, 3, "/nowhere", "candidate", bench.step().unit.options())
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(by_command.request(order), 0.5)
    (program,) = programs.started
    assert not Path(f"/proc/{program.pid}").exists()
    assert bench.host.orders == [("load", "candidate"), ("retire", "candidate")]


async def test_what_is_retired_has_ended_before_anything_else_is_measured() -> None:
    bench, programs = Bench(), Watched("/bin/sh", "-c", 'echo \'{"ready": true, "load_s": 7.5}\'; exec sleep 600')
    by_command = ByCommand(bench.host, programs, FakeHardware(), bench.shared.ports.clock, bench.step().unit)
    options = bench.step().unit.options()
    loaded = [await by_command.request(messages.Load(UNIT, 3, "/nowhere", r, options)) for r in ("candidate", "twin")]
    alive = [Path(f"/proc/{program.pid}") for program in programs.started]
    try:
        assert [one["load_s"] for one in loaded] == [7.5, 7.5], "as the command sees it"
        await by_command.request(messages.Retire(loaded[1]["worker"], 3))
        assert [path.exists() for path in alive] == [True, False]
        await by_command.request(messages.Retire(loaded[0]["worker"], 3))
        assert [path.exists() for path in alive] == [False, False]
        assert bench.host.orders == [("load", "candidate"), ("retire", "candidate")], "the host has no twin"
    finally:
        await by_command.end()


async def test_nothing_is_tried_while_the_owners_command_is_not_there(tmp_path: Path) -> None:
    program = tmp_path / "measure"
    config = Config.model_validate({"units": {UNIT: {"gate": {"command": [str(program)]}}}})
    bench = Bench(config=config)
    for _ in range(ATTEMPTS_MAX + 1):
        happened = await gating.await_gate(bench.step())
        assert (happened.event, happened.reason) == (Event.LATER, "no_command")
        assert happened.changes["until"] > NOW
        assert not bench.shared.gate_lock.locked()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert (await gating.await_gate(bench.step())).event is Event.GATE_FREE
