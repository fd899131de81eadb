"""What a stolen publisher token, or a stolen key of another role, cannot do: attacks on trust and releases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, Targets

from interlock_shared import canonical, manifest, topics
from tests.server.fleet_fixture import EXPIRES, MODEL, Fleet, Json, Offline, release_body, running, sign, the_manifest


async def state(fleet: Fleet) -> Any:
    files = sorted((fleet.folder / "tuf").glob("*.json"))
    return [(one.name, one.read_bytes()) for one in files], await fleet.admin.get(topics.RELEASES)


def foreign_key(fleet: Fleet) -> Json:
    return fleet.offline.next_release(the_manifest("1.1.0"), key=CryptoSigner.generate_ed25519())


def other_role(fleet: Fleet) -> Json:
    return fleet.offline.next_release(the_manifest("1.1.0"), key=fleet.offline.targets_key)


def unsigned(fleet: Fleet) -> Json:
    body = fleet.offline.next_release(the_manifest("1.1.0"))
    body["metadata"]["signatures"] = []
    return body


def altered_after_signing(fleet: Fleet) -> Json:
    body = fleet.offline.next_release(the_manifest("1.1.0"))
    target = body["metadata"]["signed"]["targets"]["detector/1.1.0/manifest.json"]
    target["length"] += 1
    return body


def same_version_again(fleet: Fleet) -> Json:
    return fleet.offline.next_release(the_manifest("1.1.0"), version=fleet.offline.release.version)


def version_jump(fleet: Fleet) -> Json:
    return fleet.offline.next_release(the_manifest("1.1.0"), version=fleet.offline.release.version + 2)


def changed(fleet: Fleet, change: Callable[[Targets], None], version: str = "1.1.0") -> Json:
    body = fleet.offline.next_release(the_manifest(version))
    signed = Metadata[Targets].from_dict(copy.deepcopy(body["metadata"])).signed
    change(signed)
    return {**body, "metadata": sign(signed, fleet.offline.release_key)}


def old_target_altered(fleet: Fleet) -> Json:
    def change(signed: Targets) -> None:
        signed.targets["detector/1.0.0/manifest.json"].length += 1

    return changed(fleet, change)


def old_target_gone(fleet: Fleet) -> Json:
    def change(signed: Targets) -> None:
        del signed.targets["detector/1.0.0/manifest.json"]

    return changed(fleet, change)


def foreign_target(fleet: Fleet) -> Json:
    def change(signed: Targets) -> None:
        signed.targets["other/1.0.0/manifest.json"] = signed.targets["detector/1.1.0/manifest.json"]

    return changed(fleet, change)


def expired(fleet: Fleet) -> Json:
    def change(signed: Targets) -> None:
        signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)

    return changed(fleet, change)


def published_again(fleet: Fleet) -> Json:
    return fleet.offline.next_release(the_manifest("1.0.0"))


def other_manifest(fleet: Fleet) -> Json:
    body = fleet.offline.next_release(the_manifest("1.1.0"))
    return release_body(the_manifest("1.1.0", b"WEIGHTS"), body["metadata"])


def missing_segment(fleet: Fleet) -> Json:
    return fleet.offline.next_release(the_manifest("1.1.0", b"never uploaded"))


def wrong_segment_size(fleet: Fleet) -> Json:
    document = the_manifest("1.1.0").model_dump(mode="json", by_alias=True)
    document["files"][0]["size"] = document["files"][0]["segments"][0]["size"] = 8
    return fleet.offline.next_release(manifest.from_document(document))


def unknown_model(fleet: Fleet) -> Json:
    return fleet.offline.next_release(the_manifest("1.0.0", model="stranger"))


def root_metadata(fleet: Fleet) -> Json:
    return release_body(the_manifest("1.1.0"), fleet.offline.root(fleet.online))


def not_metadata(fleet: Fleet) -> Json:
    return release_body(the_manifest("1.1.0"), {"signed": {"_type": "targets"}, "signatures": [{}]})


def not_base64(fleet: Fleet) -> Json:
    return {**fleet.offline.next_release(the_manifest("1.1.0")), "manifest": "§§§"}


def with_a_command(fleet: Fleet) -> Json:
    document = {**the_manifest("1.1.0").model_dump(mode="json", by_alias=True), "exec": "reboot"}
    body = fleet.offline.next_release(the_manifest("1.1.0"))
    import base64

    return {**body, "manifest": base64.b64encode(canonical.encode(document)).decode()}


ATTACKS = [
    (foreign_key, 422, "bad_signature"),
    (other_role, 422, "bad_signature"),
    (unsigned, 422, "bad_signature"),
    (altered_after_signing, 422, "bad_signature"),
    (same_version_again, 409, "stale_metadata"),
    (version_jump, 409, "stale_metadata"),
    (old_target_altered, 409, "target_changed"),
    (old_target_gone, 409, "target_changed"),
    (foreign_target, 400, "foreign_target"),
    (expired, 422, "expired"),
    (published_again, 409, "release_exists"),
    (other_manifest, 422, "target_mismatch"),
    (missing_segment, 409, "segments_missing"),
    (wrong_segment_size, 409, "segments_missing"),
    (unknown_model, 404, "unknown_model"),
    (root_metadata, 400, "invalid_metadata"),
    (not_metadata, 400, "invalid_metadata"),
    (not_base64, 400, "invalid"),
    (with_a_command, 400, "command_in_manifest"),
]


async def test_a_release_that_is_not_right_is_refused_and_changes_nothing(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    before = await state(fleet)
    for attack, status, code in ATTACKS:
        got, document = await fleet.admin.ask("POST", topics.RELEASES, attack(fleet))
        assert (got, document["code"]) == (status, code), (attack.__name__, document)
        assert await state(fleet) == before, attack.__name__
    await fleet.publish("1.1.0")


async def test_the_missing_segments_are_named(fleet: Fleet) -> None:
    _, document = await fleet.admin.ask("POST", topics.RELEASES, missing_segment(fleet))
    assert document["details"]["missing"] == [canonical.sha256(b"never uploaded")]


# --- trust --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def fresh(tmp_path: Path) -> Any:
    """A server without trust metadata."""
    async with running(tmp_path / "server", Offline()) as one:
        yield one


def foreign_timestamp_key(fleet: Fleet) -> Json:
    body = fleet.offline.trust(fleet.online)
    key = CryptoSigner.generate_ed25519().public_key
    online = {**fleet.online, "timestamp": {"keyid": key.keyid, "key": key.to_dict()}}
    return {**body, "root": fleet.offline.root(online)}


def foreign_director(fleet: Fleet) -> Json:
    key = CryptoSigner.generate_ed25519().public_key
    director = {"schema": "interlock.director/1", "epoch": 1, "keys": {key.keyid: key.to_dict()}}
    return {**fleet.offline.trust(fleet.online), "targets": fleet.offline.targets(director), "director": director}


def other_director(fleet: Fleet) -> Json:
    body = fleet.offline.trust(fleet.online)
    return {**body, "director": {**body["director"], "epoch": 2}}


def targets_by_foreign_key(fleet: Fleet) -> Json:
    body = fleet.offline.trust(fleet.online)
    return {**body, "targets": Offline().targets(body["director"])}


def root_by_foreign_key(fleet: Fleet) -> Json:
    body = fleet.offline.trust(fleet.online)
    signed = Metadata[Any].from_dict(copy.deepcopy(body["root"])).signed
    return {**body, "root": sign(signed, CryptoSigner.generate_ed25519())}


def second_root_first(fleet: Fleet) -> Json:
    return {**fleet.offline.trust(fleet.online), "root": fleet.offline.root(fleet.online, version=2)}


def delegated_missing(fleet: Fleet) -> Json:
    return {**fleet.offline.trust(fleet.online), "delegated": {}}


def delegated_foreign(fleet: Fleet) -> Json:
    body = fleet.offline.trust(fleet.online)
    return {**body, "delegated": {**body["delegated"], "release-other": body["delegated"]["release-detector"]}}


def releases_smuggled_in(fleet: Fleet) -> Json:
    body = fleet.offline.trust(fleet.online)
    return {**body, "delegated": {"release-detector": fleet.offline.next_release(the_manifest())["metadata"]}}


def too_wide_delegation(fleet: Fleet) -> Json:
    body = fleet.offline.trust(fleet.online)
    signed = Metadata[Targets].from_dict(copy.deepcopy(body["targets"])).signed
    assert signed.delegations is not None
    assert signed.delegations.roles is not None
    signed.delegations.roles["release-detector"].paths = ["*/*/manifest.json"]
    return {**body, "targets": sign(signed, fleet.offline.targets_key)}


def one_key_named_twice(fleet: Fleet) -> Json:
    """One person would be the two that the role asks for."""
    body, key = fleet.offline.trust(fleet.online), fleet.offline.release_key.public_key
    again = SSlibKey("a" * 64, key.keytype, key.scheme, {"public": key.keyval["public"].upper()})
    signed = Metadata[Targets].from_dict(copy.deepcopy(body["targets"])).signed
    signed.add_key(again, "release-detector")
    assert signed.delegations is not None
    assert signed.delegations.roles is not None
    signed.delegations.roles["release-detector"].threshold = 2
    empty = copy.deepcopy(body["delegated"]["release-detector"])
    empty["signatures"].append({**empty["signatures"][0], "keyid": again.keyid})
    targets = sign(signed, fleet.offline.targets_key)
    return {**body, "targets": targets, "delegated": {"release-detector": empty}}


@pytest.mark.parametrize(
    ("attack", "status", "code"),
    [
        (one_key_named_twice, 422, "key_exists"),
        (foreign_timestamp_key, 422, "foreign_online_key"),
        (foreign_director, 422, "foreign_online_key"),
        (other_director, 422, "target_mismatch"),
        (targets_by_foreign_key, 422, "bad_signature"),
        (root_by_foreign_key, 422, "bad_signature"),
        (second_root_first, 409, "stale_metadata"),
        (delegated_missing, 400, "invalid"),
        (delegated_foreign, 400, "invalid"),
        (releases_smuggled_in, 409, "target_changed"),
        (too_wide_delegation, 400, "foreign_delegation"),
    ],
)
async def test_trust_that_is_not_right_is_refused(
    fresh: Fleet, attack: Callable[[Fleet], Json], status: int, code: str
) -> None:
    got, document = await fresh.admin.ask("POST", topics.TRUST, attack(fresh))
    assert (got, document["code"]) == (status, code), document
    assert (await fresh.admin.get(topics.STATUS))["trust"] is None
    assert list((fresh.folder / "tuf").glob("*.json")) == []
    await fresh.admin.post(topics.TRUST, fresh.offline.trust(fresh.online))


async def test_a_second_model_and_a_new_root_are_added_later(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    offline = fleet.offline
    body = offline.trust(fleet.online)
    again = await fleet.admin.post(topics.TRUST, {**body, "delegated": {}})  # a repetition is no error
    second = Targets(version=1, expires=EXPIRES)
    following = {
        "root": offline.root(fleet.online, version=2),
        "targets": offline.targets(body["director"], (MODEL, "segmenter"), version=2),
        "delegated": {"release-segmenter": sign(second, offline.release_key)},
        "director": body["director"],
    }
    after = await fleet.admin.post(topics.TRUST, following)
    assert (after["root"], after["targets"], after["root_sha256"]) == (2, 2, again["root_sha256"])
    await fleet.publish("1.1.0")
    status, document = await fleet.admin.ask("POST", topics.TRUST, body)
    assert (status, document["code"]) == (409, "stale_metadata")


async def test_devices_get_what_python_tuf_verifies(fleet: Fleet) -> None:
    await fleet.publish("1.0.0")
    anyone = fleet.client(None)
    trust = (await anyone.get(topics.STATUS))["trust"]

    async def file(name: str) -> Metadata[Any]:
        return Metadata[Any].from_dict(await anyone.get(f"/v1/metadata/{name}"))

    root, timestamp = await file("1.root.json"), await file("timestamp.json")
    root.verify_delegate("timestamp", timestamp)
    snapshot = await file(f"{timestamp.signed.snapshot_meta.version}.snapshot.json")
    root.verify_delegate("snapshot", snapshot)
    assert timestamp.signed.version == trust["timestamp"]
    targets = await file(f"{snapshot.signed.meta['targets.json'].version}.targets.json")
    root.verify_delegate("targets", targets)
    release = await file(f"{snapshot.signed.meta['release-detector.json'].version}.release-detector.json")
    targets.verify_delegate("release-detector", release)
    async with fleet.admin.session.get(
        fleet.admin.url + "/v1/releases/detector/1.0.0/manifest", headers={"Authorization": f"Bearer {fleet.token}"}
    ) as response:
        release.signed.targets["detector/1.0.0/manifest.json"].verify_length_and_hashes(await response.read())
    async with fleet.admin.session.get(fleet.admin.url + "/v1/metadata/target/director.json") as response:
        targets.signed.targets["director.json"].verify_length_and_hashes(await response.read())


async def test_snapshot_and_timestamp_are_signed_again_before_they_expire(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    async with running(tmp_path / "server") as first:
        before = (await first.admin.get(topics.STATUS))["trust"]
    for later, signed_again in ((timedelta(hours=20), False), (timedelta(days=2), True), (timedelta(days=40), True)):
        async with running(tmp_path / "server", first.offline, first.token, clock=lambda d=later: now + d) as fleet:
            await fleet.admin.get(topics.STATUS)
            after = before
            while signed_again and after["timestamp"] == before["timestamp"]:
                after = (await fleet.admin.get(topics.STATUS))["trust"]
            assert (after["timestamp"] > before["timestamp"]) == signed_again
            document = await fleet.admin.get("/v1/metadata/timestamp.json")
            timestamp = Metadata[Any].from_dict(document).signed
            assert not timestamp.is_expired(now + later)
            before = after
