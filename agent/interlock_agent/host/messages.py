"""What passes over the host's control socket, in both directions: the whole protocol between agent and host.

Rules of the file:
- Standard library only: the agent's client and the host both import it, and the host stays small.
- A frame is a 4-byte big-endian length and that many bytes of UTF-8 JSON (one object).
- The first frame of each side is a `hello`: the highest protocol that both know is spoken; none in common is an
  error that names both ranges, and the connection ends.
- A request is `{"id": n, "op": OP, ...fields}`; its answer `{"id": n, "ok": {...}}` or
  `{"id": n, "error": {"code", "message"}}`. Requests may be answered out of order.
- An event is `{"event": KIND, ...fields}`, pushed by the host to every connected agent.
- Unknown fields are ignored in answers and events (an older agent meets a newer host), refused nowhere.
- Every order about a unit carries a generation. The host keeps the highest it has seen for the unit, durably,
  and refuses an older one with `stale_generation`.
"""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

MAX_FRAME_BYTES = 16 * 1024 * 1024  # raw samples of a long gate are the largest thing that passes (about 1 MiB)
_LENGTH = struct.Struct(">I")

# --- orders: agent -> host ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Start a worker on a sealed folder. Answer: `Loaded`. The attempt was spent before this is sent.

    `role`: `candidate` (may be promoted) or `twin` (same release as the incumbent, measured only, never promoted).
    `folder`: absolute path of a folder with `.interlock/seal.json`; the worker opens it once as a directory
    descriptor, so that the folder may be renamed (incoming -> slot) while the worker lives.
    `options`: `providers` (ordered list of ONNX Runtime providers), `threads` (int), `worker_python` (str),
    `memory_limit_bytes` (int, 0 = none), `load_timeout_s` (float), `golden_folder` (str, optional: another sealed
    folder whose golden data this worker is judged on, so that a twin is measured on the candidate's items),
    `nice` (int: as in `Probe`, from the start on),
    `metrics` (list of str: plug-in metrics that the owner allows), `hook` (of `Configure` alone: how an application
    that reads `live` is told, `{"command" | "systemd" and "action" | "http" | "triton", "timeout_s"}`), `spare` (of
    `Configure` alone: `always` keeps a second worker of what is confirmed), `access` (of `Configure` alone: who may
    ask; the owner's section of that name, without what is not set).

    `gap_s` above 0: both do not fit beside each other. When the candidate is verified and only has to be opened, what
    serves is ended (requests inside it end within `drain_max_s`). Nothing serves until this worker is promoted, for so
    long at the most. Then, or with this worker's end, or with an order about another generation, the confirmed release
    is loaded again, and orders about this worker are refused with `gap_over`. `expected_s`: what is told to clients.
    An older host, which would load both, has no `UnitStatus.gap`.
    """

    unit: str
    generation: int
    folder: str
    role: str
    options: dict[str, Any]
    gap_s: float = 0.0
    expected_s: float = 0.0
    drain_max_s: float = 0.0


@dataclass(frozen=True)
class Probe:
    """Measure latency: run `runs` inferences of one golden item each, starting at golden item `first` (modulo the
    number of items), one after the other, or `concurrency` of them at a time. Answer: `Samples`. `timeout_s` ends a
    hanging worker. `nice`: how much nicer than the host the worker is, until it is told otherwise or serves."""

    worker: str
    generation: int
    first: int
    runs: int
    timeout_s: float = 60.0
    concurrency: int = 1
    nice: int = 0


@dataclass(frozen=True)
class Evaluate:
    """Run the whole golden set in batches, and its first items once more. Answer: `Evaluation`.

    `answers`, for outputs of which nothing is expected: `keep` leaves this worker's answers in its folder (under
    `.interlock/`), `compare` takes what is there as expected: how a variant is compared with the reference.
    `items`: the first so many alone, once: a look at a worker that serves; 0: all."""

    worker: str
    generation: int
    timeout_s: float = 300.0
    answers: str = ""
    items: int = 0


@dataclass(frozen=True)
class Look:
    """What a worker that serves has found in a sample of its answers. Answer: `Looked`. One that hangs is ended."""

    worker: str
    generation: int
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Promote:
    """Make `worker` the live one and begin a trial with a lease. Answer: `Promoted`, given only when new requests
    go to it and those inside the old worker have ended or were cut after `drain_max_s`.

    The host records the trial (generation, slot) durably, then moves `live` to `slot`, then swaps. Asked again
    with the same generation and worker it answers the same. The former live worker stays warm as the standby.
    """

    unit: str
    generation: int
    worker: str
    slot: str  # "a" or "b": where the agent has put the folder
    lease_s: float = 30.0
    drain_max_s: float = 10.0


@dataclass(frozen=True)
class Renew:
    """Extend the lease of the trial of that generation. Refused with `lease_lapsed` or `no_trial`."""

    unit: str
    generation: int


@dataclass(frozen=True)
class Confirm:
    """The commit point. If the lease of that generation never lapsed: `confirmed` is moved durably, the lease ends,
    the standby is retired, the answer is `{"confirmed": true}`; the same when asked again. Otherwise
    `{"confirmed": false, "outcome": "reverted" | "interrupted", "reason": ...}`."""

    unit: str
    generation: int


@dataclass(frozen=True)
class Revert:
    """End the trial of that generation in favour of the standby (the confirmed release). Answer: `Reverted`.
    Idempotent. Without a trial of that generation: `no_trial`."""

    unit: str
    generation: int
    reason: str


@dataclass(frozen=True)
class Retire:
    """End a worker that is neither live nor standby. Answer `{}`; an unknown worker is `{}` too."""

    worker: str
    generation: int


@dataclass(frozen=True)
class Status:
    """Answer: `{"units": [UnitStatus...], "host": {"pid", "version", "boot_id", "started"}}`."""


@dataclass(frozen=True)
class Configure:
    """Make sure that a unit is there (socket listening, front running). Answer `{"address": "127.0.0.1:8500"}`.
    `listen`: `HOST:PORT` or `unix:/path`. Idempotent; the address of a unit that runs is not changed."""

    unit: str
    listen: str
    options: dict[str, Any]  # as in Load: what a cold start of the confirmed release uses


OPS: dict[str, type[Any]] = {
    "load": Load,
    "probe": Probe,
    "evaluate": Evaluate,
    "look": Look,
    "promote": Promote,
    "renew": Renew,
    "confirm": Confirm,
    "revert": Revert,
    "retire": Retire,
    "status": Status,
    "configure": Configure,
}

# --- answers: host -> agent -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A worker that has opened its model."""

    worker: str
    pid: int
    inputs: list[dict[str, Any]]  # [{"name", "dtype", "shape": [int | str | None]}] as the runtime reports them
    outputs: list[dict[str, Any]]
    providers: list[str]  # what the session really runs on, in order
    fell_back: bool  # a provider that was asked for is not there, or nodes were placed on the CPU silently
    load_s: float
    memory_bytes: int  # VmHWM of the worker after loading
    runtime: str  # e.g. "onnxruntime 1.31.1"
    # Where a provider compiles: `{"key", "cached"}`, the digest that its engines lie under and whether they were there.
    engine: dict[str, Any] = field(default_factory=dict)
    work: str = "cpu"  # what `work_ns` is: CPU time of the process, or `wall` where the model runs on another device
    start_s: float = 0.0  # from before the process was started until it had loaded; 0 from an older host


@dataclass(frozen=True)
class Samples:
    """`wall_ns` and `work_ns` (CPU time of the whole worker process) of each run, in order. `memory_bytes`: the peak of
    the worker's resident memory so far; `resident_bytes`: what it is now, 0 from an older host. `elapsed_ns`: of all
    runs together on the wall, 0 from an older host. Of runs at a time the work is shared out evenly. `nice`: what held;
    0 where a niceness could not be undone, and so was not raised."""

    wall_ns: list[int]
    work_ns: list[int]
    memory_bytes: int
    resident_bytes: int = 0
    elapsed_ns: int = 0
    nice: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Figures of one pass over the golden set.

    `outputs`: per output `{"name", "compared": bool, "max_abs", "max_rel", "outside": int, "non_finite": int,
    "cosine": float | None, "cosine_item": int, "agreement": float | None,
    "again": {"values", "different", "outside", "max_abs"}}`, where `again` compares the first items with themselves;
    `score`: `{}` without labels, else `{"metric", "better": "higher" | "lower", "kind", "rows"}`, one row an item (see
    worker/metrics.py), or `{"metric", "problem": code, "message"}`;
    `slices`: each item's index into the golden data's `slice_names`; empty without slices.
    """

    items: int
    outputs: list[dict[str, Any]]
    score: dict[str, Any]
    seconds: float
    memory_bytes: int
    slices: list[int] = field(default_factory=list)
    repeated: int = 0  # items that were run twice


@dataclass(frozen=True)
class Looked:
    """Of the answers to applications since the worker was loaded; all 0 where no check of the release asks for it."""

    looked: int = 0  # a sample
    constant: int = 0  # of those: the same as the one before, for another input
    outside: dict[str, int] = field(default_factory=dict)  # of those, by output: with a value outside its range


@dataclass(frozen=True)
class Promoted:
    """What the switch did to the requests inside the former worker."""

    drained: int
    cut: int  # requests still inside the old worker after drain_max_s
    swap_ms: float
    gap_s: float = 0.0  # for how long nobody had answered before; 0 where somebody did


@dataclass(frozen=True)
class Reverted:
    """The confirmed release serves."""

    release: str  # what serves now; "" where it could not be loaded
    swap_ms: float
    gap_s: float = 0.0  # as in Promoted: how long it took to load the release again, where it did not stand by


@dataclass(frozen=True)
class Counters:
    """Of the live worker since it became live. Monotonic for one worker."""

    requests: int = 0
    errors: int = 0  # answers 5xx of the worker
    non_finite: int = 0  # bad answers held back
    replayed: int = 0  # answered by another worker instead
    refused: int = 0  # 503 for want of a live worker
    last_errors: list[str] = field(default_factory=list)
    # Of the last five seconds before the figures were sent: `{"count", "p50_ms", "p95_ms", "p99_ms"}`, as felt.
    recent: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitStatus:
    """One model on this device, as the host sees it."""

    unit: str
    address: str
    generation: int  # highest seen
    confirmed: str  # release of the confirmed slot, "" when there is none
    confirmed_slot: str  # "a", "b" or ""
    live: str  # release that answers now, "" when none
    live_slot: str
    live_worker: str
    standby: str  # release of the standby, "" when none
    ready: bool
    trial: int  # generation of the trial in progress, 0 when none
    lease_left_s: float
    outcome: dict[str, Any]  # of the last trial: {"generation", "outcome": "confirmed|reverted|…", "reason", "at"}
    counters: dict[str, Any]  # Counters of the live worker
    workers: list[dict[str, Any]]  # [{"worker", "pid", "role", "release", "generation", "said"}]; `said`: last lines
    # `{"last_s"}`, how long nobody answered before who answers now; while nobody does on purpose also `{"generation",
    # "expected_s", "left_s"}`. None from an older host.
    gap: dict[str, Any] | None = None


# --- events: host -> agent ------------------------------------------------------------------------------------
# {"event": "outcome", "unit", "generation", "outcome", "reason", "at"}        a trial ended without the agent
# {"event": "counters", "unit", "generation", "worker", "counters": {...}}     on change, at most every 100 ms; at once
#                                                                              for a bad answer or an error
# {"event": "worker_died", "unit", "worker", "role", "release", "reason"}      after it was handled
# {"event": "serving", "unit", "release", "generation", "gap_s"}               who answers has changed; for how long
#                                                                              nobody had (absent while nobody does)
# {"event": "gap", "unit", "generation", "expected_s", "at_most_s"}            nobody answers from now on, on purpose
EVENTS = ("outcome", "counters", "worker_died", "serving", "gap")

# --- error codes ----------------------------------------------------------------------------------------------
CODES = {
    "stale_generation": "an order with an older generation than the host has seen for the unit",
    "unknown_worker": "no such worker (it may have died)",
    "worker_died": "the worker ended while it carried out the order",
    "worker_hung": "the worker did not answer in time and was killed",
    "load_failed": "the model could not be opened; the message says why",
    "inference_failed": "the model was opened and could not be run; the message says why",
    "out_of_memory": "the worker was refused memory, or ended for want of it",
    "compiled_context": "the model holds compiled contexts (EPContext) that the manifest does not declare",
    "custom_ops": "the model holds operators that neither the runtime has nor the manifest declares",
    "external_data": "the model points to data outside its bundle",
    "corrupt": "a file of the folder does not match its seal",
    "hook_failed": "the owner's hook failed after `live` was moved; the trial is over",
    "hook_away": "what the hook speaks to does not answer; nothing was changed",
    "no_trial": "the unit has no trial of that generation",
    "lease_lapsed": "the lease of that generation has lapsed",
    "not_promotable": "the worker is a twin, or not ready",
    "no_golden": "the release has no golden data",
    "gap_over": "the time in which nothing served is over; the confirmed release is loaded again",
    "bad_request": "the order is malformed",
    "protocol": "no protocol version in common",
    "io": "the host could not write its state; nothing was changed",
}

T = TypeVar("T")


def to_request(number: int, order: Any) -> dict[str, Any]:
    """The request object of an order (an instance of one of `OPS`' classes)."""
    op = next(name for name, kind in OPS.items() if type(order) is kind)
    return {"id": number, "op": op, **asdict(order)}


def from_fields(kind: type[T], document: dict[str, Any]) -> T:
    """Build `kind` from a document, ignoring fields it does not know. Raises ValueError when one is missing."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # every kind here is a dataclass
    try:
        return kind(**{name: value for name, value in document.items() if name in names})
    except TypeError as missing:
        raise ValueError(f"{kind.__name__}: {missing}") from None


def hello(version: str, role: str, low: int = PROTOCOL_MIN, high: int = PROTOCOL_MAX) -> dict[str, Any]:
    """The first frame of either side. `role` is `agent`, `host` or `tool`."""
    return {"hello": role, "version": version, "protocol": {"min": low, "max": high}}


def agree(mine: dict[str, Any], theirs: dict[str, Any]) -> int:
    """The protocol both speak. Raises ValueError naming both ranges when there is none."""
    try:
        low = max(int(mine["protocol"]["min"]), int(theirs["protocol"]["min"]))
        high = min(int(mine["protocol"]["max"]), int(theirs["protocol"]["max"]))
    except (KeyError, TypeError) as malformed:
        raise ValueError(f"not a hello: {malformed}") from None
    if low > high:
        raise ValueError(
            f"no protocol in common: {mine.get('hello')} {mine.get('version')} speaks {mine['protocol']}, "
            f"{theirs.get('hello')} {theirs.get('version')} speaks {theirs['protocol']}"
        )
    return high


def encode(document: dict[str, Any]) -> bytes:
    """One frame. Raises ValueError above MAX_FRAME_BYTES."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {len(body)} bytes is above {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next frame. Raises asyncio.IncompleteReadError at the end of the stream, ValueError on a bad frame."""
    (length,) = _LENGTH.unpack(await reader.readexactly(4))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {length} bytes is above {MAX_FRAME_BYTES}")
    document = json.loads(await reader.readexactly(length))
    if not isinstance(document, dict):
        raise ValueError("a frame holds one JSON object")
    return document
