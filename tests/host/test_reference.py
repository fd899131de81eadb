"""The host's page describes every setting and every error code that a client can see."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from interlock_agent.host.config import Settings

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "host.md").read_text()
HOST = ROOT / "agent" / "interlock_agent" / "host"


def test_every_setting_is_described_with_its_default() -> None:
    for field in fields(Settings):
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{field.name}` |")]
        default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        assert default in row


def test_every_code_of_the_inference_api_is_described() -> None:
    sources = [*(HOST / "front").glob("*.py"), *(HOST / "worker").rglob("*.py")]
    calls = r'(?:BadRequest|Malformed|Refused|_error)\(\s*\d+,\s*"([a-z_]+)"'
    codes = {code for path in sources for code in re.findall(calls, path.read_text())}
    router = (HOST / "front" / "router.py").read_text()
    codes |= set(re.findall(r'"(no_live_worker|overloaded|poison_request|non_finite_output)"', router))
    assert len(codes) > 30
    assert sorted(code for code in codes if f"`{code}`" not in PAGE) == []
