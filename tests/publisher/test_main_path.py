"""From a folder to a release on a real server, and out again as a file; every step by the command itself."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from interlock_server import cli
from interlock_server.__main__ import Running, serve
from interlock_server.config import Settings
from interlock_server.publisher import ceremony, keys, metadata, parcels, release
from interlock_server.publisher.client import Api
from interlock_shared.errors import Conflict, Unreachable, Untrusted
from interlock_shared.limits import SEGMENT_BYTES
from interlock_shared.segments import Transport
from tests.publisher import models


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """A server, and an environment in which the command finds it."""
    here = ("127.0.0.1", 0)
    async with serve(Settings(tmp_path / "server", here, None, here, None, None)) as running:
        assert running.token
        monkeypatch.setenv("INTERLOCK_SERVER", running.url)
        monkeypatch.setenv("INTERLOCK_TOKEN", running.token)
        monkeypatch.setenv("INTERLOCK_KEYS", str(tmp_path / "keys"))
        monkeypatch.setenv("INTERLOCK_CA", str(tmp_path / "server" / "tls_ca.crt"))
        yield running


class Shell:
    """Runs `interlock …` in a thread, as the server runs in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd, self.everything = capfd, ""

    async def __call__(self, *words: str | Path, code: int = 0) -> str:
        done = await asyncio.to_thread(cli.main, [str(word) for word in words])
        captured = self._capfd.readouterr()
        self.everything += captured.out + captured.err
        assert done == code, captured.err + captured.out
        assert "Traceback" not in captured.err
        return captured.out if code == 0 else captured.err

    async def document(self, *words: str | Path) -> Any:
        return json.loads(await self(*words, "--json"))


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capfd)


def open_files(folder: Path) -> list[str]:
    """Those in the folder that this process has open."""
    held = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    return [one for one in held if one.startswith(f"{folder}/")]


def set_version(folder: Path, version: str) -> None:
    (folder / "bundle.toml").write_text(models.TOML.replace("1.4.0", version))


async def test_the_main_path(server: Running, shell: Shell, folder: Path, tmp_path: Path) -> None:
    root = (await shell.document("keys", "init", "--no-passphrase", "--model", "detector"))["root_sha256"]
    published = await shell.document("publish", folder)
    assert (published["version"], published["state"]) == ("1.4.0", "published")
    assert "with these very bytes" in await shell("publish", folder, code=1)
    (folder / "labels.txt").write_text("a\nb\nc\n")
    (folder / "bundle.toml").write_text(models.TOML + '[signature]\nlabels = "labels.txt"\n')
    assert "error[release_exists]" in await shell("publish", folder, code=1)

    set_version(folder, "1.4.1")
    file = tmp_path / "built.bundle"
    await shell("bundle", "build", folder, "-o", file)
    await shell("publish", file)
    listed = await shell.document("release", "list", "--model", "detector")
    assert [one["version"] for one in listed["releases"]] == ["1.4.0", "1.4.1"]
    assert (await shell.document("release", "show", "detector", "1.4.1"))["size"] == published["size"]

    out = tmp_path / "out.bundle"
    await shell("bundle", "export", "detector", "1.4.1", "--device", "press-7", "-o", out)
    checked = await shell.document("bundle", "verify", out, "--root", tmp_path / "keys" / "root.json")
    assert checked["signed"]
    assert (checked["permit"]["devices"], checked["root_sha256"]) == (["press-7"], root)
    assert await shell.document("bundle", "show", out)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]


async def test_one_more_model(server: Running, shell: Shell, folder: Path) -> None:
    await shell("keys", "init", "--no-passphrase", "--model", "detector")
    (folder / "bundle.toml").write_text(models.TOML.replace("detector", "reader"))
    assert "error[no_key]" in await shell("publish", folder, code=1)
    await shell("keys", "add-model", "reader", "--no-passphrase")
    await shell("keys", "generate", "release-reader", "--no-passphrase")  # counts for nothing yet
    await shell("publish", folder)
    assert "error[model_exists]" in await shell("keys", "add-model", "reader", "--no-passphrase", code=1)
    await shell("keys", "add-model", "third", "--no-passphrase")
    roles = {one["role"] for one in (await shell.document("keys", "show"))["keys"]}
    assert roles == {"root", "targets", "release-detector", "release-reader", "release-third"}


