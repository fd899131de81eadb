"""Releases that Interlock does not open, for the owner's own programs: a table of one number; and the programs that the
reference pages show."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.world import MODEL

ROOT = Path(__file__).parents[2]
BUNDLE = """\
model = "{model}"
version = "{version}"

[[variants]]
name = "table"
file = "model.txt"
runtime = "external"

[signature.inputs.x]
dtype = "FP32"
shape = [-1]

[signature.outputs.y]
dtype = "FP32"
shape = [-1]

[gates]
{gates}

[health]
min_seconds = {trial_s}
min_requests = {requests}
"""


def example(page: str) -> str:
    """The one program in Python that a page of docs/reference shows."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reference" / page).read_text(), re.DOTALL)
    return str(program)


def write(
    folder: Path, version: str, content: str, *, gates: str = "", trial_s: float = 0.3, requests: int = 5
) -> Path:
    """A release folder."""
    folder.mkdir(parents=True)
    (folder / "model.txt").write_text(content)
    fields = {"model": MODEL, "version": version, "gates": gates, "trial_s": trial_s, "requests": requests}
    (folder / "bundle.toml").write_text(BUNDLE.format(**fields))
    return folder
