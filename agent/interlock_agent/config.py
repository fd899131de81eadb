"""The device owner's configuration of the agent: one TOML file. (The host has a small one of its own.)

Everything has a default but nothing is guessed silently: an unknown key is an error that names it. What runs
commands stands here and only here; a bundle cannot bring any.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from interlock_agent.core.gate import window
from interlock_agent.core.gate.limits import OwnerLimits
from interlock_agent.core.probes import APPLICATION, Probe
from interlock_agent.sections import (
    Access,
    Batching,
    Hook,
    Section,
    Sideload,
    SystemdUnit,
    TensorRt,
    Triton,
    Url,
    is_one_of_three,
)
from interlock_shared.addresses import unfit_for_rpc, unprotected
from interlock_shared.base import Name, describe
from interlock_shared.errors import Invalid
from interlock_shared.gates import Concurrency, Limit, Quantile, Stage
from interlock_shared.limits import DRAIN_MAX_S, LEASE_S, POLL_S

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # installed where Python is 3.10

# Seconds for a stage beyond what is set for its work: for the twin, for a busy machine, for orders on their way.
STAGE_S: dict[Stage, float] = {"compatible": 60.0, "loads": 60.0, "right": 900.0, "fast": 900.0, "small": 60.0}

DEFAULT_PATH = Path("/etc/interlock/agent.toml")


def _one_window(text: str) -> str:
    window.parse(text)
    return text


Windows = Annotated[
    tuple[Annotated[str, AfterValidator(_one_window)], ...],
    BeforeValidator(lambda said: (said,) if isinstance(said, str) else said),
]
"""`"01:00-05:00"`, or several in a list."""


def _by_its_path(command: tuple[str, ...]) -> tuple[str, ...]:
    if command and not command[0].startswith("/"):
        raise ValueError(f"{command[0]!r} is no absolute path: it is started in the folder of a release")
    return command


Command = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AfterValidator(_by_its_path)]


class Device(Section):
    """Folders of the device; the host's configuration names the same ones."""

    state_dir: Path = Path("/var/lib/interlock")  # slots, journal, identity, trust: must survive a power cut
    run_dir: Path = Path("/run/interlock")  # sockets
    class_: Name | Literal[""] = Field(default="", alias="class")  # the owner's name for what this device is


class UnitGate(Section):
    """The owner's limits: the stricter of these and the manifest's wins."""

    accuracy_min: float | None = Field(default=None, ge=0, le=1)
    accuracy_drop_max: float | None = Field(default=None, ge=0, le=1)
    error_max: float | None = Field(default=None, ge=0)
    error_rise_max: float | None = Field(default=None, ge=0)
    slice_drop_max: float | None = Field(default=None, ge=0, le=1)  # of each slice of the golden data
    slice_rise_max: float | None = Field(default=None, ge=0)
    metrics: tuple[str, ...] = ()  # plug-in metrics that a bundle may name; they run in the worker's Python
    command: Command = ()  # measures in place of a worker; see command.md
    latency_ms: dict[Quantile, Limit] = Field(default_factory=dict)
    latency_ratio_max: float | None = Field(default=None, gt=0)
    throughput_min: dict[Concurrency, Limit] = Field(default_factory=dict)
    load_s_max: float | None = Field(default=None, gt=0)
    memory_max_bytes: int | None = Field(default=None, gt=0)
    gpu_memory_max_bytes: int | None = Field(default=None, gt=0)
    memory_leak_max_bytes_per_1000: int | None = Field(default=None, gt=0)  # growth over 1,000 inferences
    energy_max_j: Limit | None = None  # of the device, for one inference
    allow_none: bool = False  # a manifest may switch its gates off
    inconclusive_max: int = Field(default=3, ge=1)  # judgements without a result before a person decides
    inconclusive_wait_s: float = Field(default=300.0, ge=0, le=30 * 86_400)
    window: Windows = ()  # when a gate may begin, by the device's own clock; none: at any time
    live_slowdown_max: float = Field(default=1.25, gt=1)  # of the live models' p99 while a gate runs; above, it yields
    variants: Literal["fastest"] | tuple[Name, ...] = "fastest"  # of a release: the fastest that is right, or by name
    baseline: Literal["auto", "twin", "recorded"] = "auto"  # what speed is compared with: see docs/reference/verdict.md
    budget_s: float = Field(default=60.0, gt=0)  # of measuring speed; what is not known by then is inconclusive
    stage_s: dict[Stage, Limit] = Field(default_factory=dict)  # the longest that a stage may take; see STAGE_S
    candidate_memory_bytes: int = Field(default=0, ge=0)  # of a worker while it is judged; 0: its own, or what is free

    def limits(self) -> OwnerLimits:
        """As the gate takes them."""
        return OwnerLimits(
            accuracy_min=self.accuracy_min,
            accuracy_drop_max=self.accuracy_drop_max,
            error_max=self.error_max,
            error_rise_max=self.error_rise_max,
            slice_drop_max=self.slice_drop_max,
            slice_rise_max=self.slice_rise_max,
            metrics=self.metrics,
            latency_ms=self.latency_ms,
            latency_ratio_max=self.latency_ratio_max,
            throughput_min=self.throughput_min,
            load_s_max=self.load_s_max,
            memory_max_bytes=self.memory_max_bytes,
            gpu_memory_max_bytes=self.gpu_memory_max_bytes,
            memory_leak_max_bytes_per_1000=self.memory_leak_max_bytes_per_1000,
            energy_max_j=self.energy_max_j,
            allow_none=self.allow_none,
        )


