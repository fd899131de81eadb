"""The owner's command as a process: where it stands, and what happens while it is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from interlock_agent.adapters.programs import OwnersPrograms
from interlock_agent.config import Config
from interlock_agent.core.states import Event
from interlock_agent.steps import gating
from interlock_shared.limits import ATTEMPTS_MAX
from tests.agent.material import UNIT
from tests.agent.test_gating import NOW, Bench


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is new in 3.11")
async def test_a_release_brings_no_module_to_a_command_in_python(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("print('the release ran', flush=True)\n")
    command = (sys.executable, "-c", "import json; print('the command ran', flush=True)")
    program = await OwnersPrograms().start(command, {}, str(tmp_path))
    try:
        assert await program.line(20.0) == b"the command ran\n"
    finally:
        await program.end()


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