async def test_one_person_changes_everything_by_one_command(server: Running, shell: Shell, folder: Path) -> None:
    await shell("keys", "init", "--no-passphrase", "--model", "detector")
    await shell("publish", folder)
    before = await shell.document("keys", "show")
    for role in ("root", "targets", "release-detector"):
        await shell("keys", "generate", role, "--no-passphrase", "--holder", "again")
    public = folder.parent / "again.json"
    await shell("keys", "export", "-o", public)
    old = {one["role"]: one["keyid"] for one in before["keys"]}
    removed = [word for role, keyid in old.items() for word in ("--remove", f"{role}={keyid[:12]}")]
    rotated = [word for role in ("snapshot", "timestamp", "director") for word in ("--rotate", role)]
    said = await shell("root", "propose", "--add", public, *removed, *rotated)
    assert "the server has it: root 2, targets 2" in said
    assert "~ epoch: 1 -> 2" in said
    assert "root 3, targets 2" in await shell("root", "renew", "root")
    assert "error[no_change]" in await shell("root", "renew", "--within", "1", code=1)
    shown = await shell.document("root", "show")
    assert {one["role"]: one["keys"] for one in shown["roles"]}["root"] == ["again (here)"]
    assert not {keyid for one in shown["roles"] for keyid in one["keyids"]} & set(old.values())
    assert shown["warnings"] == []
    await shell("root", "show", "--days", "400", code=1)  # everything expires within so many days
    assert shell.everything.count("warning: ") == 3
    set_version(folder, "1.4.1")
    await shell("publish", folder)
    assert "error[trust_exists]" in await shell("root", "init", public, "-o", public.parent / "x", code=1)


async def test_keys_are_private_and_never_said(server: Running, shell: Shell, folder: Path, tmp_path: Path) -> None:
    await shell("keys", "init", "--no-passphrase", "--model", "detector")
    await shell("keys", "show")
    await shell("keys", "show", "--json")
    await shell("publish", folder)
    assert "error[key_exists]" in await shell("keys", "init", "--no-passphrase", "--model", "detector", code=1)
    pems = sorted((tmp_path / "keys").glob("*.pem"))
    assert len(pems) == 3
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for pem in pems:
        assert stat.S_IMODE(pem.stat().st_mode) == 0o600
        secret = pem.read_text().splitlines()[1]
        assert secret not in shell.everything
        uploaded = [path.read_bytes() for path in (tmp_path / "server" / "tuf").rglob("*.json")]
        assert not [data for data in uploaded if secret.encode() in data]
    pems[0].chmod(0o644)
    assert "error[key_readable_by_others]" in await shell("keys", "show", code=1)


