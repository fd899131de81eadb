"""A new release on its way, stopped in exactly one phase of the agent's table; and what can befall a device there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.traffic import Traffic
from tests.e2e.world import MODEL, Watcher, watched, world
from tests.host import clients
from tests.rig.fleet import BIN, until

OTHER = "other"  # a second unit of the device
MAGIC = 77.0  # an input that some releases answer with NaN
HOOKED = Path(__file__).parent / "hooked"


@dataclass
class Case:
    """`ends` is how the attempt ends; `serves` is what serves then, the new release unless said."""

    one: Watcher
    traffic: Traffic
    incumbent: str
    version: str = ""
    rollout: str = ""
    ends: str = "confirmed"
    serves: str = ""
    release: Callable[[], None] = lambda: None  # lets it go on

    def start(self, **options: Any) -> None:
        """Publish a release and roll it out."""
        self.version = self.one.world.release(**options)
        self.rollout = self.one.wish(self.version)

    def settles(self) -> None:
        """It ends as it should, here and on the server."""
        self.one.settles(self.version, self.rollout, self.ends, self.serves)
        self.traffic.answered(10)


@contextlib.contextmanager
def device() -> Iterator[Watcher]:
    """A device whose every step can be stopped, with a confirmed release."""
    with world(MODEL, OTHER) as made:
        hook = made.folder / "hook"
        hook.mkdir()
        path = os.pathsep.join(part for part in (str(HOOKED), os.environ.get("PYTHONPATH", "")) if part)
        made.environment = {**made.environment, "INTERLOCK_E2E_HOOK": str(hook), "PYTHONPATH": path}
        found = watched(made, "press-7", {"listen": "127.0.0.1:0"})
        with found.web, found.broker:
            found.device.start()
            made.first(found.device)
            yield found
            found.between.close()


@contextlib.contextmanager
def case(one: Watcher) -> Iterator[Case]:
    """Live traffic, and the release that serves before."""
    incumbent = str(one.device.ask("status")["units"][MODEL]["confirmed"])
    with one.traffic() as traffic:
        yield Case(one, traffic, incumbent)


# --- how a unit gets into exactly that phase -------------------------------------------------------------------------


@contextlib.contextmanager
def fetching(case: Case) -> Iterator[None]:
    """In the middle of a segment."""
    case.one.web.stop_after(100_000)
    case.start(padding=400_000)
    assert case.one.web.stopped.wait(30)
    case.release = case.one.web.open
    yield
    case.one.web.open()


@contextlib.contextmanager
def staged(case: Case) -> Iterator[None]:
    """The gate is another unit's."""
    made = case.one.world
    with case.one.between.stop("load", matches=lambda order: order["unit"] == OTHER) as stop:
        other = made.release(model=OTHER)
        made.roll_out(other, {"device": case.one.device.name}, OTHER)
        stop.wait()
        case.release = stop.go.set
        case.start()
        case.one.reaches("staged")
        yield
    assert case.one.rests(other, OTHER)["phase"] == "confirmed"


@contextlib.contextmanager
def order(case: Case, op: str, *, answer: bool = False, **options: Any) -> Iterator[None]:
    """The unit waits for the host: its order, or the answer, is on its way."""
    with case.one.between.stop(op, answer=answer, matches=lambda order: order.get("unit", MODEL) == MODEL) as stop:
        case.start(**options)
        stop.wait()
        case.release = stop.go.set
        yield


def gating(case: Case) -> contextlib.AbstractContextManager[None]:
    """The golden set is about to be run."""
    return order(case, "evaluate")


@contextlib.contextmanager
def passed(case: Case) -> Iterator[None]:
    """Just before the spare slot is replaced."""
    held = case.one.world.folder / "hook" / "slot"
    held.touch()
    case.start()
    until((held.parent / "slot.reached").exists, "the rename into the slot")
    case.release = lambda: held.unlink(missing_ok=True)
    yield
    held.unlink(missing_ok=True)
    (held.parent / "slot.reached").unlink(missing_ok=True)


