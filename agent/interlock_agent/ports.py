"""What the agent needs of the world: few and tiny. Adapters implement them; fakes do in tests.

Errors cross a port only as InterlockError: adapters translate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from interlock_agent.core.records import Quarantined, Transition, UnitRecord


class Clock(Protocol):
    """Time and chance."""

    def now(self) -> float:
        """Seconds since the epoch, never below the persisted floor."""

    def floor(self) -> float:
        """What is known of the time without the machine's clock: the newest signed time, and what has passed since."""

    def raise_floor(self, seconds: float) -> None:
        """Believe a signed time. Never lowers the floor."""

    def forget_floor(self) -> None:
        """Believe no time that was signed before."""

    def behind(self) -> float:
        """Seconds by which the machine's clock lies below the floor; 0 when it does not."""

    def monotonic(self) -> float:
        """Seconds that also pass while the device sleeps (CLOCK_BOOTTIME)."""

    async def sleep(self, seconds: float) -> None:
        """Wait; cancelled like any await."""

    def dice(self) -> float:
        """Uniform in [0, 1)."""


@dataclass
class Stored:
    """All that the journal holds at a start. `notes`: what a person should know about how it was read."""

    units: dict[str, UnitRecord] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    quarantine: list[Quarantined] = field(default_factory=list)
    spent: dict[str, int] = field(default_factory=dict)  # "try:KEY" -> count
    notes: list[str] = field(default_factory=list)