async def test_a_key_set_that_the_server_did_not_get_is_sent_again(
    server: Running, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = keys.KeyFolder(tmp_path / "keys")
    async with Api(server.url, server.token, server.tls_ca) as api:

        async def lost(*_: Any, **__: Any) -> Any:
            raise Unreachable("cut")

        with monkeypatch.context() as patch:
            patch.setattr(Api, "post", lost)
            with pytest.raises(Unreachable):
                await release.trust(api, folder, ["detector"], keys.utc_now())
        made = await asyncio.to_thread(folder.root)
        assert (await release.trust(api, folder, ["detector"], keys.utc_now()))["root"] == 1
        assert await asyncio.to_thread(folder.root) == made
        assert await asyncio.to_thread(folder.pending) is None
    assert "error[trust_exists]" in await shell(
        "keys", "init", "--no-passphrase", "--model", "m", "--keys", tmp_path / "b", code=1
    )
    assert not (tmp_path / "b").exists()


async def test_who_publishes_in_between_is_waited_for(server: Running, folder: Path, tmp_path: Path) -> None:
    key_folder = keys.KeyFolder(tmp_path / "keys")
    async with Api(server.url, server.token, server.tls_ca) as api:
        await release.trust(api, key_folder, ["detector"], keys.utc_now())
        made = []
        for version in ("1.0.0", "1.0.1", "1.0.2"):
            set_version(folder, version)
            made.append(await asyncio.to_thread(parcels.of_folder, folder))
        await asyncio.gather(*(release.publish(api, key_folder, one, keys.utc_now()) for one in made[:2]))
        stale = await release._current(api, key_folder, made[2])
        assert stale[0].signed.version == 3
        with pytest.raises(Conflict, match="already"):
            await release.publish(api, key_folder, made[0], keys.utc_now())


async def test_an_upload_goes_on_where_it_was(
    server: Running, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "extra.bin").write_bytes(b"".join(bytes([number]) * SEGMENT_BYTES for number in range(1, 7)))
    (folder / "bundle.toml").write_text(models.TOML.replace("\n\n", '\nfiles = ["extra.bin"]\n', 1))
    parcel = await asyncio.to_thread(parcels.of_folder, folder)
    sent: list[str] = []
    original = Api.put_segment

    async def put(api: Api, one: Transport) -> None:
        if len(sent) >= 3:
            raise Unreachable("cut")
        await original(api, one)
        sent.append(one.sha256)

    async with Api(server.url, server.token, server.tls_ca) as api:
        with monkeypatch.context() as patch:
            patch.setattr(Api, "put_segment", put)
            with pytest.raises(Unreachable, match="cut"):
                await release.upload(api, parcel)
        assert open_files(folder) == []
        told: list[int] = []
        rest = await release.upload(api, parcel, told.append)
        assert 0 < rest <= len(parcel.manifest.segments()) - 1
        assert sum(told) == sum(one.size for one in parcel.manifest.segments().values())
        assert await release.upload(api, parcel) == 0


async def test_a_server_with_another_root_gets_no_signature(server: Running, folder: Path, tmp_path: Path) -> None:
    mine, other = keys.KeyFolder(tmp_path / "keys"), keys.KeyFolder(tmp_path / "other")
    async with Api(server.url, server.token, server.tls_ca) as api:
        await release.trust(api, mine, ["detector"], keys.utc_now())
        online = await api.get("/v1/trust/keys")
        await asyncio.to_thread(ceremony.first_trust, other, online, ["detector"], keys.utc_now())
        parcel = await asyncio.to_thread(parcels.of_folder, folder)
        with pytest.raises(Untrusted):
            await release.publish(api, other, parcel, keys.utc_now())
        files = await metadata.collect(api.metadata, "detector")
        root = await asyncio.to_thread(mine.root)
        with pytest.raises(Untrusted):
            await asyncio.to_thread(metadata.verify, root, {**files, "timestamp.json": b"{}"}, "detector", [])


async def test_the_fleet_is_shown(server: Running, shell: Shell, folder: Path) -> None:
    await shell("keys", "init", "--no-passphrase", "--model", "detector")
    assert "interlock-agent enrol" in await shell("device", "token", "--label", "site=berlin")
    await shell("publish", folder)
    for words in ("release list", "rollout list", "device list", "device list --label site=berlin", "events"):
        assert await shell(*words.split())
        assert await shell.document(*words.split())
    assert "error[no_device]" in await shell("rollout", "start", "detector", "1.4.0", "--to", "all", code=1)
    for words in ("rollout show r-9", "rollout abort r-9", "device show d", "device history d", "device verdict d"):
        assert "error[no_" in await shell(*words.split(), code=1)
    assert "error[no_release]" in await shell("release", "show", "detector", "9.9.9", code=1)
    failed = await asyncio.to_thread(cli.main, ["device", "show", "d", "--json"])
    assert failed == 1


async def test_login_remembers(server: Running, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INTERLOCK_SERVER", "INTERLOCK_TOKEN", "INTERLOCK_KEYS", "INTERLOCK_CA"):
        monkeypatch.delenv(name)
    login = ["login", "--server", server.url, "--token", str(server.token)]
    assert "error[unknown_server]" in await shell(*login, code=1)  # the token was not sent
    assert "error[ca_mismatch]" in await shell(*login, "--ca-sha256", "0" * 64, code=1)
    await shell(*login, "--ca-sha256", server.ca_sha256, "--keys", tmp_path / "keys")
    stored = tmp_path / "config" / "interlock" / "cli.toml"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    await shell("release", "list")
    assert "error[unauthenticated]" in await shell("release", "list", "--token", "wrong", code=1)
    assert "error[unauthenticated]" in await shell("login", "--server", server.url, "--token", "wrong", code=1)
