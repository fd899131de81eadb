"""docs/reference/server.md describes every route, option, code and figure."""

from __future__ import annotations

import re
from pathlib import Path

from interlock_server.__main__ import _parser
from interlock_server.core.rollout import NEXT, STATES
from interlock_server.http.app import NOBODY, ROUTES, STATUS
from interlock_server.http.openapi import public_path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference" / "server.md").read_text()
WORDS = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_every_route_and_role_is_described() -> None:
    for route in ROUTES:
        line = next(
            one
            for one in PAGE.splitlines()
            if one.startswith("| ") and f"`{route.method} {public_path(route.path)}`" in one
        )
        role = "the token" if route.path.endswith("/enrol") else route.role if route.role != NOBODY else "–"
        assert f"| {role}" in line


def test_every_option_is_described() -> None:
    run = _parser()._subparsers._group_actions[0].choices["run"]  # type: ignore[union-attr, index]
    options = {word for action in run._actions for word in action.option_strings if word.startswith("--")}
    assert options <= WORDS


def test_every_status_and_code_is_described() -> None:
    for kind, status in STATUS[:10]:
        assert re.search(rf"\| `{kind.__name__}` \| {status}\b", PAGE)
    folder = ROOT / "server" / "interlock_server"
    listens = [path for path in folder.rglob("*.py") if path.name != "cli.py" and "publisher" not in path.parts]
    sources = [path.read_text() for path in listens]
    codes = {code for text in sources for code in re.findall(r'code="([a-z_]+)"', text)}
    assert codes - WORDS == set()


def test_every_state_and_event_is_described() -> None:
    table = PAGE.partition("## Rollouts")[2].partition("## MQTT")[0]
    for word in {*STATES, *(kind for kind, state in NEXT.items() if state)}:
        assert f"`{word}`" in table