class Journal(Protocol):
    """Durable memory. What `commit` returned from is there after a power cut, whole."""

    async def load(self) -> Stored:
        """Everything, once, at the start."""

    async def commit(self, transition: Transition) -> None:
        """Record, history, outbox, budget and quarantine of one transition, atomically."""

    async def put_meta(self, values: dict[str, Any], outbox: tuple[dict[str, Any], ...] = ()) -> None:
        """Merge keys (None removes one), with events, atomically."""

    async def forgive(self, payload_sha256: str) -> int:
        """Remove the quarantine entries and budgets of a payload; how many entries there were."""

    async def pending(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Outbox entries above `after`, oldest first: complete events."""

    async def acknowledge(self, epoch: str, upto: int) -> None:
        """Forget entries up to and including `upto`; another epoch is ignored."""

    async def outbox(self) -> tuple[str, int, int]:
        """(epoch, lowest number still held or next, next number)."""

    async def history(self, unit: str | None, limit: int) -> list[dict[str, Any]]:
        """Transitions, newest first."""


class Host(Protocol):
    """The host's control socket. Raises Unreachable when it is away; Refused with the host's `code` otherwise."""

    async def request(self, order: Any) -> dict[str, Any]:
        """Send one of host.messages' orders, return the fields of its answer."""

    async def event(self, unit: str, timeout_s: float) -> dict[str, Any] | None:
        """The next pushed event of that unit, or None after `timeout_s`. Losing the connection is an event too:
        `{"event": "lost"}`; so is its return: `{"event": "back"}`."""

    def drop_events(self, unit: str) -> None:
        """Forget events of that unit that nobody has looked at."""


@dataclass(frozen=True)
class Staged:
    """A complete folder beside the slots."""

    folder: str
    manifest: bytes
    payload_sha256: str


class Slots(Protocol):
    """The folders of a unit: two slots, and what comes in beside them."""

    async def spare(self, unit: str) -> str:
        """The slot ("a" or "b") that `confirmed` does not point at."""

    async def staged(self, unit: str, manifest_sha256: str) -> Staged | None:
        """The complete incoming folder of a manifest; None when it is not there or not complete."""

    async def folder(self, unit: str, slot: str) -> str:
        """Absolute path of a slot."""

    async def seal_of(self, unit: str, slot: str) -> dict[str, Any] | None:
        """The seal of a slot; None when the slot is empty or not sealed."""

    async def confirmed_slot(self, unit: str) -> str:
        """Where `confirmed` points; "" when it does not exist."""

    async def manifest_of(self, unit: str, slot: str) -> bytes:
        """The manifest's bytes in a slot. Raises NotFound."""

    async def prepare(self, unit: str, manifest_sha256: str, variant: str, generation: int) -> str:
        """Seal the incoming folder for one variant and generation, and give its path to load from."""

    async def fill(self, unit: str, manifest_sha256: str, slot: str, generation: int) -> None:
        """Replace the spare slot by the incoming folder, with the generation's verdict in it. Idempotent.
        Raises NoSpace, Later on I/O errors."""

    async def drop(self, unit: str) -> None:
        """Remove what is beside the slots, complete or not: one attempt a unit, and this one is over."""

    async def keep_verdict(self, unit: str, generation: int, verdict: bytes, samples: bytes) -> None:
        """Keep a verdict and its raw samples for people, whatever becomes of the release."""

    async def recorded(
        self, unit: str, slot: str, payload_sha256: str, fingerprint: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The newest verdict that accepted this payload under this fingerprint, and the raw samples that it was made
        from: of those that are kept, else the one in the slot."""

    async def contract(self, unit: str) -> dict[str, Any] | None:
        """The unit's contract; None before the first confirmation."""

    async def set_contract(self, unit: str, contract: dict[str, Any]) -> None:
        """Write the contract, durably."""

    async def units(self) -> list[str]:
        """Units that have a folder."""


class Source(Protocol):
    """A running fetch: first it tells the manifest, and goes on when it is told to."""

    async def manifest(self) -> dict[str, Any]:
        """`{"model", "version", "manifest_sha256", "payload_sha256", "size", "permit", "trust": {...}}`."""

    async def proceed(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Bring the payload in; `progress(bytes, of)`. The answer has `folder`, `fetched`, `reused` (bytes)."""

    async def abandon(self) -> None:
        """End it; what was verified stays for the next try."""


class Fetcher(Protocol):
    """Starts the short-lived child."""

    async def online(self, unit: str, version: str, manifest_sha256: str) -> Source:
        """From the update server."""

    async def archive(self, descriptor: int) -> Source:
        """From an open `.bundle`, read once; the descriptor is taken over."""

    async def refresh(self) -> dict[str, Any]:
        """Trust metadata alone: `{"floors": {...}, "director": {...}}`."""

    async def poll(self) -> bytes | None:
        """The desired document, asked for over HTTP: the backstop of MQTT."""


class Hardware(Protocol):
    """What verdicts and engines are valid for, and how the device is now."""

    async def fingerprint(self, worker_python: str) -> dict[str, Any]:
        """Facts by name; see docs/reference/fingerprint."""

    async def environment(self) -> dict[str, Any]:
        """Load, clocks, temperature: what is to be had here."""

    def pace(self) -> Mapping[str, str]:
        """What sets the device's speed, and does not change in quiet times: power mode, throttling, clock limits.
        Read around each pair of blocks: at once, no waiting."""

    def free(self) -> Mapping[str, int]:
        """Bytes that are free now, where they are told: `memory_free_bytes`, `gpu_memory_free_bytes`,
        `disk_free_bytes`."""

    def process(self, pid: int) -> Mapping[str, int]:
        """Memory of a process, where it is told: `peak_bytes`, `resident_bytes` and `gpu_bytes` now."""

    def gpu_faults(self) -> int | None:
        """Critical faults (Xid) that the driver has told of since it was first asked; None where it tells of none."""

    def energy_j(self) -> float | None:
        """A counter in joules of what this device tells, which never runs backwards; None where it tells nothing."""


class Program(Protocol):
    """A running command of the device's owner, asked line by line."""

    pid: int

    async def line(self, timeout_s: float) -> bytes:
        """The next line that it says. Raises Refused (`worker_died`, `worker_hung`); then it has ended."""

    async def ask(self, question: bytes, timeout_s: float) -> bytes:
        """A line to it, and its answer. Raises as `line`."""

    async def end(self) -> None:
        """It and all that it has started."""


class Programs(Protocol):
    """Starts them."""

    async def there(self, command: Sequence[str]) -> bool:
        """Whether there is such a program that may be started."""

    async def start(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> Program:
        """In a folder. Raises Later (`no_command`)."""


class Probes(Protocol):
    """Looks at an application, or at a model's own address. Each says what is wrong, "" when all is well; whoever calls
    bounds its time, and what it has started ends when it is cancelled."""

    async def exec(self, command: Sequence[str], facts: Mapping[str, str]) -> str:
        """Run it. `facts`: `UNIT`, `RELEASE`; it gets them as `INTERLOCK_…`, and little else."""

    async def http(self, url: str) -> str:
        """GET; well is 200 to 399."""

    async def systemd(self, unit: str) -> str:
        """Whether a unit of the system is active."""

    async def ready(self, address: str, model: str) -> str:
        """Whether a model's worker answers at its address (`HOST:PORT`, `unix:/path`). Raises Refused where this
        process may not ask."""


class Signer(Protocol):
    """The device's key."""

    async def sign_verdict(self, verdict: Any) -> bytes:
        """A DSSE envelope of the verdict. Raises Later where the key is in a TPM or a token that is away."""


@dataclass(frozen=True)
class Ports:
    """All of them, as steps get them."""

    clock: Clock
    journal: Journal
    host: Host
    slots: Slots
    fetcher: Fetcher
    hardware: Hardware
    signer: Signer
    programs: Programs
    probes: Probes
