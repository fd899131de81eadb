"""Keys in a token: PKCS#11 through SoftHSM, and what is said where there is no token."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from interlock_server.publisher import ceremony, proposal
from interlock_server.publisher.keys import KeyFolder
from interlock_server.publisher.passphrases import Passphrases
from interlock_shared.errors import Conflict, Forbidden, Invalid, Unreachable
from tests.publisher.trusts import NOW, online

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so")
PIN, LABEL = "123456", "press key"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SoftHSM token with an ECDSA key under id 2; python-pkcs11 loads one module a process."""
    module = next((path for path in MODULES if Path(path).exists()), None)
    util = shutil.which("softhsm2-util")
    if module is None or util is None:
        pytest.skip("SoftHSM is not installed: apt install softhsm2")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        patch.setenv("PYKCS11LIB", module)
        made = ["--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", PIN]
        subprocess.run([util, *made], check=True, capture_output=True)
        _generate(module)
        yield


def _generate(module: str) -> None:
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    with pkcs11.lib(module).get_token(token_label=LABEL).open(rw=True, user_pin=PIN) as session:
        curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        parameters.generate_keypair(store=True, id=b"\x02", label="root")


def folder_of(path: Path, pin: str) -> KeyFolder:
    return KeyFolder(path, Passphrases(none=True, environment={"INTERLOCK_PIN": pin}, interactive=lambda: False))


def test_a_key_in_a_token_signs_root(token: None, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "keys", PIN)
    key = folder.adopt("root", "hsm:2", "alice")
    assert (key.keytype, key.scheme) == ("ecdsa", "ecdsa-sha2-nistp256")
    assert [one.uri for one in folder.held()] == ["hsm:2?label=press+key"]
    others = {role: [folder.create(role)] for role in ("targets", "release-detector")}
    made = ceremony.first(online(), {"root": [key], **others}, {}, NOW)
    assert len(proposal.sign(made, folder)) == 3
    root = Metadata.from_dict(made.upload()["root"])
    root.verify_delegate("root", root)
    assert not list((tmp_path / "keys").glob("root*.pem"))
    with pytest.raises(Conflict, match="already"):
        folder.adopt("root", "hsm:2?label=press+key")


def test_a_token_that_does_not_sign_says_why(token: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "keys", PIN)
    folder.adopt("root", "hsm:2?label=press+key")
    with pytest.raises(Unreachable, match="did not sign"):
        folder_of(tmp_path / "keys", "000000").signer("root").sign(b"data")
    unasked = KeyFolder(tmp_path / "keys", Passphrases(environment={}, interactive=lambda: False))
    with pytest.raises(Forbidden, match="INTERLOCK_PIN"):
        unasked.signer("root").sign(b"data")
    with pytest.raises(Unreachable, match="no-such-token"):
        folder.adopt("root", "hsm:2?label=no-such-token")
    with pytest.raises(Unreachable, match="could not find"):
        folder.adopt("root", "hsm:3?label=press+key")


def test_without_a_module_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    with pytest.raises(Unreachable, match="PYKCS11LIB"):
        KeyFolder(tmp_path).adopt("root", "hsm:2")
    for uri, words in (
        ("gcpkms:projects/p", "google-cloud-kms"),
        ("awskms:alias/x", "aws"),
        ("azurekms://v/keys/k", "azure"),
    ):
        with pytest.raises(Invalid, match=words):
            KeyFolder(tmp_path).adopt("root", uri)
    with pytest.raises(Invalid, match="is no key"):
        KeyFolder(tmp_path).adopt("root", "tpm:1")
