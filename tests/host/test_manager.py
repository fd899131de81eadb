"""A service manager keeps the listening sockets while the host restarts: clients wait, and are not refused."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.host import messages
from interlock_agent.host.listeners import open_listener
from interlock_agent.host.manager import Kept
from tests.host.clients import Connection, inference, request
from tests.host.rig import UNIT, Rig, until

# What systemd does before it starts a program: the descriptors begin at 3, and the program's own pid is named.
LAUNCH = """
import fcntl, os, sys
held = [int(one) for one in sys.argv[1].split(",") if one]
high = [fcntl.fcntl(one, fcntl.F_DUPFD, 100) for one in held]
for place, one in enumerate(high):
    os.dup2(one, 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """What systemd's descriptor store does, over a real notification socket."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(self.address)
        self._channel.setblocking(False)
        self.store: dict[str, int] = {}
        self.said: list[str] = []
        asyncio.get_running_loop().add_reader(self._channel, self._hear)

    def _hear(self) -> None:
        data, ancillary, _, _ = self._channel.recvmsg(4096, socket.CMSG_SPACE(8 * 4))
        given = array.array("i")
        for _level, _kind, content in ancillary:
            given.frombytes(content)
        lines = dict(line.partition("=")[::2] for line in data.decode().splitlines())
        self.said.append(data.decode())
        if "FDSTORE" in lines:
            self.store[lines["FDNAME"]] = given[0]
        if "FDSTOREREMOVE" in lines:
            os.close(self.store.pop(lines["FDNAME"]))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        for one in self.store.values():
            os.close(one)


class Managed(Rig):
    """A host that is started as systemd would."""

    manager: Manager

    async def spawn(self, command: list[str], environment: dict[str, str], log: Any) -> asyncio.subprocess.Process:
        held = dict(self.manager.store)
        told = {"NOTIFY_SOCKET": self.manager.address, "LISTEN_FDS": str(len(held)), "LISTEN_FDNAMES": ":".join(held)}
        launch = [sys.executable, "-S", "-c", LAUNCH, ",".join(str(one) for one in held.values()), *command]
        return await asyncio.create_subprocess_exec(
            *launch, stderr=log, env={**environment, **told}, pass_fds=tuple(held.values())
        )


class Asking:
    """Clients that connect anew for each request; what became of each."""

    def __init__(self, addresses: list[tuple[str, str]]) -> None:
        self.refused = self.broken = 0
        self.good: list[float] = []  # when each came
        self._stop = False
        self._tasks = [asyncio.create_task(self._run(*one)) for one in addresses for _ in range(3)]

    async def _run(self, address: str, unit: str) -> None:
        raw = request(f"/v2/models/{unit}/infer", inference([1.0, 2.0, 3.0, 4.0]))
        while not self._stop:
            try:
                async with Connection(address) as connection:
                    reply = await connection.ask(raw)
                    assert reply.status == 200, reply
                    self.good.append(time.monotonic())
            except (ConnectionRefusedError, FileNotFoundError):
                self.refused += 1
            except (OSError, EOFError):
                self.broken += 1

    async def end(self) -> float:
        """Stop them; the longest time without an answer, in seconds."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        return max(later - former for former, later in zip(self.good, self.good[1:], strict=False))

    async def more(self, count: int = 30) -> None:
        """So many answers from now."""
        wanted = len(self.good) + count
        await until(lambda: len(self.good) >= wanted, "answers go on")


async def test_clients_wait_while_the_host_restarts_and_none_is_refused(short_path: Path, record_property: Any) -> None:
    rig = Managed(short_path)
    rig.manager = manager = Manager(short_path)
    await rig.start()
    try:
        tcp = await rig.configure()
        await rig.confirmed(1)
        unix = f"unix:{short_path}/other.sock"
        # A second unit on a Unix socket: it serves nothing, and listens all the same.
        await rig.configure(unix, unit="other")
        rig.address = tcp
        assert len(manager.store) == 2
        asking = Asking([(tcp, UNIT)])
        await asking.more()
        assert await rig.stop() == 0
        async with Connection(unix) as waiting:  # accepted by nobody yet: the kernel holds it
            waiting.writer.write(request("/v2/health/live", method="GET"))
            await rig.start()
            assert (await waiting.reply()).status == 200
        await asking.more()
        await rig.kill_host()
        await rig.start()
        await asking.more()
        gap = await asking.end()
        record_property("gap_s", round(gap, 3))
        assert asking.refused == 0
        assert len(manager.store) == 2, "what was kept is not kept twice"
        # The owner moves the model to another port: the old socket is of no use to anybody.
        await rig.agent.order(messages.Configure("other", f"unix:{short_path}/third.sock", {}))
        await rig.stop()
        await rig.start()
        assert "FDSTOREREMOVE" in "".join(manager.said)
        await until(lambda: len(manager.store) == 2, f"{manager.store}")
        async with Connection(f"unix:{short_path}/third.sock") as moved:
            assert (await moved.ask(request("/v2/health/live", method="GET"))).status == 200
    finally:
        await rig.stop()
        manager.close()


# --- what comes back is looked at ---


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> Any:
    """Makes `Kept` out of sockets and names, as they come from the environment; what the manager was told."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(short_path / "notify"))
    channel.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "notify"))

    def make(*given: tuple[str, int], pid: int | None = None) -> Kept:
        first = min((number for _, number in given), default=3)
        assert [number for _, number in given] == list(range(first, first + len(given))), given
        monkeypatch.setattr("interlock_agent.host.manager.FIRST", first)
        environment = {"LISTEN_FDS": str(len(given)), "LISTEN_PID": str(pid or os.getpid())}
        environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in given)
        made = Kept(environment)
        assert environment == {}, "no child takes them for its own"
        return made

    def heard() -> list[str]:
        said = []
        while True:
            try:
                said.append(channel.recv(4096).decode())
            except BlockingIOError:
                return said

    yield make, heard
    channel.close()


def listening(listen: str) -> tuple[int, str]:
    """The descriptor of a socket, and its address."""
    made, address = open_listener(listen)
    return made.detach(), address


def test_one_that_listens_on_the_address_is_taken(kept: Any) -> None:
    make, heard = kept
    number, address = listening("127.0.0.1:0")
    taken = make(("interlock-listen-detector/", number)).take("detector", address)
    assert taken is not None
    assert taken.getsockname()[1] == int(address.rpartition(":")[2])
    assert not taken.get_inheritable()
    assert heard() == []
    taken.close()


@pytest.mark.parametrize("name", ["interlock-listen-other/", "interlock-listen-detector", "stored", ""])
def test_one_of_another_name_is_not_and_goes(kept: Any, name: str) -> None:
    make, heard = kept
    number, address = listening("127.0.0.1:0")
    held = make((name, number))
    assert held.take("detector", address) is None
    held.forget()
    assert heard() == ([f"FDSTOREREMOVE=1\nFDNAME={name}"] if name else [])
    listener, _ = open_listener(address)  # the port is free again
    listener.close()


def test_one_on_another_port_goes_at_once(kept: Any) -> None:
    make, heard = kept
    number, address = listening("127.0.0.1:0")
    held = make(("interlock-listen-detector/", number))
    assert held.take("detector", "127.0.0.1:1") is None
    assert heard() == ["FDSTOREREMOVE=1\nFDNAME=interlock-listen-detector/"]
    listener, _ = open_listener(address)
    listener.close()


def test_one_that_is_taken_beside_one_that_goes_is_kept_on(kept: Any) -> None:
    make, heard = kept
    number, address = listening("127.0.0.1:0")
    other, _ = listening("127.0.0.1:0")
    taken = make(("interlock-listen-detector/", number), ("interlock-listen-detector/", other)).take(
        "detector", address
    )
    assert taken is not None
    removed, stored = heard()
    assert removed.startswith("FDSTOREREMOVE=1"), "by its name, which both have"
    assert stored.startswith("FDSTORE=1")
    taken.close()


def test_one_that_does_not_listen_or_is_no_socket_goes(kept: Any, tmp_path: Path) -> None:
    make, heard = kept
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{bound.getsockname()[1]}"
    held = make(("interlock-listen-detector/", bound.detach()))
    assert held.take("detector", address) is None
    file = os.open(tmp_path, os.O_RDONLY)
    make(("interlock-listen-detector/", file))
    assert len(heard()) == 2
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(file)


def test_a_socket_whose_file_was_replaced_goes(kept: Any, short_path: Path) -> None:
    make, heard = kept
    listen = f"unix:{short_path}/x.sock"
    first, _ = open_listener(listen)
    Kept.keep("detector", first)
    (said,) = heard()
    name = said.partition("FDNAME=")[2]
    second, _ = open_listener(listen)  # another program has taken the path
    assert make((name, first.detach())).take("detector", listen) is None
    second.close()


def test_what_is_meant_for_another_process_is_left_alone(kept: Any) -> None:
    make, heard = kept
    number, address = listening("127.0.0.1:0")
    assert make(("interlock-listen-detector/", number), pid=1).take("detector", address) is None
    assert heard() == []
    os.close(number)
