"""The trust client as a conformance suite for clients of The Update Framework drives it: commands in, an exit code,
files in the metadata folder, downloads, and what was asked of the repository."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from interlock_agent import trust_client
from tests.fetcher.simulator import NOW, Simulator, served

TOP = {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


@dataclass
class Client:
    """The client under test, and the repository that it is told of."""

    folder: Path
    url: str
    repository: Simulator
    monkeypatch: pytest.MonkeyPatch
    environment: dict[str, str] = field(default_factory=dict)

    def init(self, root: bytes = b"") -> int:
        (self.folder / "root").write_bytes(root or self.repository.root)
        return trust_client.main(["--metadata-dir", str(self.metadata), "init", str(self.folder / "root")])

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    def _run(self, *words: str) -> int:
        del self.repository.asked[:]
        return trust_client.main(
            ["--metadata-dir", str(self.metadata), "--metadata-url", f"{self.url}/metadata", *words]
        )

    def refresh(self, days: float = 0.0) -> int:
        self.monkeypatch.setattr(time, "time", lambda: NOW.timestamp() + days * 86_400)
        return self._run("refresh")

    def download(self, name: str) -> int:
        targets = ["--target-base-url", f"{self.url}/targets/", "--target-dir", str(self.folder / "targets")]
        return self._run("--target-name", name, *targets, "download")

    def downloaded(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((self.folder / "targets").rglob("*")) if path.is_file()]

    def trusts(self) -> dict[str, int]:
        return {
            path.stem: Metadata.from_file(str(path)).signed.version for path in sorted(self.metadata.glob("*.json"))
        }


def client_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Simulator) -> Iterator[Client]:
    with served(repository) as url:
        one = Client(tmp_path, url, repository, monkeypatch)
        monkeypatch.setattr(time, "time", NOW.timestamp)
        assert one.init() == 0
        assert repository.asked == [], "nothing is asked of anybody"
        yield one


@pytest.fixture(params=[True, False], ids=["consistent", "plain"])
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Client]:
    yield from client_of(tmp_path, monkeypatch, Simulator(consistent=request.param))


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    yield from client_of(tmp_path, monkeypatch, Simulator())


def test_init_and_refresh(client: Client) -> None:
    assert client.trusts() == {"root": 1}
    assert client.refresh() == 0
    one = "1." if client.repository.signed["root"].consistent_snapshot else ""
    assert client.repository.asked == ["2.root.json", "timestamp.json", f"{one}snapshot.json", f"{one}targets.json"]
    assert client.trusts() == TOP
    assert client.refresh() == 0
    assert client.repository.asked == ["2.root.json", "timestamp.json"], "only what may be new"


def test_a_download_refreshes_first(client: Client) -> None:
    assert client.download("no such target") == 1
    assert client.trusts() == TOP
    assert client.downloaded() == []


@pytest.mark.parametrize("damage", ["version", "signature", "no json", "nothing"])
def test_a_root_that_is_not_good_is_never_trusted(one: Client, damage: str) -> None:
    root = json.loads(one.repository.root)
    if damage == "version":
        del root["signed"]["version"]
    elif damage == "signature":
        root["signatures"][0]["sig"] = "00" * 64
    data = {"no json": b"not json", "nothing": b"\0"}.get(damage) or json.dumps(root).encode()
    one.init(data)
    assert one.refresh() == 1
    assert one.repository.asked == []


def test_fields_that_nobody_knows_are_signed_with_the_rest(client: Client) -> None:
    root = client.repository.signed["root"]
    root.unrecognized_fields["custom"] = {"a": [1, 2]}
    root.roles["root"].unrecognized_fields["more"] = "x"
    client.repository.next_root()
    assert client.refresh() == 0
    assert client.trusts()["root"] == 2
    assert json.loads((client.metadata / "root.json").read_bytes())["signed"]["custom"] == {"a": [1, 2]}


def test_the_same_version_with_another_content_is_not_taken(client: Client) -> None:
    client.refresh()
    client.repository.signed["timestamp"].snapshot_meta.version = 100
    client.repository.timestamp(bump=False)
    client.refresh()
    assert (
        json.loads((client.metadata / "timestamp.json").read_bytes())["signed"]["meta"]["snapshot.json"]["version"] == 1
    )


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_keys_of_every_role_are_rotated(client: Client, role: str) -> None:
    client.refresh()
    client.repository.rotate(role, threshold=2)
    client.repository.publish()
    assert client.refresh() == 0
    assert client.trusts() == {"root": 2, "timestamp": 2, "snapshot": 2, "targets": 2}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_below_the_threshold_nothing_is_taken(one: Client, role: str) -> None:
    one.refresh()
    one.repository.rotate(role, threshold=2)
    one.repository.keys[role].pop()
    one.repository.publish()
    assert one.refresh() == 1
    assert one.trusts().get(role, 1) == 1, "or forgotten, with the keys that had signed it"
    assert one.trusts()["root"] == 2


def test_one_key_named_again_and_again_counts_once(one: Client) -> None:
    one.refresh()
    root, key = one.repository.signed["root"], CryptoSigner.generate_ed25519()
    for _ in range(3):
        root.add_key(key.public_key, "snapshot")
    one.repository.keys["snapshot"].append(key)
    root.roles["snapshot"].threshold = 3
    one.repository.next_root()
    one.repository.publish()
    assert one.refresh() == 1
    assert one.trusts()["snapshot"] == 1


def test_a_new_root_needs_the_old_keys_and_the_new_ones(one: Client) -> None:
    one.refresh()
    before = list(one.repository.keys["root"])
    one.repository.rotate("root")
    one.repository.write("root")  # signed by the new key alone
    assert one.refresh() == 1
    assert one.trusts()["root"] == 1
    one.repository.signed["root"].version = 1
    one.repository.next_root(before)
    assert one.refresh() == 0
    assert one.trusts()["root"] == 2


@pytest.mark.parametrize("version", [1, 3])
def test_roots_follow_one_another(one: Client, version: int) -> None:
    one.refresh()
    one.repository.signed["root"].version = version
    one.repository.write("root")
    one.repository.files["2.root.json"] = one.repository.files[f"{version}.root.json"]
    assert one.refresh() == 1
    assert one.trusts()["root"] == 1


# --- rollback, freeze, mix-and-match --------------------------------------------------------------------------------


@pytest.mark.parametrize("hashes", [False, True], ids=["versions", "hashes"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_no_role_goes_back(client: Client, role: str, hashes: bool) -> None:
    client.repository.hashes = hashes
    client.repository.publish()
    client.repository.publish()
    assert client.refresh() == 0
    before = client.trusts()
    client.repository.signed[role].version -= 1
    if role == "targets":
        client.repository.publish("targets", bump=False)
        client.repository.snapshot()
    elif role == "snapshot":
        client.repository.snapshot(bump=False)
        client.repository.timestamp()
    else:
        client.repository.timestamp(bump=False)
    assert client.refresh() == 1
    assert client.trusts()[role] == before[role]


def test_versions_and_hashes_that_do_not_fit_together(one: Client) -> None:
    one.refresh()
    one.repository.signed["snapshot"].version += 1
    one.repository.write("snapshot")  # and the timestamp names the old one
    assert one.refresh() == 0
    one.repository.signed["timestamp"].snapshot_meta.version = 9
    one.repository.timestamp()
    assert one.refresh() == 1, "a snapshot that is not there"
    one.repository.hashes = True
    one.repository.publish()
    one.repository.signed["targets"].unrecognized_fields["x"] = 1
    one.repository.write("targets")
    assert one.refresh() == 1, "targets that are not those of the snapshot"
    assert one.trusts()["targets"] == 1


@pytest.mark.parametrize(
    ("role", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["snapshot", "timestamp"]), ("targets", ["snapshot"])],
)
def test_fast_forward_recovery(client: Client, role: str, rotated: list[str]) -> None:
    client.repository.signed[role].version = 99_999
    client.repository.publish(bump=False)
    client.repository.snapshot(bump=role != "snapshot") if role != "timestamp" else None
    client.refresh()
    assert client.trusts()[role] == 99_999
    client.repository.rotate(*rotated)
    client.repository.signed[role].version = 1
    client.repository.publish("targets")
    assert client.refresh() == 0
    assert client.trusts()[role] == 2


# --- expiry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_what_has_expired_is_not_taken(client: Client, role: str) -> None:
    client.refresh()
    client.repository.signed[role].expires = NOW - timedelta(days=1)
    if role == "root":
        client.repository.next_root()
    client.repository.publish()
    assert client.refresh() == 1
    after = client.trusts()
    assert after["root"] == (2 if role == "root" else 1), "an expired root is kept, for the next one to follow"
    if role != "root":
        assert after[role] == 1


def test_what_has_expired_here_is_still_what_nothing_goes_below(one: Client) -> None:
    one.repository.signed["timestamp"].expires = NOW + timedelta(days=7)
    one.repository.publish()
    assert one.refresh() == 0
    assert one.refresh(days=18) == 1
    one.repository.signed["timestamp"].expires = NOW + timedelta(days=21)
    one.repository.publish()
    assert one.refresh(days=18) == 0
    assert one.trusts() == {"root": 1, "timestamp": 3, "snapshot": 3, "targets": 3}


# --- targets and delegations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file.txt", "path/to/file.txt", "a b+c", "ünï", "x%2Fy"])
def test_a_target_is_downloaded_once(client: Client, name: str) -> None:
    client.repository.add(name, b"content")
    client.repository.publish()
    assert client.download(name) == 0
    assert client.downloaded() == [b"content"]
    assert client.download(name) == 0
    assert not [asked for asked in client.repository.asked if asked.startswith("target ")], "it is here"
    client.repository.add(name, b"other content")
    client.repository.publish()
    assert client.download(name) == 0
    assert client.downloaded() == [b"other content"], "in its place"


@pytest.mark.parametrize("given", [b"contenT", b"content and more", b"con", b"", None])
def test_a_target_that_is_not_the_signed_one_is_not_kept(client: Client, given: bytes | None) -> None:
    client.repository.add("file", b"content")
    client.repository.publish()
    for path in list(client.repository.payload):
        if given is None:
            del client.repository.payload[path]
        else:
            client.repository.payload[path] = given
    assert client.download("file") == 1
    assert client.downloaded() == []


GRAPHS: list[tuple[list[tuple[str, str, dict[str, Any]]], list[str]]] = [
    ([("targets", "A", {}), ("targets", "B", {}), ("B", "C", {})], ["A", "B", "C"]),
    ([("targets", "A", {}), ("targets", "B", {}), ("A", "C", {}), ("A", "D", {})], ["A", "C", "D", "B"]),
    ([("targets", "A", {}), ("targets", "B", {}), ("A", "C", {"terminating": True}), ("A", "D", {})], ["A", "C"]),
    ([("targets", "A", {"path": "*.py"}), ("targets", "B", {}), ("A", "C", {})], ["B"]),
    (
        [("targets", "A", {}), ("targets", "B", {}), ("B", "C", {}), ("C", "D", {}), ("D", "B", {})],
        ["A", "B", "C", "D"],
    ),
    ([("targets", "A", {}), ("targets", "B", {}), ("B", "C", {}), ("A", "C", {})], ["A", "C", "B"]),
]


@pytest.mark.parametrize(("graph", "order"), GRAPHS, ids=["-".join(order) for _, order in GRAPHS])
def test_delegations_are_walked_in_order(one: Client, graph: list[Any], order: list[str]) -> None:
    for parent, role, how in graph:
        known = one.repository.signed.get(role), one.repository.keys.get(role)
        one.repository.delegate(role, how.get("path", "*"), parent=parent, terminating="terminating" in how)
        if known[0] is not None and known[1] is not None:  # a second parent of the same role, and of the same key
            one.repository.keys[role].extend(known[1])
            one.repository.signed[role] = known[0]
    one.repository.publish(bump=False)
    one.repository.snapshot()
    assert one.download("missing") == 1
    assert [name.split(".")[1] for name in one.repository.asked[4:]] == order


@pytest.mark.parametrize("role", ["?", "#", "/role", "../role", "a%2Fb"])
def test_a_roles_name_is_no_path(client: Client, role: str) -> None:
    client.repository.delegate(role, "*")
    client.repository.publish(bump=False)
    client.repository.snapshot()
    assert client.download("missing") == 1
    name = quote(role, "")
    one = "1." if client.repository.signed["root"].consistent_snapshot else ""
    assert f"{one}{name}.json" in client.repository.asked
    assert len(client.trusts()) == 5
    assert {path.name for path in client.folder.iterdir()} <= {"metadata", "targets", "root"}


def test_a_delegated_role_does_not_go_back_either(one: Client) -> None:
    one.repository.delegate("A", "*")
    one.repository.add("x", b"x", "A")
    one.repository.publish()
    one.repository.publish()
    assert one.download("x") == 0
    for gone in one.metadata.glob("[!r]*.json"):  # whatever becomes of the files
        gone.unlink()
    one.repository.signed["A"].version -= 1
    one.repository.publish("A", bump=False)
    one.repository.snapshot()
    assert one.download("x") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--metadata-url", "http://127.0.0.1:1", "refresh"], "unreachable"),
        (["refresh"], "--metadata-url"),
        (["--metadata-url", "http://127.0.0.1:1", "download"], "--target-name"),
        (["init", "/absent/root.json"], "absent"),
    ],
)
def test_a_refusal_is_one_line(one: Client, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert trust_client.main(["--metadata-dir", str(one.metadata), *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_the_command_is_a_process_of_its_own(one: Client) -> None:
    command = [sys.executable, "-m", "interlock_agent.trust_client", "--metadata-dir", str(one.metadata)]
    done = subprocess.run([*command, "--metadata-url", f"{one.url}/metadata", "refresh"], check=False)
    assert done.returncode in (0, 1)  # by the real clock; the repository's is another one
    assert one.repository.asked[:2] == ["2.root.json", "timestamp.json"]
