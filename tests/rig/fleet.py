"""A server, devices with agent and host, and the command lines of people: real processes, free ports, one folder.

Waiting is on files, sockets and events of the processes themselves, with a deadline that only a failure reaches.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

END_S = 5.0  # for a process that was asked to end, when nobody looks at how
DEADLINE_S = 120.0
BIN = Path(sys.executable).parent


class RigError(AssertionError):
    """A process did not do what was asked; the message has what it said."""


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`, looked at often."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise RigError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.02)


@dataclass
class Process:
    """One started program; its output goes into a file."""

    name: str
    command: list[str]
    log: Path
    environment: Mapping[str, str]
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(self.environment)
            )

    @property
    def pid(self) -> int:
        """Its process id. Raises RigError when it does not run."""
        if self.popen is None or self.popen.poll() is not None:
            raise RigError(f"{self.name} does not run:\n{self.tail()}")
        return self.popen.pid

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting."""
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)

    def ended(self, seconds: float) -> bool:
        """Whether it ends within that time."""
        try:
            return self.popen is None or self.popen.wait(seconds) is not None
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        """Kill -9, and wait for its end."""
        if self.popen is not None and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(DEADLINE_S)

    def stop(self) -> int:
        """SIGTERM, and its exit code; killed when it does not listen."""
        if self.popen is None:
            return 0
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(DEADLINE_S)
                raise RigError(f"{self.name} did not end on SIGTERM:\n{self.tail()}") from None
        return int(self.popen.returncode)

    def tail(self, lines: int = 40) -> str:
        """The end of its output."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


@dataclass
class Device:
    """Agent and host of one device."""

    name: str
    folder: Path
    agent: Process
    host: Process
    config: Path
    fleet: Fleet
    host_socket: str = "host.sock"  # another name where something stands between agent and host

    @property
    def state(self) -> Path:
        """Its state folder."""
        return self.folder / "state"

    def cli(self, *arguments: str, stdin: Any = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`interlock-agent ARGUMENTS`."""
        command = [str(BIN / "interlock-agent"), *arguments, "--config", str(self.config)]
        return run(command, self.fleet.environment, stdin=stdin, check=check)

    def start(self) -> None:
        """Start the host, then the agent, and wait until both answer."""
        self.start_host()
        self.start_agent()

    def start_host(self) -> None:
        """Start the host alone."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "run" / self.host_socket).unlink()
        self.host.start()
        until(lambda: self.host.pid and self._answers(self.host_socket), f"the host of {self.name}")

    def start_agent(self) -> None:
        """Start the agent alone."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "run" / "agent.sock").unlink()
        self.agent.start()
        until(lambda: self.agent.pid and self._answers("agent.sock"), f"the agent of {self.name}")

    def _answers(self, name: str) -> bool:
        return (self.folder / "run" / name).exists()

    def status(self) -> dict[str, Any]:
        """What the agent says."""
        return dict(json.loads(self.cli("status", "--json").stdout))

    def unit(self, model: str) -> dict[str, Any]:
        """One unit of the status; {} when there is none."""
        return dict(self.status()["units"].get(model, {}))

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """A request at the control socket, without a process for it."""
        from interlock_agent.control_client import ask

        return ask(self.folder / "run" / "agent.sock", op, **fields)

    def wait_phase(self, model: str, *phases: str, deadline_s: float = 120.0) -> dict[str, Any]:
        """Wait, on the agent's own word, until the unit is in one of the phases."""
        return self.ask("wait", unit=model, phases=list(phases), timeout_s=deadline_s)


def run(
    command: list[str],
    environment: Mapping[str, str],
    *,
    stdin: Any = None,
    check: bool = True,
    deadline_s: float = 180.0,
) -> subprocess.CompletedProcess[str]:
    """A command to its end; RigError with what it said when it fails and `check`."""
    done = subprocess.run(
        command,
        stdin=stdin if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=dict(environment),
        timeout=deadline_s,
        check=False,
    )
    if check and done.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@dataclass
