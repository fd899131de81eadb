"""A fetcher's child that cannot be started, or that says what no fetcher says: later, and never the agent's end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from interlock_agent.adapters.clock import SystemClock
from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.ports import Stored
from interlock_shared.errors import Unreachable


@pytest.mark.parametrize(
    ("said", "code"),
    [(None, "io"), ("echo this is not JSON", "fetcher_died"), ("echo 7", "fetcher_died"), ("exit 1", "fetcher_died")],
    ids=["cannot be started", "no JSON", "no answer", "ended"],
)
async def test_trouble_with_the_child_is_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, code: str
) -> None:
    program = tmp_path / "python"
    if said is not None:
        program.write_text(f"#!/bin/sh\n{said}\n")
        os.chmod(program, 0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    fetcher = FetcherProcess(tmp_path, "press-7", {"server": "https://fleet.example"}, SystemClock(), Stored())
    with pytest.raises(Unreachable) as later:
        await fetcher.refresh()
    assert later.value.code == code
