"""`interlock bundle check`: the device's own gate, run here by the agent's own command.

The agent is another distribution, and nothing here imports it: it is started. Its output and its exit code are passed
through.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from interlock_server.publisher import archives, build, bundle_toml, payload
from interlock_shared.archive import Head
from interlock_shared.errors import Later

AGENT = "interlock-agent"
INSTALL = "in a checkout: pip install ./shared './agent[cpu]' (with an NVIDIA GPU: [gpu])"


def run(bundle: Path, against: Path | None, svg: str | None, config: Path | None, as_json: bool) -> int:
    """Judge a bundle; the command's exit code. A folder with a bundle.toml is built first, beside nothing of it.

    Raises Later (`no_agent`), and what building raises.
    """
    command = [find_agent(), "gate", "--dry-run"]
    with ExitStack() as stack:
        command.append(str(stack.enter_context(_built(bundle))))
        if against is not None:
            command += ["--against", str(stack.enter_context(_built(against)))]
        command += ["--svg", svg] if svg is not None else []
        command += ["--config", str(config)] if config is not None else []
        return _wait([*command, "--json"] if as_json else command)


def find_agent() -> str:
    """The agent's command: beside this program, else in PATH. Raises Later (`no_agent`)."""
    found = shutil.which(AGENT, path=str(Path(sys.executable).parent)) or shutil.which(AGENT)
    if found is None:
        raise Later(
            f"{AGENT} judges bundles, and stands neither beside this command nor in PATH; {INSTALL}", code="no_agent"
        )
    return found


@contextmanager
def _built(path: Path) -> Iterator[Path]:
    """A bundle of that path, `./` before a bare name: `installed` is a word of the command's own."""
    if not (path / "bundle.toml").is_file():
        yield path.absolute()
        return
    made = build.build(bundle_toml.load(path))
    with tempfile.TemporaryDirectory(prefix="il-") as folder:
        target = Path(folder) / f"{made.manifest.model}-{made.manifest.version}.bundle"
        with archives.new_file(target) as file:
            archives.write(file, Head(made.data, made.manifest), payload.travel(made.folder, made.manifest))
        yield target


def _wait(command: Sequence[str]) -> int:
    """Run it to its end; Ctrl-C is its own to see, and it cleans up."""
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
