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
from functools import partial
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
        async with Api(made.url, made.token, made.ca) as api:
            meant = {"devices": devices, "valid_for_s": 7 * 86_400}
            head = await export.head(api, MODEL, version, meant, datetime.now(UTC))
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


def stands(one: Watcher, version: str, policy: str) -> dict[str, Any]:
    """Wait until the server knows of the file's release; the unit's facts."""

    def told() -> dict[str, Any] | None:
        unit = one.world.ask("GET", f"/v1/devices/{one.device.name}")["units"].get(MODEL) or {}
        file = unit.get("sideload") or {}
        return dict(unit) if (unit.get("confirmed"), file.get("policy")) == (version, policy) else None

    return dict(until(told, f"the server to know of {version}, {policy}"))


def test_what_was_wanted_before_a_file_stands_back_and_what_is_wanted_after_replaces_it(one: Watcher) -> None:
    made = one.world
    first, cut_off, brought, after = (made.release() for _ in range(4))
    confirmed = one.wish(first)
    one.settles(first, confirmed)
    file = exported(made, brought)
    one.web.close()
    one.broker.close()
    never_heard = one.wish(cut_off)  # the server wants it, and the device does not know
    assert install(one, file)[0] == 0
    one.web.open()
    one.broker.open()
    assert made.server_says(never_heard, "superseded")["reason"] == f"sideload {brought}"
    assert made.assignment(confirmed)["state"] == "confirmed"  # it was, and something else was wanted since
    assert stands(one, brought, "once")["running"] == brought
    device = f"/v1/devices/{one.device.name}"
    until(lambda: made.ask("GET", device)["units"][MODEL]["offered"] == brought, "nothing older to be wanted")
    one.settles(after, one.wish(after))
    until(lambda: made.ask("GET", device)["units"][MODEL]["sideload"] is None, "nothing of a file to stand")


def test_what_is_pinned_stays_until_a_person_unpins_it(one: Watcher) -> None:
    made, text = one.world, one.device.config.read_text()
    brought, after = made.release(), made.release()
    file = exported(made, brought)
    one.device.config.write_text(text + '[sideload]\npolicy = "pin"\n')
    one.device.agent.stop()
    one.device.start_agent()
    assert install(one, file)[0] == 0
    stands(one, brought, "pin")
    rollout = one.wish(after)
    assert made.server_says(rollout, "superseded")["reason"] == f"sideload {brought}"
    assert one.device.ask("status")["units"][MODEL]["running"] == brought
    made.ask("POST", f"/v1/devices/{one.device.name}/unpin", {"model": MODEL})
    one.settles(after, rollout)
    assert install(one, exported(made, made.release()))[0] == 0
    assert one.device.ask("unpin", unit=MODEL)["unit"] == MODEL
    assert one.device.ask("status")["units"][MODEL]["sideload"] is None
    one.device.config.write_text(text)
    one.device.agent.stop()
    one.device.start_agent()


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


REFUSALS: dict[str, tuple[Any, set[str], int]] = {
    "for another device": (lambda made, head: permit(made, head, devices=("press-8",)), {"other_device"}, 12),
    "expired": (
        lambda made, head: permit(made, head, expires_at="2025-01-01T00:00:00Z", issued_at="2024-12-01T00:00:00Z"),
        {"expired"},
        11,
    ),
    "for another release": (
        lambda made, head: permit(made, head, version="9.9.9"),
        {"permit_for_other_release"},
        12,
    ),
    "signed by a stranger": (foreign_permit, {"bad_signature"}, 17),
    "missing": (
        lambda made, head: Head(head.data, head.manifest, head.metadata, head.director, None),
        {"no_permit"},
        12,
    ),
    "unsigned": (
        lambda made, head: Head(head.data, head.manifest, {}, None, None),
        {"unsigned_bundle"},
        17,
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_bundle_without_a_good_permit_is_refused(one: Watcher, name: str) -> None:
    change, codes, exit_code = REFUSALS[name]
    before = one.device.ask("status")["units"][MODEL]
    made = one.world
    file = exported(made, made.release(), change=lambda head: change(made, head))
    code, answer = install(one, file)
    assert code == exit_code
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
    assert code in {14, 17, 18}, answer
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


def test_a_server_that_forbids_files_is_heard_and_so_is_that_it_no_longer_does(one: Watcher) -> None:
    made, before = one.world, one.device.ask("status")["units"][MODEL]["running"]
    file = exported(made, made.release())
    assert made.server is not None

    def heard(policy: str) -> bool:
        found = rows(one.device, "SELECT value FROM fact WHERE name = 'sideload'")
        return (json.loads(found[0][0]) if found else None) == (policy or None)

    for policy in ("forbid", ""):
        made.server.stop()
        made.start_server(*(("--sideload", policy) if policy else ()))
        until(partial(heard, policy), "the server's policy to be heard")
        exit_code, answer = install(one, file)
        if not policy:
            assert exit_code == 0, answer
            return
        assert (exit_code, answer["error"]["code"]) == (16, "sideload_forbidden")
        assert "by the server" in answer["error"]["message"]
        assert one.device.ask("status")["units"][MODEL]["running"] == before
