"""Write or check the closures: every distribution that lands on a device or on a server, with its version.

A closure is resolved with the existing file as the preference, so that it changes when our requirements change and not
when somebody publishes something. `--check` asks no index: it compares what the files pin with what the pyprojects
require, name by name, so that a new or moved requirement without a new closure is seen at once. A diff of a closure is
a review.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OURS = frozenset({"interlock-shared", "interlock-agent", "interlock-server"})


@dataclass(frozen=True)
class Closure:
    """One file: whose requirements, and for which machine they are resolved."""

    file: str
    rooms: tuple[str, ...]
    extras: tuple[str, ...]
    python: str
    platform: str
    machine: str


CLOSURES = (
    # Jetson: ONNX Runtime and TensorRT are in the system's Python, hence no extra.
    Closure("agent-3.10-aarch64.txt", ("shared", "agent"), (), "3.10", "aarch64-manylinux_2_35", "aarch64"),
    Closure("agent-3.11-x86_64.txt", ("shared", "agent"), ("cpu",), "3.11", "x86_64-manylinux_2_35", "x86_64"),
    Closure("server.txt", ("shared", "server"), (), "3.11", "x86_64-manylinux_2_35", "x86_64"),
)

# What must never land on a device, whatever pulls it in: the server's libraries, and a second runtime's tool chain.
NEVER_ON_A_DEVICE = frozenset(
    {"aiohttp", "alembic", "aiosqlite", "asyncpg", "onnx", "sqlalchemy", "torch", "interlock-server"}
)


class Pin(NamedTuple):
    """One line of a closure."""

    name: str
    version: str


def requirements(closure: Closure) -> list[Requirement]:
    """Third-party requirements of the closure's rooms that hold on its machine."""
    environment = {str(key): str(value) for key, value in default_environment().items()} | {
        "python_version": closure.python,
        "python_full_version": f"{closure.python}.0",
        "platform_machine": closure.machine,
        "sys_platform": "linux",
    }
    found = []
    for room in closure.rooms:
        project = tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"]
        texts = list(project["dependencies"])
        for extra in closure.extras:
            texts += project.get("optional-dependencies", {}).get(extra, [])
        for text in texts:
            requirement = Requirement(text)
            wanted = requirement.marker is None or requirement.marker.evaluate(environment)
            if wanted and canonicalize_name(requirement.name) not in OURS:
                found.append(requirement)
    return found


def pins(path: Path) -> list[Pin]:
    """The pinned distributions of a closure file."""
    found = []
    for line in path.read_text().splitlines():
        text = line.split("#")[0].split(";")[0].strip()
        if text:
            name, _, version = text.partition("==")
            found.append(Pin(canonicalize_name(name), version))
    return found


def write(closure: Closure) -> None:
    """Resolve one closure into its file; raises CalledProcessError when it cannot be resolved from wheels alone."""
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    with tempfile.TemporaryDirectory() as folder:
        # Bare requirements: the file must name no path of this machine and none of our own distributions.
        source = Path(folder) / "requirements.in"
        source.write_text("".join(f"{_bare(one)}\n" for one in requirements(closure)))
        subprocess.run(
            [uv, "pip", "compile", source, "--output-file", HERE / closure.file, "--quiet",
             "--python-version", closure.python, "--python-platform", closure.platform, "--only-binary", ":all:",
             "--no-header", "--no-annotate", "--no-emit-index-url"],
            check=True, cwd=folder, env={k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"},
        )  # fmt: skip


def _bare(requirement: Requirement) -> Requirement:
    """The same requirement without its marker, which has been judged already."""
    plain = Requirement(str(requirement))
    plain.marker = None
    return plain


def complaints(closure: Closure) -> list[str]:
    """What is wrong with a closure file against today's requirements; empty when nothing is."""
    path = HERE / closure.file
    if not path.exists():
        return [f"{closure.file}: not there"]
    pinned = {pin.name: pin.version for pin in pins(path)}
    found = []
    for requirement in requirements(closure):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{closure.file}: {requirement.name} is required and not pinned")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{closure.file}: {requirement.name} {version} does not satisfy {requirement.specifier}")
    if "agent" in closure.rooms:
        found += [
            f"{closure.file}: {name} must not land on a device" for name in sorted(NEVER_ON_A_DEVICE & set(pinned))
        ]
    return found


def main(arguments: list[str]) -> int:
    """Write all closures, or with --check only compare; the exit code says whether all is well."""
    if arguments not in ([], ["--check"]):
        print("usage: lock.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        for closure in CLOSURES:
            write(closure)
    found = [line for closure in CLOSURES for line in complaints(closure)]
    for line in found:
        print(line, file=sys.stderr)
    if found and arguments:
        print("run: make closure", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
