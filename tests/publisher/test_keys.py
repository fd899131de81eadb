"""Keys in files, passphrases, and proposals that are not what they seem."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import SSlibKey

from interlock_server import cli
from interlock_server.publisher import ceremony, differences, proposal, status
from interlock_server.publisher.ceremony import Changes
from interlock_server.publisher.keys import KEYS_FILE, KeyFolder
from interlock_server.publisher.passphrases import Passphrases
from interlock_server.publisher.proposal import Proposal, State
from interlock_shared.errors import InterlockError
from tests.publisher.trusts import NOW, online, person, public

WORDS, OTHERS = "several words here", "and some other words"


def saying(*answers: str) -> Passphrases:
    """A person who says these, one after the other."""
    said = iter(answers)
    return Passphrases(environment={}, ask=lambda words: next(said), interactive=lambda: True)


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(InterlockError) as refused:
        call()
    return refused.value.code


# --- passphrases ------------------------------------------------------------------------------------------------------


def test_a_key_is_encrypted_unless_it_is_said_otherwise(tmp_path: Path) -> None:
    KeyFolder(tmp_path, saying(WORDS, WORDS)).create("root")
    assert b"ENCRYPTED" in (tmp_path / "root.pem").read_bytes()
    assert KeyFolder(tmp_path, saying(WORDS)).signer("root").sign(b"data").signature
    assert KeyFolder(tmp_path, saying("no", OTHERS, WORDS)).signer("root").sign(b"data").signature
    assert code_of(lambda: KeyFolder(tmp_path, saying("a", "b", "c")).signer("root")) == "wrong_passphrase"
    KeyFolder(tmp_path, Passphrases(none=True)).create("targets")
    assert b"ENCRYPTED" not in (tmp_path / "targets.pem").read_bytes()
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_one_passphrase_is_asked_for_once_and_several_each(tmp_path: Path) -> None:
    KeyFolder(tmp_path, saying(WORDS, WORDS)).create("root")
    mine = KeyFolder(tmp_path, saying(OTHERS, OTHERS))
    mine.create("targets")
    mine.create("release-a")  # of one command: the same
    opened = KeyFolder(tmp_path, saying(WORDS, OTHERS))
    assert len(opened.signers({one.keyid for one in opened.held()})) == 3


@pytest.mark.parametrize(
    ("secrets", "code"),
    [
        (Passphrases(environment={}, interactive=lambda: False), "no_passphrase"),
        (saying("short", "short"), "weak_passphrase"),
        (saying(*"abcdef"), "no_passphrase"),
        (Passphrases(environment={"INTERLOCK_PASSPHRASE": "short"}), "weak_passphrase"),
        (Passphrases(Path("/nowhere/passphrase")), "no_passphrase"),
    ],
)
def test_no_key_is_written_without_a_good_passphrase(tmp_path: Path, secrets: Passphrases, code: str) -> None:
    assert code_of(lambda: KeyFolder(tmp_path / "keys", secrets).create("root")) == code
    assert not list((tmp_path / "keys").glob("*.pem"))


def test_a_passphrase_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "words").write_text(WORDS + "\n")
    folder = tmp_path / "keys"
    KeyFolder(folder, Passphrases(tmp_path / "words", environment={})).create("root")
    given = Passphrases(environment={"INTERLOCK_PASSPHRASE": WORDS}, interactive=lambda: False)
    assert KeyFolder(folder, given).signer("root").sign(b"data").signature
    wrong = Passphrases(environment={"INTERLOCK_PASSPHRASE": OTHERS}, interactive=lambda: False)
    assert code_of(lambda: KeyFolder(folder, wrong).signer("root")) == "wrong_passphrase"
    unasked = Passphrases(environment={}, interactive=lambda: False)
    assert code_of(lambda: KeyFolder(folder, unasked).signer("root")) == "no_passphrase"


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_no_key_is_said(tmp_path: Path) -> None:
    mine = person(tmp_path, "alice", "root", "targets")
    (mine.path / "root.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    assert code_of(lambda: mine.signer("root")) == "bad_key"
    (mine.path / "root.pem").write_bytes((mine.path / "targets.pem").read_bytes())
    assert code_of(lambda: mine.signer("root")) == "bad_key"  # another key than keys.toml names
    (mine.path / "root.pem").chmod(0o640)
    assert code_of(lambda: mine.signer("root")) == "key_readable_by_others"
    (mine.path / "root.pem").unlink()
    assert code_of(lambda: mine.signer("root")) == "no_key"
    (mine.path / "targets-2.pem").touch()
    assert code_of(lambda: mine.create("targets")) == "key_exists"
    assert code_of(lambda: mine.create("snapshot")) == "bad_role"
    for text in ("keys = 1", "[[keys]]\nrole = 'root'", "\x00", "schema = 'interlock.keys/2'"):
        (mine.path / KEYS_FILE).write_text(text)
        assert code_of(mine.held) == "bad_keys_file", text


def test_keys_of_other_kinds_and_strengths_are_adopted(tmp_path: Path) -> None:
    from securesystemslib.signer import CryptoSigner

    mine = person(tmp_path, "alice")
    mine.path.mkdir()
    for name, signer, code in (
        ("p256", CryptoSigner.generate_ecdsa(), ""),
        ("p384", CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp384"), ""),
        ("rsa", CryptoSigner.generate_rsa(size=2048), "bad_key"),
    ):
        path = mine.path / f"{name}.pem"
        path.write_bytes(signer.private_bytes)
        path.chmod(0o600)
        if code:
            assert code_of(lambda path=path: mine.adopt("root", f"file:{path}")) == code  # type: ignore[misc]
        else:
            assert mine.adopt("root", f"file:{path.name}").keyid == signer.public_key.keyid
    assert len(mine.signers({one.keyid for one in mine.held()})) == 2


# --- proposals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def alice(tmp_path: Path) -> KeyFolder:
    return person(tmp_path, "alice", "root", "targets", "release-detector")


@pytest.fixture
def state(alice: KeyFolder) -> State:
    """What stands, and what the server says of TLS."""
    made = ceremony.first(online(tls_ca="PEM"), public(alice), {}, NOW)
    proposal.sign(made, alice)
    made.upload()
    return made.after


def tampered(made: Proposal) -> Iterator[tuple[str, dict[str, Any]]]:
    def fresh() -> dict[str, Any]:
        document: dict[str, Any] = json.loads(made.to_bytes())
        return document

    one = fresh()
    one["schema"] = "interlock.proposal/2"
    yield "invalid", one
    one = fresh()
    del one["next"]["targets"]
    yield "bad_proposal", one
    one = fresh()
    one["next"]["targets"] = one["next"]["roots"][0]
    yield "bad_proposal", one
    one = fresh()
    one["former"]["roots"][0]["signed"]["expires"] = "2099-01-01T00:00:00Z"
    yield "bad_signature", one
    one = fresh()
    one["former"]["targets"]["signatures"] = []
    yield "bad_signature", one
    one = fresh()
    one["next"]["delegated"]["release-foreign"] = one["former"]["delegated"]["release-detector"]
    yield "bad_proposal", one


def test_a_file_that_does_not_hang_together_is_refused(state: State) -> None:
    made = ceremony.following(state, Changes(renew={"root"}), NOW)
    for code, document in tampered(made):
        assert code_of(lambda document=document: proposal.parse(json.dumps(document).encode())) == code  # type: ignore[misc]
    assert code_of(lambda: proposal.parse(b"[]")) == "invalid"


def test_copies_are_put_together_and_bad_signatures_count_nothing(state: State, alice: KeyFolder) -> None:
    made = ceremony.following(state, Changes(renew={"root", "targets"}), NOW)
    signed = proposal.parse(made.to_bytes())
    assert proposal.sign(signed, alice) == ["root 2 with alice", "targets 2 with alice"]
    assert proposal.sign(signed, alice) == []
    document = json.loads(signed.to_bytes())
    for one in document["next"]["roots"]:
        one["signatures"][0]["sig"] = "00" * 64
    forged = proposal.parse(json.dumps(document).encode())
    assert [one.what for one in forged.missing()] == ["root 2", "root 2"]
    assert not proposal.merge([forged, signed]).missing()
    other = ceremony.following(state, Changes(renew={"root"}), NOW)
    assert code_of(lambda: proposal.merge([made, other])) == "other_proposal"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (Changes(), "no_change"),
        (Changes(thresholds={"root": 2}), "bad_threshold"),
        (Changes(thresholds={"release-detector": 0}), "bad_threshold"),
        (Changes(remove={"root": ["alice"]}), "bad_threshold"),
        (Changes(remove={"root": ["bob"]}), "unknown_key"),
        (Changes(renew={"release-other"}), "unknown_model"),
        (Changes(thresholds={"release-other": 1}), "bad_threshold"),
        (Changes(renew={"snapshot"}), "bad_role"),
    ],
)
def test_a_change_that_cannot_be_is_refused(state: State, changes: Changes, code: str) -> None:
    assert code_of(lambda: ceremony.following(state, changes, NOW)) == code


def test_the_same_key_is_not_two_people(state: State, alice: KeyFolder, tmp_path: Path) -> None:
    again = public(alice)["root"]
    assert code_of(lambda: ceremony.following(state, Changes(add={"root": again}), NOW)) == "key_exists"
    bob = public(person(tmp_path, "bob", "root"))["root"]
    twice = Changes(add={"root": bob * 2}, thresholds={"root": 3})
    assert code_of(lambda: ceremony.following(state, twice, NOW)) == "bad_threshold"
    assert code_of(lambda: ceremony.first(online(), {"root": bob * 2, "targets": bob}, {}, NOW)) == "key_exists"
    other = SSlibKey("0" * 64, bob[0].keytype, bob[0].scheme, {"public": bob[0].keyval["public"].upper()})
    twice = Changes(add={"root": [*bob, other]}, thresholds={"root": 3})  # under another id, and in capitals
    assert code_of(lambda: ceremony.following(state, twice, NOW)) == "key_exists"
    stolen = SSlibKey(
        public(alice)["release-detector"][0].keyid, bob[0].keytype, bob[0].scheme, bob[0].keyval
    )  # in the place of Alice's
    assert code_of(lambda: ceremony.following(state, Changes(add={"release-detector": [stolen]}), NOW)) == "key_exists"


def test_what_is_ours_in_root_outlives_its_changes(state: State, tmp_path: Path) -> None:
    depot = public(person(tmp_path, "depot", "sideload"))
    made = ceremony.following(state, Changes(add=depot), NOW)
    made = ceremony.following(made.after, Changes(renew={"root"}), NOW)
    ours = made.roots[0].signed.unrecognized_fields["x-interlock"]
    assert (ours["tls_ca"], list(ours["sideload"])) == ("PEM", [depot["sideload"][0].keyid])
    changes = Changes(remove={"sideload": ["depot"]}, tls_ca="OTHER")
    made = ceremony.following(made.after, changes, NOW)
    assert made.roots[0].signed.unrecognized_fields["x-interlock"] == {"tls_ca": "OTHER", "sideload": {}}
    lines = dict(differences.of_proposal(made))["root 4"]
    assert [line for line in lines if line.startswith("~ x-interlock.tls_ca: PEM with sha256 ")]
    assert [line for line in lines if line.startswith("- x-interlock.sideload.") and "depot" in line]


def test_nothing_is_signed_unseen(state: State) -> None:
    """A field that nobody has words for is shown by its path."""
    made = ceremony.following(state, Changes(renew={"root", "targets"}), NOW)
    assert made.targets is not None
    made.targets.signed.unrecognized_fields["x-other"] = {"deep": [1]}
    made.roots[0].signed.consistent_snapshot = False
    made.targets.signed.targets.pop("director.json")
    shown = dict(differences.of_proposal(made))
    assert "+ x-other.deep: [1]" in shown["targets 2"]
    assert any(line.startswith("- target director.json") for line in shown["targets 2"])
    assert "~ consistent_snapshot: true -> false" in shown["root 2"]


def test_a_name_makes_no_line_of_its_own(state: State, tmp_path: Path) -> None:
    mallory = KeyFolder(tmp_path / "mallory")
    mallory.create("root", "mallory\n  + root: key of bob")
    made = ceremony.following(state, Changes(add=public(mallory)), NOW)
    shown = dict(differences.of_proposal(made))["root 2"]
    assert [line for line in shown if "mallory" in line]
    assert not [line for line in shown if "\n" in line]
    assert "\n" not in proposal.words_of(made.needs()[1])


def test_what_expires_is_warned_of(state: State, alice: KeyFolder) -> None:
    for days, words in ((300, []), (340, ["expires in 25 days"] * 3), (400, ["expired on"] * 3)):
        found = status.roles(state, alice.held(), NOW + timedelta(days=days))
        warned = status.warnings(found, 30)
        assert len(warned) == len(words)
        assert all(word in one for word, one in zip(words, warned, strict=True))
    assert [one["role"] for one in found][:2] == ["root", "targets"]
    assert found[0]["keys"] == ["alice (here)"]
    assert status.expiring(state, NOW + timedelta(days=400)) == ["root", "targets", "release-detector"]


def test_a_signer_who_trusts_another_root_signs_nothing(
    state: State, alice: KeyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, file = ceremony.following(state, Changes(renew={"root"}), NOW), tmp_path / "next.root"
    proposal.save(file, made)
    foreign = ceremony.first(online(), public(alice), {}, NOW)
    proposal.sign(foreign, alice)
    alice.write("root.json", json.dumps(foreign.upload()["root"]).encode())
    sign = ["root", "sign", str(file), "--yes", "--keys", str(alice.path)]
    assert cli.main(sign) == 1
    assert "foreign_root" in capsys.readouterr().err
    assert proposal.load(file).missing()
    (alice.path / "root.json").unlink()
    assert cli.main(sign) == 0
    assert "you trust no root yet" in capsys.readouterr().out
    assert cli.main(["root", "show", str(file)]) == 0
    assert cli.main(sign) == 1  # nothing is left to be signed


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"])
def test_what_is_no_authority_does_not_get_into_root(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ca.pem").write_text(text)
    words = ["root", "propose", "--tls-ca", str(tmp_path / "ca.pem"), "--keys", str(tmp_path)]
    assert cli.main(words) == 2
    assert "bad_certificate" in capsys.readouterr().err
