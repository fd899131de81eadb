"""A release from a file or a pipe, with the server stopped: the same trust, the same gate; told later."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from interlock_server.adapters.keys import OnlineKeys
from interlock_server.publisher import export
from interlock_server.publisher.client import Api
from interlock_shared import canonical, trust
from interlock_shared.archive import Head
from interlock_shared.documents import Permit
from tests.e2e import releases, stopped
from tests.e2e.world import MODEL, RESTING, Watcher, World, eventually, rows
from tests.rig.fleet import BIN, until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with stopped.device() as found:
        yield found


@pytest.fixture
def offline(one: Watcher) -> Iterator[Watcher]:
    """No server while the test runs."""
    assert one.world.server is not None
    one.world.server.stop()
    yield one
    one.web.open()
    one.world.start_server()


def exported(made: World, version: str, devices: list[str] | None = None, change: Any = None) -> Path:
    """The release as a file, with a permit for these devices (None: any); `change`d before it is written."""
    path = made.folder / f"{version}.bundle"

    async def work() -> None:
        async with Api(made.url, made.token) as api:
            head = await export.head(api, MODEL, version, devices, 7)
            if change is not None:
                head = await asyncio.to_thread(change, head)
            with await asyncio.to_thread(path.open, "wb") as out:
                await export.export(api, head, out)

    asyncio.run(work())
    return path


def install(one: Watcher, file: Path | str, **more: Any) -> tuple[int, dict[str, Any]]:
    """`interlock-agent install FILE --json`: exit code and document."""
    done = one.device.cli("install", str(file), "--json", check=False, **more)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def nothing_left(one: Watcher) -> None:
    """No payload beside the slots, and nothing in the fetcher's temporary folders."""
    until(lambda: not list((one.device.state / "incoming").rglob("*.onnx")), "an empty incoming folder")


def test_a_file_and_a_pipe_install_without_a_server_which_learns_of_it(one: Watcher) -> None:
    made = one.world
    versions = [made.release(), made.release()]
    files = [exported(made, version, [one.device.name]) for version in versions]
    assert made.server is not None
    made.server.stop()
    with one.traffic() as traffic:
        assert install(one, files[0])[0] == 0
        assert one.device.ask("status")["units"][MODEL]["running"] == versions[0]
        with subprocess.Popen(["cat", str(files[1])], stdout=subprocess.PIPE) as cat:
            code, answer = install(one, "-", stdin=cat.stdout)
        assert (code, answer["phase"], answer["version"]) == (0, "confirmed", versions[1])
        assert install(one, files[1])[0] == 0  # again: it is what is confirmed already
        traffic.answered(10)
    assert one.device.ask("status")["outbox"]["waiting"] > 0
    made.start_server()

    def told() -> list[tuple[str, str]]:
        events = [event for event in made.events(one.device) if event["kind"] == "confirmed"]
        return [(event["version"], event["origin"]) for event in events]

    until(lambda: {(version, "sideload") for version in versions} <= set(told()), "the server to learn of it")
    unit = until(
        lambda: (
            (u := made.ask("GET", f"/v1/devices/{one.device.name}")["units"][MODEL])["running"] == versions[1] and u
        ),
        "the server's view",
    )
    assert unit["confirmed"] == versions[1]
    assert one.device.ask("status")["units"][MODEL]["running"] == versions[1]  # not pushed back


