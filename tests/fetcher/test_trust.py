"""Metadata: floors, the time floor, and what is not signed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.ngclient._internal import trusted_metadata_set

from interlock_agent.fetcher.revocations import GONE, look, recorded
from interlock_agent.fetcher.trust import Trust, revoked
from interlock_shared import canonical, topics
from interlock_shared.errors import InterlockError, Unreachable
from tests.fetcher.repository import MODEL, NOW, VERSION, Files, Repository

AT = NOW.timestamp()


def walk(repository: Repository, folder: Path, floors: dict[str, Any] | None = None, *, at: float = AT, root: bytes = b"") -> dict[str, Any]:  # fmt: skip  # noqa: E501
    chain = Trust(root or repository.root(), folder, Files(repository), at)
    found = chain.refresh(floors or {})
    digest = canonical.sha256(repository.raw)
    found = chain.release(MODEL, VERSION, digest, found)
    return {**found, "director": chain.director(repository.director_epoch)}


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(InterlockError) as error:
        work()
    return error.value.code


def test_a_good_repository_raises_the_floors(tmp_path: Path) -> None:
    repository = Repository(version=3)
    found = walk(repository, tmp_path)
    assert (found["root"], found["timestamp"], found["snapshot"], found["targets"]) == (1, 3, 3, 3)
    assert found[topics.release_role(MODEL)] == 3
    assert found["director"]["epoch"] == 1
    assert walk(repository, tmp_path, found) == {**found, "director": found["director"]}


TORN = ("timestamp.json", "snapshot.json", "targets.json", f"{topics.release_role(MODEL)}.json")


@pytest.mark.parametrize("torn", ["empty", "gone", "whole"])
def test_an_older_repository_is_refused_also_over_a_torn_store(tmp_path: Path, torn: str) -> None:
    repository = Repository(version=5)
    floors = walk(repository, tmp_path)
    for name in TORN:
        if torn == "empty":
            (tmp_path / name).write_bytes(b"")
        elif torn == "gone":
            (tmp_path / name).unlink()
    older = Repository(version=4, keys=repository.keys)
    code = refused(lambda: walk(older, tmp_path, floors))
    assert code == ("bad_metadata" if torn == "whole" else "below_floor")


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "release"])
def test_time_is_the_callers_and_not_the_clocks(tmp_path: Path, role: str) -> None:
    repository = Repository(expires={role: NOW + timedelta(days=1)})
    walk(repository, tmp_path / "before")
    later = AT + 2 * 86_400
    assert refused(lambda: walk(repository, tmp_path / "after", at=later)) == "metadata_expired"


def test_python_tuf_still_reads_the_attribute_that_carries_the_time() -> None:
    source = inspect.getsource(trusted_metadata_set)
    assert "is_expired(self.reference_time)" in source
    assert "now(" not in source.replace("self.reference_time = datetime.datetime.now(datetime.timezone.utc)", "")


def test_the_embedded_root_is_the_only_anchor(tmp_path: Path) -> None:
    mine, foreign = Repository(), Repository()
    walk(mine, tmp_path)
    assert refused(lambda: walk(foreign, tmp_path, root=mine.root())) == "bad_metadata"
    assert refused(lambda: walk(mine, tmp_path / "x", root=b"no root")) == "bad_root"
    (tmp_path / "root.json").write_bytes(foreign.root())  # a cached root is never one
    assert refused(lambda: walk(foreign, tmp_path, root=mine.root())) == "bad_metadata"


def test_what_is_not_signed_is_refused(tmp_path: Path) -> None:
    assert refused(lambda: walk(Repository(released=False), tmp_path / "a")) == "not_signed"
    assert refused(lambda: walk(Repository(signed_as=b"{}"), tmp_path / "b")) == "manifest_mismatch"


def test_the_director_is_the_signed_one_and_its_epoch_never_falls(tmp_path: Path) -> None:
    repository = Repository(director_epoch=2)
    source = Files(repository)
    chain = Trust(repository.root(), tmp_path, source, AT)
    chain.refresh({})
    assert refused(lambda: chain.director(3)) == "below_floor"
    source.given = source.given.replace(b'"epoch":2', b'"epoch":9')
    assert refused(lambda: chain.director(1)) == "manifest_mismatch"


def test_a_file_that_is_missing_and_a_network_that_is_away_differ(tmp_path: Path) -> None:
    repository = Repository()
    source = Files(repository)
    del source.held["1.snapshot.json"]
    assert refused(lambda: Trust(repository.root(), tmp_path / "a", source, AT).refresh({})) == "metadata_missing"

    class Away(Files):
        def metadata(self, name: str, limit: int) -> bytes | None:
            raise Unreachable("no network")

    assert refused(lambda: Trust(repository.root(), tmp_path / "b", Away(repository), AT).refresh({})) == "unreachable"


def test_a_refresh_sees_what_was_revoked_and_a_file_cannot_bring_it_back(tmp_path: Path) -> None:
    repository = Repository(version=3)
    floors, digest = walk(repository, tmp_path), canonical.sha256(repository.raw)
    installed = {MODEL: [[VERSION, digest, False]], "factory": [["1.0.0", digest, False]]}
    chain = Trust(repository.root(), tmp_path, Files(repository), AT)
    assert look(chain, installed, chain.refresh(floors))[0] == {}
    record = {"manifest_sha256": digest, "at": "2026-05-31T00:00:00Z", "reason": "labels were swapped"}
    later = replace(repository, version=4, released=False, revoked={VERSION: record})
    chain = Trust(repository.root(), tmp_path, Files(later), AT)
    found, raised = look(chain, installed, chain.refresh(floors))
    assert found == {MODEL: {digest: {"version": VERSION, "reason": record["reason"], "at": record["at"]}}}
    assert raised[topics.release_role(MODEL)] == 4
    assert recorded(tmp_path, MODEL, VERSION, digest)
    assert not recorded(tmp_path, MODEL, VERSION, "0" * 64)
    assert not recorded(tmp_path, "factory", "1.0.0", digest)
    # The same without a record: gone is not revoked, where the device may know more than this metadata.
    silent = replace(repository, version=5, released=False)
    chain = Trust(repository.root(), tmp_path, Files(silent), AT)
    floors = chain.refresh(raised)
    assert look(chain, {MODEL: [[VERSION, digest, False]]}, floors)[0] == {}
    assert look(chain, {MODEL: [[VERSION, digest, True]]}, floors)[0][MODEL][digest]["reason"] == GONE


def test_what_its_signer_took_back_is_revoked(tmp_path: Path) -> None:
    repository = Repository(version=4)
    digest = canonical.sha256(repository.raw)
    assert not revoked(tmp_path, MODEL, VERSION, digest, 4), "nothing is known here"
    walk(repository, tmp_path)
    assert not revoked(tmp_path, MODEL, VERSION, digest, 4)
    assert revoked(tmp_path, MODEL, VERSION, "0" * 64, 4)
    assert revoked(tmp_path, MODEL, "9.9.9", digest, 4)
    assert not revoked(tmp_path, MODEL, "9.9.9", digest, 5), "the file's own metadata is newer"