class UnitTrial(Section):
    """The owner's minimum; the longer of these and the manifest's holds."""

    min_seconds: float = Field(default=0.0, ge=0)
    min_requests: int = Field(default=0, ge=0)
    lease_s: float = Field(default=LEASE_S, gt=0)
    drain_max_s: float = Field(default=DRAIN_MAX_S, ge=0)


class OwnersProbe(Section):
    """How the application beside a model is looked at, while a release is on trial and after it: one of the three."""

    name: Name
    exec: Command = ()  # well where it exits with 0
    http: Url = ""  # a GET; well where it answers 200 to 399
    systemd: SystemdUnit = ""  # well where it is active
    required: bool = True  # one that is not is told, and takes nothing back
    period_s: float = Field(default=10.0, ge=0.1)
    timeout_s: float = Field(default=5.0, ge=0.1)
    failure_threshold: int = Field(default=3, ge=1)  # in a row
    success_threshold: int = Field(default=1, ge=1)  # in a row, to be well (again)
    initial_delay_s: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _is_one(self) -> OwnersProbe:
        is_one_of_three(self.exec, self.systemd, self.http, "exec")
        return self

    def probe(self) -> Probe:
        """As the watch takes it."""
        kind = "exec" if self.exec else "http" if self.http else "systemd"
        return Probe(
            name=f"{kind}_{self.name}",
            kind=kind,
            period_s=self.period_s,
            timeout_s=self.timeout_s,
            failure_threshold=self.failure_threshold,
            success_threshold=self.success_threshold,
            initial_delay_s=self.initial_delay_s,
            required=self.required,
            settings={"target": list(self.exec) or self.http or self.systemd},
        )


class UnitHealth(Section):
    """What the owner adds to the checks of a release, and what follows when a confirmed one turns bad."""

    probes: tuple[OwnersProbe, ...] = ()
    application: Literal["heard", "required"] = "heard"  # whether a trial waits for its word; see `health`
    late_revert: Literal["auto", "alarm"] = "auto"  # back to the previous confirmed release, or an alarm alone
    late_period_s: float = Field(default=10.0, ge=0.1)  # after the confirmation no check is asked more often
    late_failures: int = Field(default=3, ge=1)  # and none is bad after fewer failures in a row

    @model_validator(mode="after")
    def _each_once(self) -> UnitHealth:
        if len({probe.name for probe in self.probes}) != len(self.probes):
            raise ValueError("probes: a name occurs twice")
        return self

    def owners(self, *, must_speak: bool = False) -> tuple[Probe, ...]:
        """The owner's probes, and the application's word, which holds as soon as it is said."""
        word = Probe(APPLICATION, APPLICATION, 0.1, 1.0, settings={"must_speak": must_speak})
        return (*(probe.probe() for probe in self.probes), word)


