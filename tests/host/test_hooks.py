"""The owner's hook: told of every move of `live`, in order, and never left behind; a failing one is a failed switch."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from interlock_agent.config import Unit
from interlock_agent.host import states
from interlock_agent.host.adapters.hooks import OwnersHooks
from interlock_agent.host.engine import Engine
from interlock_agent.host.following import RETRY_HOOK_S
from interlock_agent.host.messages import Load
from interlock_agent.host.ports import WorkerError
from tests.host.world import ONE, TWO, World, turn

HOOK = {"hook": {"command": ["/usr/bin/tell"], "timeout_s": 5.0}}


@pytest.fixture
def world() -> World:
    return World()


async def started(world: World, token: str = "x") -> Engine:
    engine = Engine(world, world, world, world, world, token, world)
    await engine.start()
    await engine.configure("filetype", "127.0.0.1:0", HOOK)
    await turn()
    return engine


async def promoted(world: World, engine: Engine) -> None:
    loaded = await engine.load(Load("filetype", 2, "/two", "candidate", {}))
    world.slots["b"] = TWO
    world.trace.clear()
    world.told.clear()
    await engine.promote("filetype", 2, loaded.worker, "b", 30.0, 1.0)


async def test_it_is_told_after_live_has_moved_and_before_the_switch_is_answered(world: World) -> None:
    engine = await started(world)
    await promoted(world, engine)
    assert [line for line in world.trace if line.split()[0] in ("live", "hook")] == ["live b", "hook filetype/1.1.0"]
    assert world.told == [
        {
            "UNIT": "filetype",
            "LIVE": "/slots/live",
            "FOLDER": "/slots/b",
            "RELEASE": "filetype/1.1.0",
            "REASON": "trial",
        }
    ]
    assert world.documents["filetype"]["hooked"] == "b:2"
    world.trace.clear()
    assert await engine.confirm("filetype", 2) == {"confirmed": True}
    assert not [line for line in world.trace if line.startswith("hook")], "it reads what it read before"


async def test_one_that_fails_is_a_failed_switch_and_the_old_release_is_told(world: World) -> None:
    engine = await started(world)
    world.hook_troubles = ["exit 1: no such layer"]
    with pytest.raises(WorkerError, match="no such layer") as refused:
        await promoted(world, engine)
    assert refused.value.code == "hook_failed"
    await turn()
    unit = engine.seats["filetype"].unit
    assert (unit.phase, unit.outcome.outcome if unit.outcome else "") == (states.Phase.SERVING, "reverted")
    assert unit.outcome is not None
    assert unit.outcome.reason == "hook_failed"
    moves = [line for line in world.trace if line.split()[0] in ("live", "hook")]
    assert moves == ["live b", "hook filetype/1.1.0", "live a", "hook filetype/1.0.0"]
    assert world.serving[0] == "filetype/1.0.0"


async def test_a_worker_that_dies_in_its_trial_is_a_move_too(world: World) -> None:
    engine = await started(world)
    await promoted(world, engine)
    await engine.worker_died(engine.seats["filetype"].unit.live, "SIGKILL")
    await turn()
    assert [told["RELEASE"] for told in world.told] == ["filetype/1.1.0", "filetype/1.0.0"]
    assert world.told[-1]["REASON"] == "confirmed"


async def test_a_host_that_ended_before_it_could_tell_does_so_at_the_next_start(world: World) -> None:
    engine = await started(world)
    await promoted(world, engine)
    await engine.close()
    world.told.clear()
    again = await started(world, "y")  # the trial is over: `live` goes back, and that was not told
    assert [told["RELEASE"] for told in world.told] == ["filetype/1.0.0"]
    await again.close()
    world.told.clear()
    await started(world, "z")
    assert world.told == [], "it is told already"


async def test_where_there_is_nothing_to_go_back_to_it_is_tried_again(world: World) -> None:
    world.hook_troubles = ["exit 1: still starting"]
    engine = await started(world)
    assert engine.status()[0]["hook_trouble"] == "exit 1: still starting"
    assert len(world.told) == 1
    world.time += RETRY_HOOK_S + 1
    await turn()
    assert [told["RELEASE"] for told in world.told] == ["filetype/1.0.0"] * 2
    assert engine.status()[0]["hook_trouble"] == ""
    assert world.documents["filetype"]["hooked"] == f"a:{ONE.generation}"


async def test_what_fails_after_a_failed_switch_is_tried_again(world: World) -> None:
    engine = await started(world)
    world.hook_troubles = ["exit 1: no such layer", "exit 1: has crashed"]
    with pytest.raises(WorkerError, match="no such layer"):
        await promoted(world, engine)
    await turn()
    assert engine.status()[0]["hook_trouble"] == "exit 1: has crashed"
    told = len(world.told)
    world.time += RETRY_HOOK_S + 1
    await turn()
    assert [told["RELEASE"] for told in world.told[told:]] == ["filetype/1.0.0"], "once"
    assert engine.status()[0]["hook_trouble"] == ""


async def test_a_host_that_ends_while_it_tells_of_the_way_back_does_so_at_its_next_start(world: World) -> None:
    engine = await started(world)
    world.hook_troubles = ["exit 1: no such layer", "exit 1: killed"]
    with pytest.raises(WorkerError):
        await promoted(world, engine)
    await turn()
    await engine.close()
    assert world.pointing["live"] == "a"
    world.told.clear()
    await started(world, "y")
    assert [told["RELEASE"] for told in world.told] == ["filetype/1.0.0"], "it may use the one that was taken back"


async def test_a_trial_that_ends_while_its_hook_runs_is_no_switch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await started(world)
    running = world.run

    async def slow(hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        if facts["REASON"] == "trial":
            await engine.worker_died(engine.seats["filetype"].unit.live, "SIGKILL")
        return await running(hook, facts)

    monkeypatch.setattr(world, "run", slow)
    with pytest.raises(WorkerError, match="over already") as refused:
        await promoted(world, engine)
    assert refused.value.code == "worker_died"
    await turn()
    assert world.told[-1]["RELEASE"] == "filetype/1.0.0"


async def test_moves_are_told_one_at_a_time_the_newest_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await started(world)
    begun, recorded, go, write = list[str](), ["a:1"], asyncio.Semaphore(0), world.write

    async def slow(hook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
        del hook
        begun.append(facts["RELEASE"])
        await go.acquire()
        return ""

    async def watched(unit: str, document: dict[str, Any]) -> None:
        await write(unit, document)
        recorded.extend([document["hooked"]] if document["hooked"] != recorded[-1] else [])

    monkeypatch.setattr(world, "run", slow)
    monkeypatch.setattr(world, "write", watched)
    switch = asyncio.create_task(promoted(world, engine))
    await turn()
    await engine.worker_died(engine.seats["filetype"].unit.live, "SIGKILL")
    await turn()
    assert begun == ["filetype/1.1.0"], "the way back waits for it"
    go.release()
    await turn()
    assert begun == ["filetype/1.1.0", "filetype/1.0.0"]
    go.release()
    with pytest.raises(WorkerError, match="over already"):
        await switch
    await turn()
    assert recorded == ["a:1", "?", "b:2", "?", "a:1"], "of each what it was told, not what `live` was meanwhile"


async def test_one_that_is_taken_away_is_not_run_and_has_no_trouble(world: World) -> None:
    world.hook_troubles = ["exit 1: still starting"]
    engine = await started(world)
    assert engine.status()[0]["hook_trouble"]
    seat = engine.seats["filetype"]
    async with seat.hook_lock:
        engine._following.moved(seat)
        await engine.configure("filetype", "127.0.0.1:0", {})
    assert await engine._following.told(seat) == ""
    assert (len(world.told), engine.status()[0]["hook_trouble"]) == (1, "")


async def test_what_a_former_hook_said_is_not_held_against_a_release(world: World) -> None:
    world.hook_troubles = ["exit 1: the pipeline is gone"]
    engine = await started(world)
    await engine.configure("filetype", "127.0.0.1:0", {})
    await promoted(world, engine)
    assert engine.seats["filetype"].unit.phase is states.Phase.TRIAL


async def test_a_first_release_that_is_taken_back_leaves_nothing_and_says_so(world: World) -> None:
    world.slots.clear()
    world.pointing.update(confirmed="", live="")
    engine = await started(world)
    assert world.told == []
    await promoted(world, engine)
    await engine.revert("filetype", 2, "non_finite")
    await turn()
    assert (world.told[-1]["REASON"], world.told[-1]["FOLDER"]) == ("nothing", "")


# --- what it runs ---------------------------------------------------------------------------------------------------

FACTS = {
    "UNIT": "filetype",
    "LIVE": "/slots/live",
    "FOLDER": "/slots/b",
    "RELEASE": "filetype/1.1.0",
    "REASON": "trial",
}


def script(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [sys.executable, str(path)]


async def run(timeout_s: float = 30.0, **hook: Any) -> str:
    return await OwnersHooks().run({**hook, "timeout_s": timeout_s}, FACTS)


async def test_a_command_gets_the_facts_and_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_TOKEN", "secret")
    program = f"import json, os; open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(dict(os.environ)))"
    assert await run(command=script(tmp_path / "hook.py", program)) == ""
    seen = json.loads((tmp_path / "seen").read_text())
    assert {name: seen[f"INTERLOCK_{name}"] for name in FACTS} == FACTS
    assert "INTERLOCK_TOKEN" not in seen


async def test_what_it_says_last_is_told_when_it_fails(tmp_path: Path) -> None:
    failing = script(tmp_path / "hook.py", "import sys; print('x' * 9000); sys.exit('no such layer')")
    trouble = await run(command=failing)
    assert trouble.startswith("exit 1: x")
    assert trouble.endswith("no such layer")
    assert len(trouble) < 2100
    assert "No such file" in await run(command=["/no/such/hook"])


async def test_one_that_hangs_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    program = f"""import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])
open({str(tmp_path / "pids")!r}, 'w').write(f'{{child.pid}}')
time.sleep(3600)
"""
    trouble = await run(3.0, command=script(tmp_path / "hook.py", program))
    assert trouble == "no answer within 3 s"
    child = int((tmp_path / "pids").read_text())
    for _ in range(1000):
        if not alive(child):
            break
        await asyncio.sleep(0.01)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_a_unit_of_the_system_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert await run(systemd="deepstream.service", action="reload-or-restart") == ""
    assert (tmp_path / "said").read_text() == "--no-ask-password reload-or-restart deepstream.service\n"


class Application(BaseHTTPRequestHandler):
    status = 200
    bodies: list[dict[str, Any]] = []  # noqa: RUF012 - of a test

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).bodies.append({"path": self.path, **json.loads(body)})
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"the layers differ")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def application() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Application)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/reload?now=1"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_an_application_is_asked_over_http(application: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Application, "bodies", [])
    assert await run(http=application) == ""
    assert Application.bodies == [{"path": "/reload?now=1", **{name.lower(): value for name, value in FACTS.items()}}]
    monkeypatch.setattr(Application, "status", 500)
    assert await run(http=application) == "HTTP 500: the layers differ"
    assert "refused" in await run(http="http://127.0.0.1:1/")


async def test_one_whose_time_is_up_is_not_asked_afterwards(application: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = http.client.HTTPConnection.connect

    def late(connection: http.client.HTTPConnection) -> None:
        time.sleep(0.5)
        connect(connection)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", late)
    monkeypatch.setattr(Application, "bodies", [])
    before = set(threading.enumerate())
    assert await run(0.2, http=application) == "no answer within 0.2 s"
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join, 3)
    assert Application.bodies == [], "the next release may have been told meanwhile"


async def test_an_application_that_does_not_answer_holds_up_nothing_else() -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as only, socket.create_server(("127.0.0.1", 0)) as silent:
        loop.set_default_executor(only)
        asked = asyncio.create_task(run(2.0, http=f"http://127.0.0.1:{silent.getsockname()[1]}/"))
        await asyncio.sleep(0)
        threads = [one for one in threading.enumerate() if one.name == "hook"]
        await asyncio.wait_for(loop.run_in_executor(None, int), 1.0)
        assert not asked.done()
        assert await asked in ("no answer within 2 s", "timed out")
        for one in threads:
            await asyncio.to_thread(one.join, 30)
            assert not one.is_alive()


@pytest.mark.parametrize(
    ("hook", "complaint"),
    [
        ({}, "one of command, systemd and http"),
        ({"command": ["x"], "http": "http://x/"}, "one of command, systemd and http"),
        ({"systemd": "a b"}, "systemd"),
        ({"http": "ftp://x/"}, "http"),
        ({"command": ["x"], "timeout_s": 11.0}, "a third of trial.lease_s"),
        ({"systemd": "--version"}, "systemd"),
    ],
)
def test_a_hook_that_makes_no_sense_is_refused_by_name(hook: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Unit.model_validate({"hook": hook})
