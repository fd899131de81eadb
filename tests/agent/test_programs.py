"""The owner's command as a process: what it may take from the folder of the release that it stands in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from interlock_agent.adapters.programs import OwnersPrograms


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is new in 3.11")
async def test_a_release_brings_no_module_to_a_command_in_python(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("print('the release ran', flush=True)\n")
    command = (sys.executable, "-c", "import json; print('the command ran', flush=True)")
    program = await OwnersPrograms().start(command, {}, str(tmp_path))
    try:
        assert await program.line(20.0) == b"the command ran\n"
    finally:
        await program.end()