class Unit(Section):
    """One model on this device."""

    listen: str | None = None  # "127.0.0.1:8500" or "unix:/path"; default: a Unix socket in run_dir
    grpc_listen: str = ""  # "127.0.0.1:8501"; "": no gRPC. Needs the extra `grpc`
    queue_max: int = Field(default=1024, ge=0, le=1024)  # requests that wait for a worker; beyond: 503
    queue_s: float = Field(default=60.0, gt=0)  # and each so long for its turn; beyond: 503
    providers: tuple[str, ...] = ("CPUExecutionProvider",)  # ONNX Runtime's names, in order; no silent fall-back
    provider_options: dict[str, dict[str, str]] = Field(default_factory=dict)  # by provider; as ONNX Runtime names them
    threads: int = Field(default=1, ge=1)  # of a worker
    worker_python: str = sys.executable  # on Jetson the system's, where its ONNX Runtime lives
    memory_limit_bytes: int = Field(default=0, ge=0)  # of a worker; 0: none
    load_timeout_s: float = Field(default=120.0, gt=0)
    concurrency: int = Field(default=0, ge=0, le=64)  # requests inside a worker at once; 0: as the host says
    batching: Batching | None = None  # several requests in one run of the model
    tensorrt: TensorRt = TensorRt()
    policy: Literal["auto", "availability", "memory"] = "auto"  # both loaded in a switch, or one after the other
    gap_max_s: float = Field(default=30.0, gt=0)  # the longest that nothing serves, where it is one after the other
    spare: Literal["trial", "always"] = "trial"  # when a second worker stands by
    gate: UnitGate = UnitGate()
    trial: UnitTrial = UnitTrial()
    health: UnitHealth = UnitHealth()
    revoked: Literal["back", "stop", "keep"] = "back"  # what becomes of a release that serves, and is taken back
    hook: Hook | None = None  # for an application that reads `live`
    triton: Triton | None = None  # a server that loads what is live
    access: Access = Access()  # who may ask

    @model_validator(mode="after")
    def _caches_are_ours(self) -> Unit:
        for provider, given in self.provider_options.items():
            if provider not in self.providers:
                raise ValueError(f"provider_options: {provider} is not among providers")
            ours = [name for name in given if "cache" in name]
            if ours:
                raise ValueError(f"provider_options: {', '.join(ours)}: where engines are kept is Interlock's to say")
        return self

    @model_validator(mode="after")
    def _is_protected(self) -> Unit:
        wrong = unprotected(self.listen or "unix:", self.access.told())
        if wrong:
            raise ValueError(wrong)
        if self.grpc_listen and (wrong := unfit_for_rpc(self.grpc_listen, self.access.told())):
            raise ValueError(wrong)
        if self.grpc_listen and self.grpc_listen == self.listen:
            raise ValueError("listen and grpc_listen are one address: each needs a port of its own")
        if self.access.groups and self.listen and not self.listen.startswith("unix:"):
            raise ValueError("access.groups: only a Unix socket knows the groups of who asks")
        return self

    @model_validator(mode="after")
    def _policy_is_possible(self) -> Unit:
        if self.spare == "always" and self.policy != "availability":
            raise ValueError('spare = "always" needs policy = "availability": else there may be no room for it')
        if self.policy == "memory" and self.gate.baseline == "twin":
            raise ValueError('gate.baseline = "twin" and policy = "memory" exclude each other: a twin needs room')
        return self

    @model_validator(mode="after")
    def _hook_fits_the_lease(self) -> Unit:
        if self.hook is not None and self.triton is not None:
            raise ValueError("one of hook and triton")
        told = self.hook or self.triton
        if told is not None and told.timeout_s > self.trial.lease_s / 3:  # one run may wait for another
            kind = "hook" if self.hook else "triton"
            raise ValueError(f"{kind}.timeout_s is more than a third of trial.lease_s: the lease could lapse meanwhile")
        return self

    def stage_s(self, stage: Stage, throughputs: int = 0) -> float:
        """How long a stage of the gate may take, in seconds; each limit on throughput has a budget of its own."""
        own = {"loads": 2 * self.load_timeout_s, "fast": self.gate.budget_s * (1 + throughputs)}.get(stage, 0.0)
        return self.gate.stage_s.get(stage, own + STAGE_S[stage])

    def measured_with(self) -> dict[str, Any]:
        """What a judgement depends on beside the limits: which form runs on what, and what measures it."""
        return self.model_dump(
            mode="json",
            include={
                "providers": True,
                "provider_options": True,
                "threads": True,
                "batching": True,
                "tensorrt": True,
                "gate": {"variants", "command"},
            },
        )

    def _told(self) -> dict[str, Any]:
        if self.triton is not None:
            return self.triton.hook()
        return self.hook.model_dump(mode="json") if self.hook is not None else {}

    def _queue(self) -> dict[str, Any]:
        """What is not as the front has it: a front that is told anything new is replaced, and an agent that knows more
        than the one before must not cost applications their connections."""
        said = {"max": self.queue_max, "s": self.queue_s}
        usual = {"max": Unit.model_fields["queue_max"].default, "s": Unit.model_fields["queue_s"].default}
        return {name: value for name, value in said.items() if value != usual[name]}

    def options(self) -> dict[str, Any]:
        """What the host needs to start a worker."""
        return {
            "providers": list(self.providers),
            "provider_options": {name: dict(given) for name, given in self.provider_options.items()},
            "threads": self.threads,
            "hook": self._told(),
            "access": self.access.told(),
            "grpc_listen": self.grpc_listen,
            "queue": self._queue(),
            "spare": self.spare,
            "worker_python": self.worker_python,
            "memory_limit_bytes": self.memory_limit_bytes,
            "load_timeout_s": self.load_timeout_s,
            "concurrency": self.concurrency,
            "batching": self.batching.option() if self.batching is not None else {},
            "tensorrt": self.tensorrt.model_dump(),
            "candidate_memory_bytes": self.gate.candidate_memory_bytes,
            "metrics": list(self.gate.metrics),
        }


