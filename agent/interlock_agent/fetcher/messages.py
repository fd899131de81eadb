"""What passes between agent and fetcher: one job in, lines of JSON out.

The agent writes a job (one line) to the child's standard input. The child answers on its standard output:

    {"head": {...}}           what the manifest says, once it is believed; then it waits for the line `go`
    {"progress": [done, of]}  bytes
    {"done": {...}}           the end
    {"error": {...}}          the end; errors.to_wire

The end of standard input ends the child at once: it never outlives the agent. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

GO = "go"
KINDS = ("online", "archive", "unpack", "refresh", "poll", "enrol", "renew")


@dataclass(frozen=True)
class Job:
    """One fetch. `now`: seconds since the epoch, not below the time floor; `now_text`: the same as documents write it;
    `floors`: highest trusted version of each role; `facts`: what the device knows of itself, for a file's permit;
    `installed`: by unit (version, manifest digest, brought by the server) of what is here."""

    kind: str
    device: str
    state_dir: str
    now: float
    now_text: str
    floors: dict[str, Any] = field(default_factory=dict)
    director_epoch: int = 0
    server: str = ""
    unit: str = ""
    version: str = ""
    manifest_sha256: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    installed: dict[str, Any] = field(default_factory=dict)
    descriptor: int = -1
    threads: int = 2
    clock: float | None = None  # the machine's alone, in seconds since the epoch; None: as `now`
    clock_floor: float = 0.0  # the highest time that was ever told by a signed document: what expired before it, has
    token: str = ""  # of an enrolment, as the four below
    root_sha256: str = ""
    name: str = ""
    key_type: str = "p256"
    key: str = "file"  # where: keys/places.py


def encode(job: Job) -> bytes:
    """One line."""
    return json.dumps(asdict(job)).encode() + b"\n"


def decode(line: bytes) -> Job:
    """The job of a line. Raises TypeError, ValueError."""
    return Job(**json.loads(line))
