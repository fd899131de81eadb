"""What the documents name exists, and what exists is described.

Everything that is stable for users is read from the code: error codes, topics and routes, phases, settings, commands
and options. A page under docs/reference/ describes one when it has the very word in backticks.
"""

from __future__ import annotations

import codecs
import enum
import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import pages

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
DISTRIBUTIONS = ("shared", "agent", "server")


def _tracked(pattern: str = "*") -> list[Path]:
    """Files that git knows or would take; all files where there is no git (an unpacked archive)."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [path for name in names if name and (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob(pattern) if path.is_file() and ".venv" not in path.parts]


def _pages(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.md")))


def _described(words: set[str], page: str) -> list[str]:
    """Those words that no page has in backticks, alone or at the start or end of what stands in them."""
    spans = set(re.findall(r"`([^`\n]+)`", page))
    tokens = spans | {token for span in spans for token in span.split()}
    return sorted(word for word in words if word not in tokens)


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


# --- what documents name exists ---------------------------------------------------------------------------------------


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _scripts() -> set[str]:
    found: set[str] = set()
    for folder in DISTRIBUTIONS:
        found |= set(tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"].get("scripts", {}))
    return found


def _code(text: str) -> Iterator[str]:
    """The lines of code blocks, and what stands in backticks."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", _tracked("*.md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_documents_exist(page: Path) -> None:
    unknown = []
    for line in _code(page.read_text()):
        words = line.lstrip("$ ").split("#")[0].split()
        if words[:1] == ["make"]:
            targets = list(takewhile(re.compile(r"[a-z][a-z-]*$").match, words[1:]))
            unknown += [f"make {target}" for target in targets if target not in _make_targets()]
        elif words and re.fullmatch(r"interlock(-[a-z]+)?", words[0]) and len(words) > 1:
            unknown += [] if words[0] in _scripts() else [words[0]]
    assert unknown == []


def _anchors(text: str) -> set[str]:
    """Anchors of a page's headings, the way the usual renderers make them."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def _broken_links(page: Path, text: str) -> list[str]:
    broken = []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in _anchors(path.read_text())):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", _tracked("*.md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    assert _broken_links(page, page.read_text()) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# One head\n")
    text = "[x](b.md) [y](#one-head) [z](#two) [w](https://example.org/x) [v](a.md#one-head)"
    assert _broken_links(page, text) == ["b.md", "#two"]


# --- what exists is described -----------------------------------------------------------------------------------------


def _error_codes(module: ModuleType) -> set[str]:
    classes = [one for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, Exception)]
    codes = [getattr(one, "code", None) for one in classes]
    return {code for code in codes if isinstance(code, str)}


def _addresses(module: ModuleType) -> set[str]:
    """Topics and routes: string constants in capitals with a slash in them."""
    return {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str) and "/" in value}


def _settings(module: ModuleType) -> set[str]:
    """Fields of the settings models, by the name that a file or a command line uses."""
    from pydantic import BaseModel

    models = [one for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, BaseModel)]
    own = [model for model in models if model.__module__ == module.__name__]
    return {field.alias or name for model in own for name, field in model.model_fields.items()}


def test_error_codes_are_described() -> None:
    assert _described(_error_codes(_module("interlock_shared.errors")), _pages(REFERENCE)) == []


def test_topics_and_routes_are_described() -> None:
    assert _described(_addresses(_module("interlock_shared.topics")), _pages(REFERENCE)) == []


@pytest.mark.parametrize("name", pages.PAGES)
def test_printed_pages_are_what_the_code_prints(name: str) -> None:
    assert (ROOT / name).read_text() == pages.PAGES[name](), "make pages"


def test_phases_are_described() -> None:
    phase = _module("interlock_agent.core.states").Phase
    assert issubclass(phase, enum.Enum)
    assert _described({str(one.value) for one in phase}, _pages(REFERENCE)) == []


@pytest.mark.parametrize("name", ["interlock_agent.config", "interlock_agent.host.config", "interlock_server.config"])
def test_settings_are_described(name: str) -> None:
    assert _described(_settings(_module(name)), _pages(REFERENCE)) == []


def _words_of(command: Any, path: str) -> set[str]:
    """Every command's full name and every option of a click command and those below it."""
    words = {path}
    for option in command.params:
        words |= {word for word in (*option.opts, *option.secondary_opts) if word.startswith("--")} - {"--help"}
    for name, below in getattr(command, "commands", {}).items():
        words |= _words_of(below, f"{path} {name}")
    return words


@pytest.mark.parametrize(
    ("name", "program"), [("interlock_agent.cli", "interlock-agent"), ("interlock_server.cli", "interlock")]
)
def test_commands_and_options_are_described(name: str, program: str) -> None:
    module = _module(name)
    page = ROOT / "docs" / f"cli-{program}.md"
    from typer.main import get_command

    assert _described(_words_of(get_command(module.app), program), page.read_text()) == []


def test_what_is_not_described_is_seen() -> None:
    page = "Codes: `no_space`, `interlock bundle show`, `--json FILE`."
    assert _described({"no_space", "interlock bundle show", "--json", "busy"}, page) == ["busy"]


# --- words that have no place in the repository -----------------------------------------------------------------------

# Names of writing aids, turned by 13 so that this file does not hold them itself.
_TURNED = ("pynhqr", "naguebcvp", "pungtcg", "bcranv", "pbcvybg", "trzvav", "nvqre-pung", "pbqrk")
FOREIGN_WORDS = re.compile(rf"\b({'|'.join(codecs.decode(word, 'rot13') for word in _TURNED)})\b", re.IGNORECASE)
# Folders of the machine something was written on.
MACHINE_PATHS = re.compile(r"/(?:root|work|home/[a-z]+)/[\w.]+")


def test_tracked_files_name_neither_tools_nor_machines() -> None:
    found = []
    for path in _tracked():
        where = path.relative_to(ROOT).as_posix()
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{where}: {match[0]}" for match in FOREIGN_WORDS.finditer(text)]
        found += [f"{where}: {match[0]}" for match in MACHINE_PATHS.finditer(text)]
    assert found == []
