"""Two people release: what one has signed waits for the other, who sees it first. Every step by the command itself."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from interlock_server.__main__ import Running, serve
from interlock_server.config import Settings
from interlock_server.publisher import keys, parcels, release, signing
from interlock_server.publisher.client import Api
from interlock_shared import topics
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound, Untrusted
from tests.publisher import models
from tests.publisher.test_main_path import Shell, set_version
from tests.rig.signers import Signers, replaced, two_signers


class Clock:
    """A server's clock that tests move."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capfd)


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> AsyncIterator[Running]:
    here = ("127.0.0.1", 0)
    async with serve(Settings(tmp_path / "server", here, None, here, None, None), clock) as running:
        assert running.token
        monkeypatch.setenv("INTERLOCK_SERVER", running.url)
        monkeypatch.setenv("INTERLOCK_TOKEN", running.token)
        monkeypatch.setenv("INTERLOCK_CA", str(tmp_path / "server" / "tls_ca.crt"))
        yield running


@pytest.fixture
async def signers(server: Running, tmp_path: Path) -> Signers:
    async with Api(server.url, server.token, server.tls_ca) as api:
        online = await api.get(topics.ONLINE_KEYS)
        made, upload = await asyncio.to_thread(two_signers, tmp_path, online, "detector", keys.utc_now())
        await api.post(topics.TRUST, upload)
    return made


async def named(server: Running, name: str, role: str = "publisher") -> str:
    """A token of somebody's own."""
    async with Api(server.url, server.token, server.tls_ca) as api:
        return str((await api.post(topics.API_TOKENS, {"name": name, "role": role}))["token"])


