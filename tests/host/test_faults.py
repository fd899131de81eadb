"""What goes wrong, with live traffic: in each case what applications saw, and which release serves after.

A row is a fault; `lost` is what applications may have seen of it: nothing, or the end of connections that were open (a
new one is made, and asks again). Wrong answers and errors are never among it. Faults of the agent are in tests/e2e.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.host import messages
from tests.host import clients, conftest
from tests.host.clients import Connection, Load
from tests.host.rig import UNIT, OrderError, Rig, running, until
from tests.host.test_leftovers import Stubborn
from tests.host.test_shared_memory import asking, at, got, put, registered

pytestmark = pytest.mark.e2e

POISON = 666.0
SCRIPT = Path(__file__).with_name("misbehaving.py")
ONE, TWO = f"{UNIT}/1.1.0", f"{UNIT}/1.2.0"
NOTHING, CONNECTIONS = "nothing", "connections"
Case = Callable[[Rig, Load], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """A row."""

    name: str
    case: Case
    lost: str = NOTHING
    serves: str = ONE
    settings: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)  # of the confirmed release's model
    marks: tuple[pytest.MarkDecorator, ...] = ()


async def _ended(rig: Rig, outcome: str, reason: str, generation: int = 2) -> None:
    event = await rig.agent.event("outcome", generation=generation)
    assert (event["outcome"], event["reason"]) == (outcome, reason)


async def _python(rig: Rig) -> str:
    """A Python whose workers misbehave."""
    path = rig.folder / "python"
    text = f'#!/bin/sh\nexec {sys.executable} {SCRIPT} "$@"\n'
    await asyncio.to_thread(path.write_text, text)
    await asyncio.to_thread(path.chmod, 0o755)
    return str(path)


async def _misbehaving(rig: Rig, how: str, **options: Any) -> dict[str, Any]:
    """Load a candidate, generation 2, that does so."""
    await asyncio.to_thread((rig.state / "incoming").mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread((rig.state / "incoming" / "2-1.2.0.how").write_text, how)
    return await rig.load(2, options={"worker_python": await _python(rig), **options})


async def _promoted(rig: Rig, worker: str) -> None:
    await asyncio.to_thread(rig.place, rig.state / "incoming" / "2-1.2.0", "b")
    await rig.agent.order(messages.Promote(UNIT, 2, worker, "b"))


async def _again(rig: Rig) -> None:
    """A new host, where the former one was killed."""
    await rig.process.wait()
    await rig.agent.close()
    await until(lambda: not rig.children(), "what it left has ended")
    await rig.start()


# --- workers ----------------------------------------------------------------------------------------------------------


async def killed_in_a_trial(rig: Rig, load: Load) -> None:
    await rig.promote(2)
    await load.served()
    rig.kill(await rig.live_pid())
    await _ended(rig, "reverted", "worker_died")
    answer = await rig.agent.order(messages.Confirm(UNIT, 2))
    assert answer == {"confirmed": False, "outcome": "reverted", "reason": "worker_died"}


async def killed_after_confirmation(rig: Rig, load: Load) -> None:
    rig.kill(await rig.live_pid())
    await rig.agent.event("serving", release="")


async def standby_killed(rig: Rig, load: Load) -> None:
    await rig.promote(2)
    standby = next(w["pid"] for w in (await rig.agent.status())["workers"] if w["role"] == "standby")
    rig.kill(standby)
    await rig.agent.event("worker_died", release=ONE)
    await load.served()
    await rig.agent.order(messages.Revert(UNIT, 2, "error_rate"))


async def hangs_in_a_trial(rig: Rig, load: Load) -> None:
    await rig.promote(2, hang_on=POISON)
    reply = await clients.infer(rig.address, [POISON, 1.0, 1.0, 1.0])
    assert (reply.status, reply.release) == (200, ONE), "the standby has no such fault"
    await _ended(rig, "reverted", "worker_died")


async def poison(rig: Rig, load: Load) -> None:
    reply = await clients.infer(rig.address, [POISON, 1.0, 1.0, 1.0])
    assert (reply.status, reply.json()["code"]) == (500, "poison_request")
    assert (await rig.agent.status())["crashes"] == 2, "and no third"


async def crashes_while_it_loads(rig: Rig, load: Load) -> None:
    with pytest.raises(OrderError, match="worker_died"):
        await _misbehaving(rig, "load crash")


async def crashes_while_it_warms_up(rig: Rig, load: Load) -> None:
    worker = (await _misbehaving(rig, "probe crash"))["worker"]
    with pytest.raises(OrderError, match="worker_died"):
        await rig.agent.order(messages.Probe(worker, 2, 0, 10))


async def leaks_until_its_limit(rig: Rig, load: Load) -> None:
    limit = {"memory_limit_bytes": 400 << 20}
    worker = (await _misbehaving(rig, "serve leak", **limit))["worker"]
    await _promoted(rig, worker)
    await _ended(rig, "reverted", "worker_died")


# --- host and front ---------------------------------------------------------------------------------------------------


async def load_kills_the_host(rig: Rig, load: Load) -> None:
    with pytest.raises(ConnectionError):
        await _misbehaving(rig, "load host")
    await _again(rig)
    assert [w["role"] for w in (await rig.agent.status())["workers"] if w["generation"] == 2] == []


async def front_killed(rig: Rig, load: Load) -> None:
    live = await rig.live_pid()
    rig.kill(next(pid for pid in rig.children() if pid != live))
    await rig.promote(2)  # the next one has the address, and takes orders
    await load.served()
    await rig.agent.order(messages.Revert(UNIT, 2, "error_rate"))


async def host_killed_in_a_trial(rig: Rig, load: Load) -> None:
    await rig.promote(2)
    await load.served()
    rig.process.kill()
    await _again(rig)
    status = await rig.agent.status()
    assert (status["outcome"]["outcome"], status["outcome"]["reason"]) == ("interrupted", "host_restarted")


async def agent_stopped_for_its_lease(rig: Rig, load: Load) -> None:
    await rig.promote(2, lease_s=0.5)
    await rig.agent.order(messages.Renew(UNIT, 2))
    await _ended(rig, "interrupted", "lease_lapsed")
    answer = await rig.agent.order(messages.Confirm(UNIT, 2))  # it goes on, and would confirm
    assert (answer["confirmed"], answer["outcome"]) == (False, "interrupted")
    with pytest.raises(OrderError, match="lease_lapsed"):
        await rig.agent.order(messages.Renew(UNIT, 2))


async def host_killed_with_leftovers(rig: Rig, load: Load) -> None:
    environment = await asyncio.to_thread(Path(f"/proc/{await rig.live_pid()}/environ").read_bytes)
    pairs = (part.decode().partition("=") for part in environment.split(b"\0") if part)
    with Stubborn() as stubborn:
        left = await asyncio.to_thread(lambda: stubborn.start(**{name: value for name, _, value in pairs}))
        await rig.kill_host()
        assert left.poll() is None, "neither its parent's end nor a signal ends it"
        await rig.start()
        assert left.poll() == -signal.SIGKILL, "gone before anybody is served"


# --- the owner's application ------------------------------------------------------------------------------------------


async def _hooked(rig: Rig, does: str, timeout_s: float = 10.0) -> None:
    """An application that cannot take the second release."""
    script = f'case "$INTERLOCK_RELEASE" in {TWO}) {does};; esac'
    await rig.configure(hook={"command": ["/bin/sh", "-c", script], "timeout_s": timeout_s})
    with pytest.raises(OrderError, match="hook_failed"):
        await rig.promote(2)
    status = await rig.agent.status()
    assert (status["outcome"]["outcome"], status["outcome"]["reason"]) == ("reverted", "hook_failed")


async def hook_fails(rig: Rig, load: Load) -> None:
    await _hooked(rig, "exit 1")


async def hook_hangs(rig: Rig, load: Load) -> None:
    await _hooked(rig, "sleep 600", timeout_s=0.5)


# --- shared memory ----------------------------------------------------------------------------------------------------


memory = contextlib.contextmanager(conftest.shared_memory)


async def region_truncated(rig: Rig, load: Load) -> None:
    live = await rig.live_pid()
    with memory() as shared:
        put(shared, [1.0, 2.0, 3.0, 4.0], 4000)
        async with Connection(rig.address) as frames:
            await registered(frames, "frames", shared)
            ask = asking(at("frames", offset=4000), at("frames", offset=4016))
            assert (await frames.ask(ask)).release == ONE
            await asyncio.to_thread(os.truncate, shared, 4010)
            reply = await frames.ask(ask)
            assert (reply.status, reply.json()["code"]) == (400, "truncated_region")
            await asyncio.to_thread(os.truncate, shared, 4096)
            assert (await frames.ask(ask)).status == 200, "and whole again"
    assert await rig.live_pid() == live, "nobody ended on it"


async def swap_and_revert_with_regions_in_use(rig: Rig, load: Load) -> None:
    seen: list[str] = []
    with memory() as shared:
        put(shared, [1.0, 2.0, 3.0, 4.0])
        stop = asyncio.Event()

        async def frames() -> None:
            async with Connection(rig.address) as connection:
                await registered(connection, "frames", shared)
                while not stop.is_set():
                    reply = await connection.ask(asking(at("frames"), at("frames", offset=32)))
                    factor = float(reply.headers["interlock-generation"])
                    assert got(shared, 32) == [factor, 2 * factor, 3 * factor, 4 * factor], (
                        "of the release that is named"
                    )
                    seen.append(reply.release)

        task = asyncio.create_task(frames())
        await until(lambda: ONE in seen or task.done())
        await rig.promote(2)
        await until(lambda: seen[-1] == TWO or task.done())
        await rig.agent.order(messages.Revert(UNIT, 2, "error_rate"))
        await until(lambda: seen[-1] == ONE or task.done())
        stop.set()
        await task


# --- clients ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _left_open(rig: Rig, sent: bytes) -> AsyncIterator[Connection]:
    """A connection with something sent."""
    async with Connection(rig.address) as connection:
        connection.writer.write(sent)
        await connection.writer.drain()
        yield connection


async def client_never_closes(rig: Rig, load: Load) -> None:
    async with _left_open(rig, b"") as idle:
        assert (await idle.infer([1.0, 2.0, 3.0, 4.0])).release == ONE
        await rig.promote(2)
        assert (await idle.infer([1.0, 2.0, 3.0, 4.0])).release == TWO, "the same connection, the new release"
        await rig.agent.order(messages.Revert(UNIT, 2, "error_rate"))
        assert (await idle.infer([1.0, 2.0, 3.0, 4.0])).release == ONE


async def half_a_body_for_ever(rig: Rig, load: Load) -> None:
    raw = clients.request(clients.INFER, clients.inference([1.0, 2.0, 3.0, 4.0]))
    async with _left_open(rig, raw[:-5]) as half:
        await rig.promote(2)  # waits for nobody who has not asked yet
        await rig.agent.order(messages.Revert(UNIT, 2, "error_rate"))
        half.writer.write(raw[-5:])
        assert (await half.reply()).release == ONE


# --- the disk ---------------------------------------------------------------------------------------------------------


async def disk_full_while_switching(rig: Rig, load: Load) -> None:
    worker = (await rig.load(2))["worker"]
    pid, (_, hard) = rig.process.pid, resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))  # not a byte more, in any file
    with pytest.raises(OrderError, match="io"):
        await _promoted(rig, worker)
    since = time.monotonic()
    await load.served()
    assert load.answered_after(since, TWO) == 0
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    await rig.agent.order(messages.Promote(UNIT, 2, worker, "b"))
    await load.served()
    await rig.agent.order(messages.Revert(UNIT, 2, "error_rate"))


FAULTS = (
    Fault("worker killed in a trial", killed_in_a_trial),
    Fault("worker killed after confirmation", killed_after_confirmation),
    Fault("standby killed", standby_killed),
    Fault("worker hangs", hangs_in_a_trial, settings={"answer_timeout_s": 0.5}),
    Fault("worker leaks until its limit", leaks_until_its_limit),
    Fault("poison request", poison, settings={"answer_timeout_s": 0.5}, first={"hang_on": POISON}),
    Fault("candidate crashes while it loads", crashes_while_it_loads),
    Fault("candidate crashes while it warms up", crashes_while_it_warms_up),
    Fault("candidate whose load kills the host", load_kills_the_host, CONNECTIONS),
    Fault("front killed", front_killed, CONNECTIONS),
    Fault("host killed in a trial", host_killed_in_a_trial, CONNECTIONS),
    Fault("host killed, its leftovers kept alive on purpose", host_killed_with_leftovers, CONNECTIONS),
    Fault("agent stopped for its lease, then continued", agent_stopped_for_its_lease),
    Fault("hook fails", hook_fails),
    Fault("hook hangs", hook_hangs),
    Fault("shared-memory region truncated", region_truncated, marks=(pytest.mark.known_user,)),
    Fault("swap and revert with regions in use", swap_and_revert_with_regions_in_use, marks=(pytest.mark.known_user,)),
    Fault("client never closes its connection", client_never_closes),
    Fault("client sends half a body for ever", half_a_body_for_ever),
    Fault("disk full while switching", disk_full_while_switching),
)


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name, marks=fault.marks) for fault in FAULTS])
async def test_what_applications_see_and_who_serves_after(fault: Fault, short_path: Path) -> None:
    async with running(short_path, **fault.settings) as rig:
        await rig.confirmed(1, **fault.first)
        async with Load(rig.address, busy=2, idle=2, fresh=1) as load:
            await load.served()
            await fault.case(rig, load)
            since = time.monotonic()
            await load.served()
        assert [release for asked, _, release in load.log if asked >= since if release != fault.serves] == []
        said = [failure for failure in load.failures if not _broken(failure)]
        assert said == [], "no error and no wrong answer, whatever happens"
        if fault.lost == NOTHING:
            assert load.failures == []
        status = await rig.agent.status()
        assert (status["live"], status["confirmed"], status["trial"]) == (fault.serves, fault.serves, 0)
        assert (rig.slots / "live").readlink() == (rig.slots / "confirmed").readlink()


def _broken(failure: str) -> bool:
    """A connection that ended, or could not be made."""
    return failure.startswith(("Connection", "IncompleteReadError", "BrokenPipe", "OSError"))


def test_every_fault_is_told_on_its_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "faults.md"
    told = [line.split("|")[1].strip() for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [fault.name for fault in FAULTS if fault.name not in told] == []