class Fleet:
    """One server and its devices. Everything is below `folder`."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    broker: str = ""  # an external one; default: embedded
    server: Process | None = None
    devices: list[Device] = field(default_factory=list)
    _address: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The server's data folder."""
        return self.folder / "server"

    @property
    def keys(self) -> Path:
        """The release engineer's keys."""
        return self.folder / "keys"

    @property
    def url(self) -> str:
        """The server's address."""
        return str(self._address["url"])

    @property
    def token(self) -> str:
        """The admin token."""
        return (self.folder / "token").read_text().strip()

    @property
    def ca_file(self) -> Path:
        """The authority of the server's certificate."""
        return self.data / "tls_ca.crt"

    @property
    def ca(self) -> str:
        """The same as PEM."""
        return self.ca_file.read_text()

    @property
    def tls(self) -> ssl.SSLContext:
        """Believes the server alone."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def start_server(self, *more: str) -> None:
        """Start the server; the first time on free ports, later on the same ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        listen = self._address.get("listen", "127.0.0.1:0")
        command = [str(BIN / "interlock-server"), "run", "--data", str(self.data), "--listen", listen]
        command += ["--token-file", str(self.folder / "token")]
        if self.broker:
            command += ["--broker", self.broker]
        else:
            command += ["--broker-listen", self._address.get("broker", "//127.0.0.1:0").rpartition("//")[2]]
        self.server = Process("server", command + list(more), self.folder / "server.log", self.environment)
        written = self.data / "server.json"
        with contextlib.suppress(FileNotFoundError):
            written.unlink()
        self.server.start()
        until(lambda: self.server and self.server.pid and written.exists(), "the server's address")
        self._address = json.loads(written.read_text())

    def admin_environment(self) -> dict[str, str]:
        """The environment of the release engineer's command line."""
        named = {"INTERLOCK_SERVER": self.url, "INTERLOCK_TOKEN": self.token, "INTERLOCK_KEYS": str(self.keys)}
        return {**self.environment, **named, "INTERLOCK_CA": str(self.ca_file)}

    def cli(self, *arguments: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """`interlock ARGUMENTS`."""
        return run([str(BIN / "interlock"), *arguments], self.admin_environment(), check=check, **more)

    def json(self, *arguments: str) -> Any:
        """`interlock ARGUMENTS --json`, parsed."""
        return json.loads(self.cli(*arguments, "--json").stdout)

    def api(self, path: str) -> Any:
        """GET of the server's API with the admin's token: what is looked at often costs no process."""
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=DEADLINE_S, context=self.tls) as answer:
            return json.loads(answer.read())

    def init_keys(self, *models: str) -> None:
        """A development key set."""
        self.cli("keys", "init", "--no-passphrase", *(word for model in models for word in ("--model", model)))

    def device(
        self, name: str, unit: Mapping[str, Any] | None = None, labels: Mapping[str, str] | None = None
    ) -> Device:
        """A new device, enrolled; not started. `unit`: settings for every model."""
        folder = self.folder / name
        for part in ("state", "run"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        config = folder / "agent.toml"
        config.write_text(agent_toml(folder, unit or {}))
        (folder / "host.toml").write_text(host_toml(folder))
        agent = Process(
            "agent",
            [str(BIN / "interlock-agent"), "run", "--config", str(config)],
            folder / "agent.log",
            self.environment,
        )
        host_command = [str(BIN / "interlock-host"), "run", "--config", str(folder / "host.toml")]
        host = Process("host", host_command, folder / "host.log", self.environment)
        made = Device(name, folder, agent, host, config, self)
        self.join(made, labels or {})
        self.devices.append(made)
        return made

    def join(self, made: Device, labels: Mapping[str, str]) -> None:
        """Enrol a device with a one-time token, as people do it."""
        wanted = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        token = self.json("device", "token", *wanted)
        made.cli(
            "enrol",
            "--server",
            self.url,
            "--token",
            token["token"],
            "--root-sha256",
            token["root_sha256"],
            "--name",
            made.name,
        )

    def stop(self) -> None:
        """End everything that was started."""
        processes = [process for device in self.devices for process in (device.agent, device.host)]
        for process in processes:  # asked first: what measures coverage writes it then
            process.ask_to_end()
        for process in processes:
            process.ended(END_S)
            process.kill()
        if self.server is not None:
            self.server.kill()


def agent_toml(folder: Path, unit: Mapping[str, Any]) -> str:
    """The agent's configuration: `unit` holds dotted settings of the defaults, e.g. {"trial.lease_s": 30}."""
    lines = ["[device]", f'state_dir = "{folder}/state"', f'run_dir = "{folder}/run"']
    # A rig's server comes back at once, and has no fleet whose devices should not all ask at once.
    lines += ["[link]", "backoff_cap_s = 2.0", "notice_spread_s = 0.2", "[defaults]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in unit.items()]
    return "\n".join(lines) + "\n"


def host_toml(folder: Path) -> str:
    """The host's configuration."""
    return f'state_dir = "{folder}/state"\nrun_dir = "{folder}/run"\n'


@contextlib.contextmanager
def fleet(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    """A fleet that is ended whatever happens."""
    made = Fleet(folder, environment or dict(os.environ))
    try:
        yield made
    finally:
        made.stop()
