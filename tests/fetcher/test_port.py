"""What is refused before python-tuf reads it: who may sign must be people that can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from securesystemslib.signer import CryptoSigner, SSlibKey

from interlock_agent.fetcher.trust import Trust
from interlock_shared.floors import DELEGATED, RESERVED
from tests.fetcher.walks import AT, made, refusal, walk


@pytest.mark.parametrize("ids", ["a", "ab"])
@pytest.mark.parametrize(("role", "by"), [("snapshot", "root"), ("release-a", "targets")])
def test_one_key_under_two_ids_is_nobodys_second(tmp_path: Path, role: str, by: str, ids: str) -> None:
    one = made()
    known, key = walk(one, tmp_path, {}), ed25519.Ed25519PrivateKey.generate()
    public = SSlibKey.from_crypto(key.public_key()).to_dict()
    one.keys[role] = [CryptoSigner(key, SSlibKey.from_dict(name * 64, dict(public))) for name in ids]
    above = one.signed[by]
    for signer in one.keys[role]:
        above.add_key(signer.public_key, role)
    above.get_delegated_role(role).threshold = len(ids)
    if by == "root":
        one.next_root()
    one.publish("release-a", "targets")
    if len(ids) == 1:
        assert walk(one, tmp_path, known)[by] == known[by] + 1
    else:
        assert refusal(lambda: walk(one, tmp_path, known)) == "key_exists"
        assert Trust(one.root, tmp_path, one, AT).version(by) == known[by], "what lets it sign is not kept"


def test_an_embedded_root_with_one_key_twice_is_not_usable(tmp_path: Path) -> None:
    one = made()
    public = one.keys["root"][0].public_key.to_dict()
    one.signed["root"].add_key(SSlibKey.from_dict("b" * 64, public), "root")
    one.write("root")
    assert refusal(lambda: walk(one, tmp_path, {})) == "key_exists"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_role_named_as_what_stands_beside_the_versions_touches_nothing_of_it(tmp_path: Path, name: str) -> None:
    one = made()
    before = walk(one, tmp_path, {})
    one.delegate(name, "b/*")
    one.signed[name].version = 2**31 - 1
    one.add("b/model", b"weights", name)
    one.publish(name, "targets")
    chain = Trust(one.root, tmp_path, one, AT)
    _, after = chain.target("b/model", chain.refresh(before))
    assert chain.version(name) == 2**31
    assert after == {**before, "timestamp": 2, "snapshot": 2, "targets": 2, DELEGATED: after[DELEGATED]}
    assert after[DELEGATED].keys() == {"release-a"}