async def test_a_release_waits_for_its_second_signer(
    server: Running, shell: Shell, signers: Signers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = await named(server, "ada"), await named(server, "bob")
    first, second = ("--keys", signers.first.path, "--token", ada), ("--keys", signers.second.path, "--token", bob)
    assert "awaits signatures (1 of 2)" in await shell("publish", folder, *first)
    listed = (await shell.document("release", "list"))["releases"]
    assert [(one["version"], one["state"]) for one in listed] == [("1.4.0", "awaiting")]
    assert "1 of 2" in await shell("release", "list")
    start = ("rollout", "start", "detector", "1.4.0", "--to", "all")
    assert "error[release_pending]" in await shell(*start, code=1)

    set_version(folder, "1.5.0")  # the role's one next version is taken, and it is said by whom
    refused = await shell("publish", folder, *second, code=1)
    assert "error[release_pending]: ada has proposed to publish detector 1.4.0 at " in refused

    assert "error[signed_already]" in await shell("release", "sign", "detector", "1.4.0", *first, "--yes", code=1)
    stranger = ("--keys", signers.third.path, "--token", bob)
    assert "error[foreign_key]" in await shell("release", "sign", "detector", "1.4.0", *stranger, "--yes", code=1)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "Aborted" in await shell("release", "sign", "detector", "1.4.0", *second, code=1)  # nobody said yes
    said = await shell("release", "sign", "detector", "1.4.0", *second, "--yes")
    for words in ("provenance", "gates", "health", "signature", "variants", "files", "other targets of the role"):
        assert words in said
    assert "published detector 1.4.0" in said
    shown = await shell.document("release", "show", "detector", "1.4.0")
    signed = [(one["keyid"], one["by"]) for one in shown["signatures"]]
    assert signed == [
        (signers.keyids[0], "ada"),
        (signers.keyids[1], "bob"),
    ]
    assert (shown["state"], shown["pending"]) == ("published", None)
    assert "release-detector.pem" in await shell("release", "show", "detector", "1.4.0", "--keys", signers.second.path)
    assert "error[no_device]" in await shell(*start, code=1)  # it can be rolled out: there is only nobody

    await shell("publish", folder, *second)  # the next one; and what differs is shown
    said = await shell("release", "sign", "detector", "1.5.0", *first, "--yes")
    assert "against 1.4.0" in said
    assert "1.5.0" in said
    actions = [one["action"] for one in await audit(server)]
    assert actions[:4] == ["release.sign", "release.publish", "release.sign", "release.publish"]


async def audit(server: Running) -> list[dict[str, Any]]:
    async with Api(server.url, server.token, server.tls_ca) as api:
        return list((await api.get(topics.AUDIT))["audit"])


async def test_whoever_publishes_the_very_same_joins(
    server: Running, shell: Shell, signers: Signers, folder: Path
) -> None:
    await shell("publish", folder, "--keys", signers.first.path)
    again = await shell.document("publish", folder, "--keys", signers.first.path)  # a key counts once
    assert (again["state"], len(again["pending"]["signatures"])) == ("awaiting", 1)
    labels = folder / "labels.txt"
    labels.write_text("a\nb\nc\n")
    (folder / "bundle.toml").write_text(models.TOML + '[signature]\nlabels = "labels.txt"\n')
    assert "error[release_pending]" in await shell("publish", folder, "--keys", signers.second.path, code=1)
    (folder / "bundle.toml").write_text(models.TOML)
    assert (await shell.document("publish", folder, "--keys", signers.second.path))["state"] == "published"


async def test_what_waits_can_be_dropped_and_ends_by_itself(
    server: Running, shell: Shell, signers: Signers, folder: Path, clock: Clock
) -> None:
    ada, bob = await named(server, "ada"), await named(server, "bob")
    publish = ("publish", folder, "--keys", signers.first.path, "--token", ada)
    await shell(*publish)
    cancel = ("release", "cancel", "detector", "1.4.0", "--token")
    assert "error[not_yours]" in await shell(*cancel, bob, code=1)
    assert "cancelled" in await shell(*cancel, ada)
    assert "error[not_pending]" in await shell(*cancel, ada, code=1)
    await shell(*publish)
    await shell(*cancel, str(server.token))  # an admin may
    await shell(*publish)
    clock.ahead = timedelta(days=15)
    assert (await shell.document("release", "list"))["releases"] == []
    second = ("--keys", signers.second.path, "--yes")
    assert "error[not_pending]" in await shell("release", "sign", "detector", "1.4.0", *second, code=1)


async def test_a_key_that_was_replaced_meanwhile_does_not_count(
    server: Running, shell: Shell, signers: Signers, folder: Path
) -> None:
    """The role's metadata has moved on underneath: nothing is pending any more, and the new signers begin anew."""
    await shell("publish", folder, "--keys", signers.second.path)
    async with Api(server.url, server.token, server.tls_ca) as api:
        stored = await asyncio.to_thread(keys.KeyFolder.pending, signers.first)
        assert stored is not None
        await api.post(topics.TRUST, await asyncio.to_thread(replaced, signers, stored, "detector"))
    assert (await shell.document("release", "list"))["releases"] == []
    sign = ("release", "sign", "detector", "1.4.0", "--yes", "--keys")
    assert "error[not_pending]" in await shell(*sign, signers.first.path, code=1)
    assert "error[bad_signature]" in await shell("publish", folder, "--keys", signers.second.path, code=1)
    await shell("publish", folder, "--keys", signers.first.path)
    assert "error[foreign_key]" in await shell(*sign, signers.second.path, code=1)
    assert "published" in await shell(*sign, signers.third.path)


async def test_a_revocation_needs_as_many_and_is_for_ever(
    server: Running, shell: Shell, signers: Signers, folder: Path
) -> None:
    first, second = ("--keys", signers.first.path), ("--keys", signers.second.path)
    name = ("detector", "1.4.0")
    await shell("publish", folder, *first)
    await shell("publish", folder, *second)
    role = topics.release_role("detector")
    await asyncio.to_thread(signers.first.create, role)  # for a rotation: it counts later, and signs nothing now
    why = ("--reason", "labels were swapped")
    assert "error[--yes]" not in await shell("release", "revoke", *name, *why, *first, "--json", code=2)
    assert "awaits signatures (1 of 2)" in await shell("release", "revoke", *name, *why, *first, "--yes")
    shown = await shell.document("release", "show", *name)
    assert (shown["state"], shown["pending"]["reason"]) == ("published", "labels were swapped")
    said = await shell("release", "sign", *name, *second, "--yes")
    assert "reason: labels were swapped" in said
    assert "revoked detector 1.4.0" in said
    shown = await shell.document("release", "show", *name)
    assert (shown["state"], shown["ended"]["reason"], len(shown["ended"]["signatures"])) == ("revoked", why[1], 2)
    refused: tuple[tuple[str | Path, ...], ...] = (
        ("rollout", "start", *name, "--to", "all"),
        ("publish", folder, *first),
        ("release", "withdraw", *name, *why),
        ("release", "restore", *name),
    )
    for words in refused:
        assert "error[release_revoked]" in await shell(*words, code=1)
    assert "error[no_release]" in await shell("release", "revoke", *name, *why, *first, "--yes", code=1)
    async with Api(server.url, server.token, server.tls_ca) as api:  # the signed metadata says it, and forgets it never
        chain = await signing.chain_of(api, signers.first, "detector", topics.target_name(*name))
        assert not chain.targets.get(topics.target_name(*name))
        assert chain.role.signed.to_dict()["x-interlock"]["revoked"]["1.4.0"]["reason"] == why[1]
        assert (await api.get_bytes("/v1/releases/detector/1.4.0/manifest", 2**20)).startswith(b"{")  # for history
    set_version(folder, "1.4.1")
    await shell("publish", folder, *first)
    assert (await shell.document("publish", folder, *second))["state"] == "published"


async def test_a_withdrawal_is_taken_back(server: Running, shell: Shell, folder: Path, tmp_path: Path) -> None:
    keys_of = ("--keys", tmp_path / "keys")
    await shell("keys", "init", "--model", "detector", "--no-passphrase", *keys_of)
    assert (await shell.document("publish", folder, *keys_of))["state"] == "published"  # one signer: as ever
    name, why = ("detector", "1.4.0"), ("--reason", "misses pallets")
    assert "withdrew detector 1.4.0" in await shell("release", "withdraw", *name, *why)
    shown = await shell.document("release", "show", *name)
    assert (shown["state"], shown["ended"]["reason"]) == ("withdrawn", "misses pallets")
    for words in (("rollout", "start", *name, "--to", "all"), ("release", "withdraw", *name, *why)):
        assert "error[release_withdrawn]" in await shell(*words, code=1)
    out = ("-o", tmp_path / "out.bundle")
    assert "error[release_withdrawn]" in await shell("bundle", "export", *name, "--device", "a", *out, code=1)
    assert "published detector 1.4.0" in await shell("release", "restore", *name)
    assert "error[not_withdrawn]" in await shell("release", "restore", *name, code=1)
    assert (await shell.document("release", "show", *name))["ended"] is None
    await shell("release", "revoke", *name, *why, *keys_of, "--yes")
    assert (await shell.document("release", "show", *name))["state"] == "revoked"


# --- a server, or somebody on the way, that lies ----------------------------------------------------------------------


async def test_the_second_signer_is_not_shown_something_else(
    server: Running, signers: Signers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = keys.utc_now()
    async with Api(server.url, server.token, server.tls_ca) as api:
        parcel = await asyncio.to_thread(parcels.of_folder, folder)
        await release.publish(api, signers.first, parcel, now)
        true = await api.get("/v1/releases/detector/1.4.0/proposal")
        name = topics.target_name("detector", "1.4.0")

        def lie(change: Any) -> dict[str, Any]:
            document = json.loads(json.dumps(true))
            change(document["metadata"]["signed"])
            return dict(document)

        def another(signed: dict[str, Any]) -> None:
            signed["targets"]["detector/9.9.9/manifest.json"] = signed["targets"][name]

        lies = [
            lie(another),
            lie(lambda signed: signed["targets"][name].update(length=1)),
            lie(lambda signed: signed.update(version=7)),
            lie(lambda signed: signed.update(expires="2099-01-01T00:00:00Z")),
            lie(lambda signed: signed.update({"x-interlock": {"revoked": {}}})),
            {**true, "manifest": true["manifest"][:-8] + "AAAAAAA="},
            {**true, "metadata": {"signed": 1}},
        ]
        get = Api.get
        for document in lies:

            async def lying(self: Api, route: str, query: Any = None, said: Any = document) -> dict[str, Any]:
                return said if route.endswith("/proposal") else await get(self, route, query)

            with monkeypatch.context() as patch:
                patch.setattr(Api, "get", lying)
                with pytest.raises(Untrusted):
                    await signing.pending(api, signers.second, "detector", "1.4.0", now)
        with pytest.raises(Untrusted, match="clock"):
            await signing.pending(api, signers.second, "detector", "1.4.0", now - timedelta(days=2))
        await signing.pending(api, signers.second, "detector", "1.4.0", now - timedelta(hours=2))  # a zone set wrongly
        what = await signing.pending(api, signers.second, "detector", "1.4.0", now)
        assert what.previous is None
        assert what.signed_by == (signers.keyids[0],)


async def test_the_server_takes_true_signatures_alone(server: Running, signers: Signers, folder: Path) -> None:
    now = keys.utc_now()
    async with Api(server.url, server.token, server.tls_ca) as api:
        parcel = await asyncio.to_thread(parcels.of_folder, folder)
        await release.publish(api, signers.first, parcel, now)
        what = await signing.pending(api, signers.second, "detector", "1.4.0", now)
        route, true = "/v1/releases/detector/1.4.0/signatures", what.metadata.to_dict()
        what.metadata.sign(signers.keys[2])  # by a stranger
        with pytest.raises(Untrusted, match="may not sign"):
            await api.post(route, {"metadata": what.metadata.to_dict()})
        mine = signers.keyids[1]
        forged = {**true, "signatures": [*true["signatures"], {"keyid": mine, "sig": "ab" * 64}]}
        with pytest.raises(Untrusted, match="may not sign"):
            await api.post(route, {"metadata": forged})
        no_signatures: tuple[Any, ...] = (1, {}, {"keyid": []}, {"keyid": mine})
        for no_signature in no_signatures:
            with pytest.raises(Invalid):
                await api.post(route, {"metadata": {**true, "signatures": [no_signature]}})
        with pytest.raises(Conflict, match="other content"):
            await api.post(route, {"metadata": {**true, "signed": {**true["signed"], "version": 9}}})
        with pytest.raises(NotFound):
            await api.post(route.replace("1.4.0", "1.4.1"), {"metadata": true})
        assert (await api.post(route, {"metadata": true}))["state"] == "awaiting"  # twice the same is once
        viewer = await named(server, "eve", "operator")
    async with Api(server.url, viewer, server.tls_ca) as api:
        for ask in (api.post(route, {"metadata": true}), api.delete("/v1/releases/detector/1.4.0/proposal")):
            with pytest.raises(Forbidden):
                await ask
