"""Segments, the database's schema, permits, and what happens when something breaks on the way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from interlock_server.adapters import blobs as blobs_module
from interlock_server.adapters.database import migrations_config
from interlock_server.adapters.migrations.tables import metadata
from interlock_shared import canonical, durable, topics, trust
from tests.server.fleet_fixture import Fleet, opened, running

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKED = zstandard.ZstdCompressor().compress(CONTENT)


def test_the_migrations_lead_to_the_tables() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        config = migrations_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


@pytest.mark.parametrize(("form", "data"), [("identity", CONTENT), ("zstd", PACKED)])
async def test_a_segment_comes_back_as_it_was_sent(fleet: Fleet, form: str, data: bytes) -> None:
    assert (await fleet.admin.post(topics.BLOBS_MISSING, {"sha256": [SHA256, SHA256]}))["missing"] == [SHA256]
    assert (await fleet.put(CONTENT, form, data=data))[0] == 201
    assert (await fleet.put(CONTENT, form, data=data))[0] == 200
    assert (await fleet.admin.post(topics.BLOBS_MISSING, {"sha256": [SHA256]}))["missing"] == []
    token = f"Bearer {fleet.token}"
    url = f"{fleet.admin.url}/v1/blobs/{SHA256}"

    async def get(**headers: str) -> tuple[int, Any, bytes]:
        headers = {"Authorization": token, "Accept-Encoding": "gzip, br, zstd", **headers}
        async with fleet.admin.session.get(url, headers=headers, auto_decompress=False) as response:
            return response.status, response.headers, await response.read()

    status, headers, body = await get()
    assert (status, body) == (200, data)
    assert headers["Interlock-Form"] == form
    assert headers["Interlock-Size"] == str(len(CONTENT))
    assert headers["ETag"] == f'"{SHA256}"'
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["Content-Length"] == str(len(data))
    assert "immutable" in headers["Cache-Control"]
    assert "Content-Encoding" not in headers
    status, headers, body = await get(Range="bytes=10-")
    assert (status, body) == (206, data[10:])
    assert headers["ETag"] == f'"{SHA256}"'
    status, headers, body = await get(Range="bytes=5-9")
    assert (status, body, headers["Content-Range"]) == (206, data[5:10], f"bytes 5-9/{len(data)}")
    assert (await get(Range=f"bytes={len(data)}-"))[0] == 416
    assert (await get(**{"If-None-Match": f'"{SHA256}"'}))[0] == 304


BOMB = zstandard.ZstdCompressor().compress(b"\0" * 60_000_000)


LIES: list[tuple[str, bytes, int | None, int, str]] = [
    ("identity", CONTENT[:-1], None, 422, "segment_mismatch"),
    ("identity", CONTENT[:-1] + b"x", None, 422, "segment_mismatch"),
    ("identity", CONTENT, len(CONTENT) + 1, 422, "segment_mismatch"),
    ("identity", CONTENT + b"x" * 5000, None, 400, "segment_mismatch"),
    ("identity", b"", None, 422, "segment_mismatch"),
    ("zstd", CONTENT, None, 422, "segment_mismatch"),
    ("zstd", PACKED[:-5], None, 422, "segment_mismatch"),
    ("zstd", BOMB, None, 422, "segment_mismatch"),
    ("gzip", CONTENT, None, 400, "invalid"),
    ("identity", CONTENT, 0, 400, "invalid"),
    ("identity", CONTENT, -1, 400, "invalid"),
    ("identity", CONTENT, 10**11, 400, "invalid"),
]


async def test_a_segment_that_is_not_what_it_says_is_not_kept(fleet: Fleet) -> None:
    for form, data, size, status, code in LIES:
        got, document = await fleet.put(CONTENT, form, size, data=data)
        assert (got, document["code"]) == (status, code), document
        assert [one for one in (fleet.folder / "blobs").rglob("*") if one.is_file()] == []
    assert (await fleet.put(CONTENT, "zstd", data=PACKED))[0] == 201


async def test_a_full_disk_is_said(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "rename_folder", full)
        status, document = await fleet.put(CONTENT)
        assert (status, document["code"]) == (507, "no_space")
    with monkeypatch.context() as patch:
        patch.setattr(blobs_module, "FREE_MIN_BYTES", 2**62)
        assert (await fleet.put(CONTENT))[0] == 507
    assert (await fleet.put(CONTENT))[0] == 201


async def test_a_publish_cut_off_before_the_timestamp_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.replace_file
    async with running(tmp_path / "server") as fleet:
        await fleet.publish("1.0.0")
        before = (await fleet.admin.get(topics.STATUS))["trust"]

        def cut(path: Any, data: bytes, mode: int = 0o600) -> None:
            if str(path).endswith("timestamp.json"):
                raise OSError(errno.EIO, "the power went")
            real(path, data, mode)

        with monkeypatch.context() as patch:
            patch.setattr(durable, "replace_file", cut)
            with pytest.raises(AssertionError):
                await fleet.publish("1.1.0", b"better weights")
        assert (await fleet.admin.get(topics.STATUS))["trust"] == before
        assert len((await fleet.admin.get(topics.RELEASES))["releases"]) == 1
    async with running(tmp_path / "server", fleet.offline, fleet.token) as again:
        found = (await again.admin.get(topics.RELEASES))["releases"]
        assert [one["version"] for one in found] == ["1.0.0", "1.1.0"]
        assert (await again.admin.get(topics.STATUS))["trust"]["timestamp"] > before["timestamp"]


async def test_a_permit_is_the_directors_word_for_one_release(fleet: Fleet) -> None:
    release = await fleet.publish("1.0.0")
    body = {"devices": ["edge-1"], "valid_for_s": 3600}
    answer = await fleet.admin.post("/v1/releases/detector/1.0.0/permit", body)
    director = fleet.online["director"]
    permit = trust.open_permit(
        canonical.encode(answer["permit"]),
        trust.load_keys({director["keyid"]: director["key"]}),
        device="edge-1",
        model="detector",
        version="1.0.0",
        manifest_sha256=release["manifest_sha256"],
        now=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    assert permit.devices == ("edge-1",)


async def test_a_desired_document_is_made_anew_long_before_it_expires(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    async with running(tmp_path / "server") as fleet:
        await fleet.publish("1.0.0")
        device = await fleet.enrol("edge-1")
        await fleet.admin.post(topics.ROLLOUTS, {"model": "detector", "version": "1.0.0", "to": {"all": True}})
        async with device.online() as link:
            await link.until(lambda one: bool(one.desired))
            first = opened(link.desired[0], fleet.online, device.id)
    assert first is not None
    later = now + timedelta(days=46)
    async with running(tmp_path / "server", fleet.offline, fleet.token, clock=lambda: later) as again:
        device.port = again.broker[1]
        async with device.online() as link:
            await link.until(lambda one: bool(one.desired))
            second = opened(link.desired[-1], again.online, device.id, (1, first.counter))
    assert second is not None
    assert (second.counter, second.units) == (first.counter + 1, first.units)


async def test_a_broken_metadata_file_is_an_error_and_never_a_new_beginning(tmp_path: Path) -> None:
    from interlock_shared.errors import Invalid

    async with running(tmp_path / "server") as fleet:
        await fleet.publish("1.0.0")
    await asyncio.to_thread(
        (tmp_path / "server" / "tuf" / "timestamp.json").write_bytes, b""
    )  # as a torn write would leave it
    with pytest.raises(Invalid, match="restore it from a backup"):
        async with running(tmp_path / "server", fleet.offline, fleet.token):
            pass