def permit(made: World, head: Head, **changes: Any) -> Head:
    """The same bundle with a permit that the director has signed so."""
    now = datetime.now(UTC)
    facts: dict[str, Any] = {
        "model": head.manifest.model,
        "version": head.manifest.version,
        "manifest_sha256": canonical.sha256(head.data),
        "devices": None,
        "issued_at": (now - timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expires_at": (now + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    sealed = OnlineKeys.open(made.data / "keys").seal(Permit(**{**facts, **changes}), trust.PERMIT_TYPE)
    return Head(head.data, head.manifest, head.metadata, head.director, sealed)


def foreign_permit(made: World, head: Head) -> Head:
    """Signed by somebody."""
    assert head.permit is not None
    stranger = OnlineKeys.open(made.folder / "stranger")
    opened = json.loads(head.permit)
    payload = Permit.model_validate_json(base64.b64decode(opened["payload"]))
    return Head(head.data, head.manifest, head.metadata, head.director, stranger.seal(payload, trust.PERMIT_TYPE))


REFUSALS: dict[str, tuple[Any, set[str]]] = {
    "for another device": (lambda made, head: permit(made, head, devices=("press-8",)), {"other_device"}),
    "expired": (
        lambda made, head: permit(made, head, expires_at="2025-01-01T00:00:00Z", issued_at="2024-12-01T00:00:00Z"),
        {"expired", "metadata_expired", "bad_metadata"},
    ),
    "for another release": (
        lambda made, head: permit(made, head, version="9.9.9"),
        {"permit_for_other_release"},
    ),
    "signed by a stranger": (foreign_permit, {"unknown_key", "bad_signature"}),
    "missing": (
        lambda made, head: Head(head.data, head.manifest, head.metadata, head.director, None),
        {"no_permit"},
    ),
    "unsigned": (
        lambda made, head: Head(head.data, head.manifest, {}, None, None),
        {"unsigned_bundle", "no_permit"},
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_bundle_without_a_good_permit_is_refused(one: Watcher, name: str) -> None:
    change, codes = REFUSALS[name]
    before = one.device.ask("status")["units"][MODEL]
    made = one.world
    file = exported(made, made.release(), change=lambda head: change(made, head))
    code, answer = install(one, file)
    assert code == 1
    assert answer["error"]["code"] in codes, answer
    after = one.device.ask("status")["units"][MODEL]
    assert (after["running"], after["generation"]) == (before["running"], before["generation"])
    nothing_left(one)


def damaged(one: Watcher, how: str) -> Path:
    """A good bundle, damaged."""
    file = exported(one.world, one.world.release(padding=300_000))
    data = bytearray(file.read_bytes())
    if how == "cut in the payload":
        del data[len(data) * 2 // 3 :]
    elif how == "cut in the head":
        del data[3000:]
    elif how == "a bit in the payload":
        data[len(data) * 2 // 3] ^= 1
    elif how == "a bit in the manifest":
        data[data.index(b'"min_seconds"') + 20] ^= 1
    elif how == "empty":
        data.clear()
    elif how == "noise":
        data = bytearray(os.urandom(100_000))
    else:
        data = data * 2
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    "how",
    [
        "cut in the payload",
        "cut in the head",
        "a bit in the payload",
        "a bit in the manifest",
        "empty",
        "noise",
        "twice",
    ],
)
def test_a_damaged_bundle_is_refused_and_leaves_nothing(one: Watcher, how: str) -> None:
    before = one.device.ask("status")["units"][MODEL]["running"]
    code, answer = install(one, damaged(one, how))
    assert code == 1, answer
    reason = answer.get("error", {}).get("code") or answer["reason"]
    assert reason in {
        "truncated", "segment_mismatch", "manifest_mismatch", "not_a_bundle", "invalid", "bad_archive", "not_canonical",
        "foreign_member", "not_signed", "untrusted", "not_json",
    }, answer  # fmt: skip
    assert one.device.ask("status")["units"][MODEL]["running"] == before
    nothing_left(one)


def test_an_agent_that_dies_while_a_file_is_read_says_so_afterwards(one: Watcher) -> None:
    """The file has gone with the person who held it: the attempt ends, and what serves, serves."""
    before = one.device.ask("status")["units"][MODEL]["running"]
    file = exported(one.world, one.world.release(padding=2_000_000))
    reading, writing = os.pipe()
    command = [str(BIN / "interlock-agent"), "install", "-", "--config", str(one.device.config)]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as person:
        os.close(reading)
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            pipe.write(file.read_bytes()[:1_000_000])
            one.reaches("fetching")
            one.device.agent.kill()
            assert person.wait(30) == 3
            assert person.stderr is not None
            assert "Traceback" not in person.stderr.read()
    one.device.start_agent()
    one.reaches("failed")
    unit = one.device.ask("status")["units"][MODEL]
    assert (unit["reason"], unit["running"]) == ("source_lost", before)
    nothing_left(one)
    assert install(one, file)[0] == 0  # and another time it goes


def test_an_agent_that_dies_after_the_file_was_read_finishes_the_install(one: Watcher) -> None:
    version = one.world.release()
    file = exported(one.world, version)
    with one.between.stop("evaluate") as stop:
        command = [str(BIN / "interlock-agent"), "install", str(file), "--config", str(one.device.config)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as person:
            stop.wait()
            one.device.agent.kill()
            assert person.wait(30) == 3
    one.device.start_agent()  # not `rests`: `offered` is what the server wants, and that is another release

    def served() -> bool:
        unit = one.device.ask("status")["units"][MODEL]
        return (unit["phase"], unit["running"], unit["confirmed"]) == ("confirmed", version, version)

    eventually(served, f"{version} to be confirmed")


def test_the_same_bytes_under_a_new_number_are_not_tried_again(one: Watcher) -> None:
    made = one.world
    scale = 9.5
    bad = made.release(scale=scale, nan_on=stopped.MAGIC, trial_s=60.0)
    rollout = one.wish(bad)
    one.reaches("trial")
    stopped.infer(one.address(), stopped.MAGIC)
    made.server_says(rollout, "reverted")
    again = made.release(scale=scale, nan_on=stopped.MAGIC, trial_s=60.0)
    file = exported(made, again)
    loads = rows(one.device, "SELECT count(*) FROM history WHERE after = 'gating'")
    code, answer = install(one, file)
    assert (code, answer["phase"], answer["reason"]) == (1, "failed", "quarantined")
    made.server_says(one.wish(again), "failed")
    assert rows(one.device, "SELECT count(*) FROM history WHERE after = 'gating'") == loads
    nothing_left(one)


@pytest.mark.skipif(os.geteuid() != 0, reason="A FULL DISK IS NOT TESTED: a small file system needs root")
def test_a_disk_without_room_is_said_and_waited_for(one: Watcher) -> None:
    incoming = one.device.state / "incoming"
    until(lambda: one.phase() in RESTING, "rest")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    version = one.world.release(padding=3_000_000)
    file = exported(one.world, version)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(incoming)], check=False)
    if mounted.returncode != 0:
        pytest.skip("A FULL DISK IS NOT TESTED: nothing can be mounted here")
    try:
        code, answer = install(one, file)
        assert code in {1, 3}
        assert (answer.get("error", {}).get("code") or answer["reason"]) == "no_space", answer
        rollout = one.wish(version)
        until(lambda: one.device.ask("status")["units"][MODEL]["reason"] == "no_space", "no space")
    finally:
        subprocess.run(["umount", "-l", str(incoming)], check=True)
    one.settles(version, rollout)  # there is room now


def test_a_release_folder_is_no_bundle(one: Watcher, tmp_path: Path) -> None:
    folder = releases.write(tmp_path / "folder", "1.0.0", 1.0)
    done = one.device.cli("install", str(folder / "model.onnx"), "--json", check=False)
    assert json.loads(done.stdout)["error"]["code"] in {"not_a_bundle", "bad_archive", "truncated"}
    assert one.device.agent.pid


def test_an_install_with_the_server_stopped_does_not_wait_for_it(one: Watcher) -> None:
    file = exported(one.world, one.world.release())
    one.web.close()
    one.broker.close()
    assert install(one, file)[0] == 0
    one.web.open()
    one.broker.open()
