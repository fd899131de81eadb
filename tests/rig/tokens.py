"""Places for a device's key that are not files: a TPM in software behind a resource manager, a SoftHSM token.

The provider is loaded by the processes under test alone: in this one, where servers run too, it would stand between
them and their own keys.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PIN = "123456"
SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
TRY = "import sys; from interlock_agent.keys import openssl; openssl.provide(sys.argv[1], {})"
MADE = """
import sys, pkcs11
from pkcs11.util.ec import encode_named_curve_parameters
module, pin, *labels = sys.argv[1:]
with pkcs11.lib(module).get_token(token_label="device").open(rw=True, user_pin=pin) as session:
    for label in labels:
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters(label)}
        made = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        made.generate_keypair(store=True, label=label, id=label.encode())
"""


@dataclass
class Keeper(ABC):
    """Where keys are: `uri` of one, `environment` that a process needs to reach it; `stop` takes it away, `start` gives
    it back."""

    folder: Path
    uri: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...


@dataclass
class Tpm(Keeper):
    """swtpm, which takes one connection, and tpm2-abrmd, which shares it out over a D-Bus of its own."""

    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """With the state that it had: the same TPM, after a power cut."""
        port = _two_ports()
        state = self.folder / "tpm"
        state.mkdir(exist_ok=True)
        listen = [f"type=tcp,port={one},bindaddr=127.0.0.1" for one in (port, port + 1)]
        flags = ["--tpm2", "--flags", "not-need-init,startup-clear"]
        chip = ["swtpm", "socket", "--tpmstate", f"dir={state}", "--server", listen[0], "--ctrl", listen[1], *flags]
        self._run(chip, lambda: _answers(port + 1))
        bus = f"--address={self.environment['DBUS_SESSION_BUS_ADDRESS']}"
        self._run(["dbus-daemon", "--session", bus, "--nofork", "--nopidfile"], (self.folder / "bus").exists)
        self._run(["tpm2-abrmd", "--session", "--allow-root", f"--tcti=swtpm:port={port}"], self._named)

    def _named(self) -> bool:
        asked = ["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"]
        said = subprocess.run(
            [*asked, "org.freedesktop.DBus.NameHasOwner", "string:com.intel.tss2.Tabrmd"],
            capture_output=True,
            check=False,
            env={**os.environ, **self.environment},
        )
        return b"boolean true" in said.stdout

    def _run(self, command: list[str], ready: Callable[[], bool]) -> None:
        log = (self.folder / "log").open("ab")
        made = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **self.environment})
        log.close()
        self.running.append(made)
        deadline = time.monotonic() + 20
        while not ready():
            if made.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]}: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        while self.running:
            one = self.running.pop()
            one.terminate()
            one.wait(10)
        (self.folder / "bus").unlink(missing_ok=True)


def _two_ports() -> int:
    for _ in range(50):
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + 1))
                return port
    raise AssertionError("no two free ports beside each other")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _need(provider: str, programs: Mapping[str, str]) -> None:
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: apt install {' '.join(missing)}")
    tried = subprocess.run([sys.executable, "-c", TRY, provider], capture_output=True, text=True, check=False)
    if "is not installed" in tried.stderr:
        pytest.skip(tried.stderr.strip().splitlines()[-1])


@contextlib.contextmanager
def tpm(folder: Path) -> Iterator[Tpm]:
    """A TPM that is there. Skips aloud where the packages are not."""
    packages = {"swtpm": "swtpm", "tpm2-abrmd": "tpm2-abrmd", "dbus-daemon": "dbus-daemon", "dbus-send": "dbus-bin"}
    _need("tpm2", packages)
    bus = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder / 'bus'}", "TSS2_LOG": "all+none"}
    made = Tpm(folder, "tpm:?tcti=tabrmd:bus_type=session", bus)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@dataclass
class Token(Keeper):
    """SoftHSM."""

    other: str = ""  # of a P-384 key in the same token

    def start(self) -> None:
        (self.folder / "away").rename(self.folder / "tokens")

    def stop(self) -> None:
        (self.folder / "tokens").rename(self.folder / "away")


@contextlib.contextmanager
def token(folder: Path) -> Iterator[Token]:
    """A SoftHSM token with two keys, for the provider of the system. Skips aloud where either is missing."""
    _need("pkcs11", {"softhsm2-util": "softhsm2"})
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    (folder / "pin").touch(mode=0o600)
    (folder / "pin").write_text(PIN)
    environment = {"SOFTHSM2_CONF": str(folder / "softhsm2.conf")}
    told = {**os.environ, **environment}
    init = ["softhsm2-util", "--init-token", "--free", "--label", "device", "--pin", PIN, "--so-pin", PIN]
    subprocess.run(init, check=True, capture_output=True, env=told)
    curves = ("secp256r1", "secp384r1")
    subprocess.run([sys.executable, "-c", MADE, SOFTHSM, PIN, *curves], check=True, env=told)
    ours, other = (
        f"pkcs11:token=device;object={one}?pin-source=file:{folder / 'pin'}&module-path={SOFTHSM}" for one in curves
    )
    yield Token(folder, ours, environment, other)
