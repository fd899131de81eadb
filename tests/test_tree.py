"""The tree is as tests/tree_rules.py says, and the checker catches one planted violation of each rule."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import tree_check as check
from tests import tree_rules as rules

ROOT = Path(__file__).resolve().parent.parent


def _project(folder: str) -> dict[str, object]:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    assert isinstance(project, dict)
    return project


@pytest.mark.parametrize("rule", check.CHECKS, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Callable[[check.Tree], Iterator[str]]) -> None:
    assert list(rule(check.Tree(ROOT))) == []


def test_no_file_and_no_function_is_too_long() -> None:
    assert list(check.sizes(ROOT)) == []


def test_what_may_be_long_is_there() -> None:
    named = {where.partition(":")[0] for where in (*rules.LONG_FILES, *rules.LONG_FUNCTIONS)}
    assert [where for where in sorted(named) if not (ROOT / where).exists()] == []


def test_versions_are_equal() -> None:
    versions = {folder: _project(folder)["version"] for folder in rules.DISTRIBUTIONS}
    for folder, package in rules.DISTRIBUTIONS.items():
        text = (ROOT / folder / package / "__init__.py").read_text()
        found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
        assert found, f"{package} has no __version__"
        versions[package] = found[1]
    version = _project("shared")["version"]
    for folder in ("agent", "server"):
        dependencies = _project(folder)["dependencies"]
        assert isinstance(dependencies, list)
        assert f"interlock-shared=={version}" in dependencies
    assert set(versions.values()) == {version}, versions


def test_every_distribution_is_typed() -> None:
    for folder, package in rules.DISTRIBUTIONS.items():
        assert (ROOT / folder / package / "py.typed").exists()


def test_importing_the_agent_loads_nothing_heavy() -> None:
    """What the agent process imports stays small: no numpy, no runtime, no TUF client, nothing of the server."""
    modules = [
        source.module
        for source in check.Tree(ROOT).sources
        if source.module.startswith(rules.AGENT)
        and not source.module.startswith((rules.HOST, rules.FETCHER, rules.TRUST_CLIENT))
        and not source.module.endswith("__main__")
        and ".cli" not in source.module
    ]
    script = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"numpy", "onnxruntime", "onnx", "tuf", "aiohttp", "sqlalchemy", "interlock_server"}
    assert heavy.isdisjoint(done.stdout.split())


# One planted violation each: file, its text, what the complaint must say.
PLANTED = [
    ("agent/interlock_agent/engine.py", "import interlock_server", "must not import interlock_server"),
    ("server/interlock_server/engine.py", "from interlock_agent import config", "must not import"),
    ("shared/interlock_shared/a.py", "import interlock_agent.config", "must not import"),
    ("agent/interlock_agent/cli/x.py", "from interlock_agent.host import core", "must not import interlock_agent.host"),
    ("agent/interlock_agent/cli/x.py", "from interlock_agent import __main__", "nobody imports __main__"),
    ("agent/interlock_agent/cli/x.py", "from . import config", "relative import"),
    ("agent/interlock_agent/host/worker/open.py", "import interlock_shared.errors", "must not import interlock_shared"),
    ("agent/interlock_agent/host/worker/open.py", "import interlock_agent.host.core", "must not import"),
    ("agent/interlock_agent/host/front/app.py", "import numpy", "numpy is imported outside its home"),
    ("agent/interlock_agent/fetcher/run.py", "import interlock_agent.config", "must not import"),
    ("server/interlock_server/http/x.py", "import interlock_server.publisher.build", "must not import"),
    ("agent/interlock_agent/__init__.py", "import interlock_agent.config", "an __init__ imports nothing"),
    ("agent/interlock_agent/core/x.py", "import interlock_agent.config", "core must not import"),
    ("agent/interlock_agent/core/x.py", "import interlock_agent.ports", "core must not import"),
    ("agent/interlock_agent/adapters/x.py", "import interlock_agent.adapters.broker", "adapters must not import"),
    ("agent/interlock_agent/adapters/x.py", "import interlock_agent.engine", "adapters must not import"),
    ("agent/interlock_agent/engine.py", "import interlock_agent.adapters.broker", "engine must not import"),
    ("server/interlock_server/http/x.py", "import interlock_server.adapters.broker", "http must not import"),
    ("agent/interlock_agent/core/x.py", "from pathlib import Path", "no place in a pure file"),
    ("agent/interlock_agent/core/x.py", "import time", "no place in a pure file"),
    ("agent/interlock_agent/core/x.py", "x = open('x')", "no place in a pure file"),
    ("agent/interlock_agent/core/x.py", "async def f() -> None:\n    '''.'''", "waits for nothing"),
    ("agent/interlock_agent/host/core.py", "import os", "no place in a pure file"),
    ("shared/interlock_shared/a.py", "import datetime\nx = datetime.datetime.now()", "no place in a pure file"),
    ("agent/interlock_agent/engine.py", "import aiomqtt", "aiomqtt is imported outside its home"),
    ("agent/interlock_agent/engine.py", "def f() -> None:\n    '''.'''\n    import sqlite3", "outside its home"),
    (
        "agent/interlock_agent/engine.py",
        "import importlib\nimportlib.import_module('tuf.ngclient')",
        "outside its home",
    ),
    ("agent/interlock_agent/engine.py", "import requests", "requests has no home"),
    ("agent/interlock_agent/engine.py", "def f() -> None: pass", "f has no docstring"),
    ("agent/interlock_agent/engine.py", None, "no module docstring"),
    ("agent/interlock_agent/engine.py", "x = 1\n" * 401, "403 lines"),
    ("agent/interlock_agent/engine.py", "def f() -> None:\n    '''.'''\n" + "    x = 1\n" * 60, "has 62 lines"),
]
STANDING = """
shared/interlock_shared/errors.py agent/interlock_agent/__init__.py agent/interlock_agent/config.py
agent/interlock_agent/ports.py agent/interlock_agent/__main__.py agent/interlock_agent/engine.py
agent/interlock_agent/adapters/broker.py agent/interlock_agent/host/core.py server/interlock_server/engine.py
server/interlock_server/adapters/broker.py server/interlock_server/publisher/build.py
""".split()


def _plant(root: Path, file: str, text: str) -> list[str]:
    for name in (*STANDING, file):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('"""What it is."""\n' if name != file else text)
    tree = check.Tree(root)
    return [line for rule in check.CHECKS for line in rule(tree)] + list(check.sizes(root))


@pytest.mark.parametrize(("file", "text", "complaint"), PLANTED)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, text: str | None, complaint: str) -> None:
    found = _plant(tmp_path, file, "" if text is None else f'"""What it is."""\n{text}\n')
    assert [line for line in found if complaint in line], found


GOOD = [
    ("agent/interlock_agent/core/x.py", "from pathlib import PurePosixPath\nfrom interlock_shared.errors import Never"),
    ("agent/interlock_agent/engine.py", "from interlock_agent import __version__, config, ports"),
    ("agent/interlock_agent/__main__.py", "from interlock_agent.adapters import broker\nimport interlock_agent.engine"),
    ("agent/interlock_agent/adapters/broker.py", "import aiomqtt\nfrom interlock_agent import ports"),
    ("agent/interlock_agent/adapters/host_client.py", "from interlock_agent.host.messages import Hello"),
    ("agent/interlock_agent/host/worker/open.py", "import numpy\nfrom interlock_agent.host import lifeline, wire"),
    ("server/interlock_server/cli.py", "from interlock_server.publisher import build"),
    ("shared/interlock_shared/durable.py", "import os\nfrom pathlib import Path"),
]


@pytest.mark.parametrize(("file", "text"), GOOD)
def test_what_is_meant_is_let_through(tmp_path: Path, file: str, text: str) -> None:
    for name in ("messages", "wire", "lifeline"):
        path = tmp_path / f"agent/interlock_agent/host/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"""What it is."""\n')
    assert _plant(tmp_path, file, f'"""What it is."""\n{text}\n') == []