class Defaults(Unit):
    """For models without a section of their own. `accept = "listed"` refuses those."""

    accept: Literal["any", "listed"] = "any"


class Link(Section):
    """How the agent talks with its server."""

    poll_s: float = Field(default=POLL_S, gt=0)  # backstop of MQTT
    keepalive_s: int = Field(default=30, ge=5)
    backoff_cap_s: float = Field(default=60.0, gt=0)
    notice_spread_s: float = Field(default=60.0, ge=0)  # devices ask for new metadata spread over this time
    refresh_s: float = Field(default=6 * 3600.0, gt=0)  # and without a notice so often, jittered


class Config(Section):
    """The whole file."""

    device: Device = Device()
    link: Link = Link()
    sideload: Sideload = Sideload()
    defaults: Defaults = Defaults()
    units: dict[Name, Unit] = Field(default_factory=dict)
    log_format: Literal["text", "json"] = "text"

    def unit(self, name: str) -> Unit:
        """The unit's section, or the defaults. Raises KeyError when only listed models are accepted."""
        if name in self.units:
            return self.units[name]
        if self.defaults.accept == "listed":
            raise KeyError(name)
        return self.defaults

    def listen(self, name: str) -> str:
        """Where applications find the model."""
        return self.unit(name).listen or f"unix:{self.device.run_dir / name}.sock"


def unusable(error: OSError) -> str:
    """What to say of a folder of ours that cannot be used: the setting is what a person can change."""
    return f"{error.filename}: {error.strerror} (the folders are state_dir and run_dir under [device] of --config)"


def load(path: Path | None) -> Config:
    """Read the file; without a path the default one where it exists, else all defaults. Raises Invalid."""
    chosen = path or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    if chosen is None:
        return Config()
    try:
        document = tomllib.loads(chosen.read_text())
    except OSError as bad:
        raise Invalid(f"{chosen}: {bad.strerror}", field="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        raise Invalid(f"{chosen}: {bad}", field="config") from None
    try:
        return Config.model_validate(document)
    except ValidationError as bad:
        raise describe(bad, str(chosen)) from None