def switching(case: Case) -> contextlib.AbstractContextManager[None]:
    """The host does not know yet."""
    return order(case, "promote")


def switched(case: Case) -> contextlib.AbstractContextManager[None]:
    """Switching still, but the host has done it."""
    return order(case, "promote", answer=True)


@contextlib.contextmanager
def trial(case: Case) -> Iterator[None]:
    """It serves, and is watched."""
    case.start(trial_s=2.0)
    case.one.reaches("trial")
    yield


def confirming(case: Case) -> contextlib.AbstractContextManager[None]:
    """Before the commit point."""
    return order(case, "confirm")


def committed(case: Case) -> contextlib.AbstractContextManager[None]:
    """After the commit point; the agent does not know yet."""
    return order(case, "confirm", answer=True)


@contextlib.contextmanager
def reverting(case: Case, *, answer: bool = False) -> Iterator[None]:
    """Unhealthy; the host was told, or not yet."""
    with case.one.between.stop("revert", answer=answer) as stop:
        case.start(trial_s=60.0, nan_on=MAGIC)
        case.one.reaches("trial")
        infer(case.one.address(), MAGIC)
        stop.wait()
        case.release = stop.go.set
        case.ends, case.serves = "reverted", case.incumbent
        yield


def taken_back(case: Case) -> contextlib.AbstractContextManager[None]:
    """Reverting still, but the host has done it."""
    return reverting(case, answer=True)


@contextlib.contextmanager
def restoring(case: Case) -> Iterator[None]:
    """The owner goes back to the release before."""
    case.start()
    case.settles()
    with case.one.between.stop("load") as stop, rollback(case.one):
        stop.wait()
        case.release = stop.go.set
        case.version, case.serves, case.ends, case.rollout = case.incumbent, case.incumbent, "confirmed", ""
        yield


@contextlib.contextmanager
def rollback(one: Watcher) -> Iterator[None]:
    """A person who asked for it, and waits."""
    command = [str(BIN / "interlock-agent"), "rollback", MODEL, "--config", str(one.device.config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as asked:
        yield
        asked.terminate()


@contextlib.contextmanager
def interrupted(case: Case) -> Iterator[None]:
    """The host died in the trial; the agent asks what there is to clear up after it."""
    with case.one.between.stop("status", matches=lambda _: case.one.phase() == "interrupted") as stop:
        with order(case, "promote", answer=True):
            host_dies(case)
        stop.wait()
        case.release = stop.go.set
        yield


@contextlib.contextmanager
def waiting(case: Case) -> Iterator[None]:
    """The server cannot be reached."""
    case.one.web.close()
    case.start()
    case.one.reaches("waiting")
    case.release = case.one.web.open
    yield
    case.one.web.open()


# --- what happens there ----------------------------------------------------------------------------------------------


def infer(address: str, first: float = 1.0) -> clients.Reply:
    """One request."""
    return asyncio.run(clients.infer(address, [first, 2.0, 3.0, 4.0]))


def agent_dies(case: Case) -> None:
    """Kill -9; requests are answered on; then it is started again, as systemd does it."""
    case.one.device.agent.kill()
    case.traffic.answered(20)
    case.release()
    case.one.device.start_agent()


def host_dies(case: Case) -> None:
    """Kill -9, and started again. What serves then is the confirmed release, whatever was on trial."""
    with case.one.between.stop("promote"):  # nothing new is promoted before we have looked
        with case.traffic.gap(f"host killed while {case.one.phase()}"):
            case.one.device.host.kill()
            case.one.device.start_host()
        moment = time.monotonic()
        case.traffic.answered(20)
        assert case.traffic.since(moment) == {confirmed(case.one)}
    case.release()


def confirmed(one: Watcher) -> str:
    """The version in the confirmed slot, as the disk has it."""
    seal = one.device.state / "slots" / MODEL / "confirmed" / ".interlock" / "seal.json"
    return str(json.loads(seal.read_text())["version"])
