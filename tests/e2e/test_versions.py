"""Agent, host, server and tools of different ages meet: what cannot work is refused by name, what is new is ignored."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interlock_agent import control_client
from interlock_agent.host import messages
from interlock_server.publisher import parcels
from interlock_server.publisher.release import Parcel
from interlock_shared import canonical
from interlock_shared import manifest as manifests
from interlock_shared.errors import Invalid
from tests.e2e import between, releases
from tests.e2e.world import MODEL, Watcher, eventually, watched, world

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with world() as made:
        found = watched(made, "press-7", {"listen": "127.0.0.1:0"})
        with found.web, found.broker:
            found.device.start()
            made.first(found.device)
            yield found
            found.between.close()


def newer(one: Watcher, version: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    """Publish a manifest of a newer release engineer's, past a newer server; the rollout."""
    folder = releases.write(one.world.folder / "releases" / version, version, 3.0)
    parcel = parcels.of_folder(folder)
    data = canonical.encode({**json.loads(parcel.data), **changes})
    monkeypatch.setattr(parcels, "of_folder", lambda _: Parcel(data, parcel.manifest, parcel.segments))
    one.world.publish(folder)
    return one.wish(version)


@pytest.fixture
def lenient(one: Watcher, tmp_path: Path) -> Iterator[None]:
    """The server as a later version will be: it takes manifests that this one cannot read."""
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(
        "import json\n"
        "from interlock_shared import base, manifest\n"
        "real = manifest.from_document\n"
        "def known(document):\n"
        "    names = {'min_agent', 'of_tomorrow'}\n"
        "    return real({k: v for k, v in document.items() if k not in names})\n"
        "manifest.from_document = known\n"
        "def parse(data):\n"
        "    return known(json.loads(data))\n"
        "manifest.parse = parse\n"
    )
    server = one.world.server
    assert server is not None
    server.stop()
    before = one.world.environment
    one.world.environment = {**before, "PYTHONPATH": str(tmp_path)}
    one.world.start_server()
    yield
    one.world.environment = before
    assert one.world.server is not None
    one.world.server.stop()
    one.world.start_server()


@pytest.mark.parametrize(
    ("version", "changes", "code"),
    [
        ("2.0.0", {"min_agent": "99.0.0", "of_tomorrow": {"field": 1}}, "needs_agent"),
        ("2.1.0", {"of_tomorrow": True}, "invalid"),
    ],
)
def test_a_manifest_for_a_newer_agent_is_refused_and_told(
    one: Watcher, lenient: None, monkeypatch: pytest.MonkeyPatch, version: str, changes: dict[str, Any], code: str
) -> None:
    rollout = newer(one, version, monkeypatch, **changes)
    serves = one.device.ask("status")["units"][MODEL]["running"]
    one.settles(version, rollout, "failed", serves)
    assert one.device.ask("status")["units"][MODEL]["reason"] == code
    told = next(e for e in reversed(one.world.events(one.device)) if e["kind"] == "failed")
    assert (told["version"], told["reason"]) == (version, code)
    assert ("99.0.0" in told["data"]["message"]) == (code == "needs_agent")


@pytest.mark.parametrize(("low", "high"), [(0, 0), (7, 9)])
def test_a_stranger_at_the_hosts_socket_is_told_both_ranges(one: Watcher, low: int, high: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(one.device.folder / "run" / "h.sock"))
        sock.settimeout(20)
        sock.sendall(messages.encode(messages.hello("0.0.1", "agent", low, high)))
        greeting, answer = between.read(sock), between.read(sock)
        assert greeting is not None
        assert answer is not None
        assert greeting["protocol"] == {"min": messages.PROTOCOL_MIN, "max": messages.PROTOCOL_MAX}
        assert answer["error"]["code"] == "protocol"
        for text in (f"'min': {low}, 'max': {high}", f"'min': {messages.PROTOCOL_MIN}", "agent 0.0.1"):
            assert text in answer["error"]["message"]
        assert between.read(sock) is None


@pytest.mark.parametrize(("low", "high"), [(0, 0), (7, 9)])
def test_a_stranger_at_the_agents_socket_is_told_both_ranges(
    one: Watcher, monkeypatch: pytest.MonkeyPatch, low: int, high: int
) -> None:
    hello = messages.hello
    monkeypatch.setattr(messages, "hello", lambda version, role: hello("0.0.1", role, low, high))
    monkeypatch.setattr(messages, "agree", lambda mine, theirs: 1)  # this tool looks for nothing
    with pytest.raises(Invalid) as refused:
        control_client.ask(one.device.folder / "run" / "agent.sock", "status")
    assert refused.value.code == "protocol"
    assert f"'min': {low}, 'max': {high}" in refused.value.message
    assert f"'max': {messages.PROTOCOL_MAX}" in refused.value.message


def test_an_agent_too_old_for_its_host_says_so_serves_on_and_comes_back(one: Watcher) -> None:
    device = one.device
    one.between.change_hello = lambda hello: {**hello, "version": "9.0.0", "protocol": {"min": 7, "max": 9}}
    with one.traffic() as traffic:
        device.agent.kill()
        device.start_agent()
        notes = eventually(lambda: device.ask("status")["notes"], "a note")
        assert "'min': 7, 'max': 9" in notes[0]
        assert "host 9.0.0" in notes[0]
        version = one.world.release()
        rollout = one.wish(version)
        one.reaches("staged")  # nothing is tried, and no try is spent
        one.between.change_hello = None
        one.settles(version, rollout)
        traffic.answered(10)
    assert device.ask("status")["notes"] == []


def test_what_a_newer_host_says_beyond_the_known_is_ignored(one: Watcher) -> None:
    def more(order: between.Frame, answer: between.Frame) -> between.Frame:
        del order
        extra = {"of_tomorrow": {"deep": [1, 2, 3]}}
        answer = {**answer, **extra}
        if isinstance(answer.get("ok"), dict):
            answer["ok"] = {**answer["ok"], **extra}
            if "units" in answer["ok"]:
                answer["ok"]["units"] = [{**unit, **extra} for unit in answer["ok"]["units"]]
        return answer

    one.between.change_answer = more
    one.between.change_hello = lambda hello: {**hello, "protocol": {"min": 1, "max": 9}, "of_tomorrow": 1}
    one.device.agent.kill()
    one.device.start_agent()
    version = one.world.release()
    one.settles(version, one.wish(version))
    one.between.change_answer = one.between.change_hello = None


def test_the_manifest_above_is_one_that_this_version_refuses() -> None:
    with pytest.raises(Invalid):
        manifests.from_document({"schema": manifests.SCHEMA, "of_tomorrow": True})
