"""A bundle that was altered, cut, reordered or made by somebody else: a typed error, whatever the bytes are."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from interlock_server.publisher import archives, ceremony, export, keys, payload
from interlock_shared import archive, canonical, manifest, topics, trust
from interlock_shared.archive import Head, Reader
from interlock_shared.documents import Permit
from interlock_shared.errors import InterlockError
from interlock_shared.segments import Transport, cut

NOW = datetime.now(UTC)
CONTENTS = [b"compressible " * 400, bytes(range(256)) * 3, hashlib.sha512(b"noise").digest() * 1]


def the_manifest(contents: list[bytes], length: int = 4096) -> manifest.Manifest:
    tensor = {"name": "x", "dtype": "FP32", "shape": [-1, 4]}
    files = []
    for number, content in enumerate(contents):
        parts = [content[at : at + count] for at, count in cut(len(content), length)]
        refs = [{"sha256": canonical.sha256(part), "size": len(part)} for part in parts]
        name = f"f{number}.onnx"
        files.append({"name": name, "size": len(content), "sha256": canonical.sha256(content), "segments": refs})
    return manifest.from_document(
        {
            "schema": manifest.SCHEMA,
            "model": "detector",
            "version": "1.4.0",
            "signature": {"inputs": [tensor], "outputs": [tensor]},
            "variants": [{"name": "fp32", "file": "f0.onnx", "reference": True}],
            "files": files,
        }
    )


def transports(contents: list[bytes], length: int = 4096) -> list[Transport]:
    parts: dict[str, bytes] = {}
    for content in contents:
        for at, count in cut(len(content), length):
            part = content[at : at + count]
            parts.setdefault(canonical.sha256(part), part)
    return [payload.compress(sha256, part) for sha256, part in parts.items()]


TLS_CA = "-----BEGIN CERTIFICATE-----\nof nobody here\n-----END CERTIFICATE-----\n"


@dataclass
class Signed:
    """A published bundle, and the root that vouches for it."""

    data: bytes
    root: bytes


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """What a server would make, without a server."""
    folder = keys.KeyFolder(tmp_path_factory.mktemp("keys") / "k")
    online = {role: CryptoSigner.generate_ed25519() for role in ("snapshot", "timestamp", "director")}
    public = {role: {"keyid": one.public_key.keyid, "key": one.public_key.to_dict()} for role, one in online.items()}
    upload = ceremony.first_trust(folder, {**public, "director_epoch": 1, "tls_ca": TLS_CA}, ["detector"], NOW)
    made = the_manifest(CONTENTS)
    data = manifest.to_bytes(made)
    name = topics.target_name("detector", "1.4.0")
    role: Metadata[Targets] = Metadata.from_dict(upload["delegated"]["release-detector"])
    role.signed.targets[name] = TargetFile.from_data(name, data, ["sha256"])
    role.sign(folder.signer("release-detector"))
    snapshot = Metadata(
        Snapshot(
            expires=keys.expires(NOW), meta={f"{one}.json": MetaFile(1) for one in ("targets", "release-detector")}
        )
    )
    timestamp = Metadata(Timestamp(expires=keys.expires(NOW), snapshot_meta=MetaFile(1)))
    snapshot.sign(online["snapshot"])
    timestamp.sign(online["timestamp"])
    permit = Permit(
        model="detector",
        version="1.4.0",
        manifest_sha256=canonical.sha256(data),
        devices=("press-7",),
        issued_at=NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
        expires_at=keys.expires(NOW).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    head = Head(
        data,
        made,
        {
            "1.root.json": canonical.encode(upload["root"]),
            "timestamp.json": canonical.encode(timestamp.to_dict()),
            "1.snapshot.json": canonical.encode(snapshot.to_dict()),
            "1.targets.json": canonical.encode(upload["targets"]),
            "1.release-detector.json": canonical.encode(role.to_dict()),
        },
        canonical.encode(upload["director"]),
        trust.seal(permit, trust.PERMIT_TYPE, online["director"]),
    )
    out = io.BytesIO()
    archives.write(out, head, transports(CONTENTS))
    return Signed(out.getvalue(), folder.root())


def check(data: bytes, root: bytes | None) -> export.Checked:
    return export.check(io.BytesIO(data), root, NOW)


def test_a_bundle_as_it_left_is_good(signed: Signed) -> None:
    found = check(signed.data, signed.root)
    assert found.signed
    assert found.permit is not None
    assert found.permit.devices == ("press-7",)
    assert found.root_sha256 == canonical.sha256(signed.root)
    assert check(signed.data, None).root_sha256 == found.root_sha256


def test_any_tar_reads_what_is_written(signed: Signed) -> None:
    with tarfile.open(fileobj=io.BytesIO(signed.data), mode="r|") as tar:
        kinds = [archive.classify(member.name).kind for member in tar]
    assert kinds == sorted(kinds, key=archive.ORDER.index)
    assert set(kinds) == set(archive.ORDER)


def test_it_can_be_read_from_a_pipe_that_gives_little(signed: Signed) -> None:
    class Pipe(io.BytesIO):
        def read(self, count: int | None = -1, /) -> bytes:
            return super().read(min(7, count) if count and count > 0 else 7)

    assert export.check(Pipe(signed.data), signed.root, NOW).signed


@dataclass
class Part:
    """One member as bytes: header, content, padding."""

    name: str
    header: bytes
    body: bytes


def parts(data: bytes) -> list[Part]:
    found, at = [], 0
    while any(data[at : at + 512]):
        info = tarfile.TarInfo.frombuf(data[at : at + 512], "ascii", "strict")
        end = at + 512 + info.size + -info.size % 512
        found.append(Part(info.name, data[at : at + 512], data[at + 512 : end]))
        at = end
    return found


def joined(members: list[Part], ending: bytes = b"\0" * 1024) -> bytes:
    return b"".join(part.header + part.body for part in members) + ending


def member(name: str, body: bytes = b"", **more: object) -> Part:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(body), 0o644
    for field, value in more.items():
        setattr(info, field, value)
    return Part(name, info.tobuf(tarfile.GNU_FORMAT), body + b"\0" * (-len(body) % 512))


def error_of(data: bytes, root: bytes | None) -> InterlockError:
    with pytest.raises(InterlockError) as refused:
        check(data, root)
    return refused.value


KINDS = ["metadata/1.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"]
KINDS += ["metadata/1.release-detector.json", "target/director.json", "permit.json", "manifest.json", "segment/"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_flipped_byte_is_found_in_every_kind_of_member(signed: Signed, kind: str, place: str) -> None:
    members = parts(signed.data)
    for part in members:
        if part.name.startswith(kind):
            size = tarfile.TarInfo.frombuf(part.header, "ascii", "strict").size
            at = {"first": 0, "middle": size // 2, "last": size - 1}[place]
            body = bytearray(part.body)
            body[at] ^= 1
            changed = [Part(p.name, p.header, bytes(body)) if p is part else p for p in members]
            # The root that the device has is its own: the copy in the file is not asked when it is the same version.
            if kind == "metadata/1.root.json":
                error_of(joined(changed), None)
            else:
                error_of(joined(changed), signed.root)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed_unseen(signed: Signed, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(signed.data) - 1))
    changed = bytearray(signed.data)
    changed[at] ^= data.draw(st.integers(1, 255))
    error_of(bytes(changed), None)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_bundle_that_was_cut_is_refused(signed: Signed, data: st.DataObject) -> None:
    end = len(joined(parts(signed.data), b""))
    cut_at = data.draw(st.integers(0, end))
    assert error_of(signed.data[:cut_at], signed.root).code in {"truncated", "not_a_bundle", "not_signed"}


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_an_error_of_ours(data: bytes) -> None:
    error_of(data, None)


HUGE = b"".join([b"\x80", (2**40).to_bytes(11, "big")])


def resized(part: Part, field: bytes) -> Part:
    header = bytearray(part.header)
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return Part(part.name, bytes(header), part.body)


def swapped(members: list[Part], first: int, second: int) -> list[Part]:
    members = list(members)
    members[first], members[second] = members[second], members[first]
    return members


Attack = Callable[[list[Part]], list[Part]]
ATTACKS: list[tuple[str, str, Attack]] = [
    ("no magic", "not_a_bundle", lambda m: m[1:]),
    ("empty", "not_a_bundle", lambda m: []),
    ("metadata reordered", "wrong_order", lambda m: swapped(m, 1, 2)),
    ("permit before director", "wrong_order", lambda m: swapped(m, 6, 7)),
    ("manifest first", "not_signed", lambda m: [m[0], m[8], *m[1:8], *m[9:]]),
    ("segments reordered", "wrong_order", lambda m: swapped(m, 9, 10)),
    ("a segment twice", "wrong_order", lambda m: [*m[:10], m[9], *m[10:]]),
    ("a segment missing", "truncated", lambda m: m[:-1]),
    ("no manifest", "wrong_order", lambda m: [*m[:8], *m[9:]]),
    ("a manifest twice", "wrong_order", lambda m: [*m[:9], m[8], *m[9:]]),
    ("a permit twice", "duplicate_member", lambda m: [*m[:8], m[7], *m[8:]]),
    ("metadata twice", "duplicate_member", lambda m: [*m[:6], m[5], *m[6:]]),
    ("no permit", "no_permit", lambda m: [*m[:7], *m[8:]]),
    ("no director", "target_mismatch", lambda m: [*m[:6], *m[7:]]),
    ("no metadata", "not_signed", lambda m: [m[0], *m[6:]]),
    ("no timestamp", "wrong_order", lambda m: [*m[:2], *m[3:]]),
    ("other metadata", "wrong_order", lambda m: [*m[:6], member("metadata/1.release-other.json", b"{}"), *m[6:]]),
    ("foreign member", "foreign_member", lambda m: [*m[:9], member("run.sh", b"reboot"), *m[9:]]),
    ("behind the end", "foreign_member", lambda m: [*m, member("segment/" + "0" * 64, b"x")]),
    ("absolute name", "foreign_member", lambda m: [m[0], member("/etc/passwd", b"x"), *m[1:]]),
    ("climbing name", "foreign_member", lambda m: [m[0], member("segment/../../x", b"x"), *m[1:]]),
    ("no ASCII", "foreign_member", lambda m: [m[0], member("segment/\u00fc", b"x"), *m[1:]]),
    ("long name", "not_a_plain_file", lambda m: [m[0], member("metadata/" + "a" * 200 + ".json", b"x"), *m[1:]]),
    ("a symlink", "not_a_plain_file", lambda m: [*m[:8], member("manifest.json", type=b"2", linkname="/x"), *m[9:]]),
    ("a hard link", "not_a_plain_file", lambda m: [*m[:8], member("manifest.json", type=b"1", linkname="x"), *m[9:]]),
    ("a folder", "not_a_plain_file", lambda m: [m[0], member("metadata", type=b"5"), *m[1:]]),
    ("a device", "not_a_plain_file", lambda m: [m[0], member("permit.json", type=b"3"), *m[1:]]),
    ("sparse", "not_a_plain_file", lambda m: [*m[:8], member("manifest.json", b"x", type=b"S"), *m[9:]]),
    ("an extended header", "not_a_plain_file", lambda m: [m[0], member("permit.json", b"x", type=b"x"), *m[1:]]),
    ("an owner", "bad_archive", lambda m: [*m[:8], member("manifest.json", b"{}", uid=7), *m[9:]]),
    ("a time", "bad_archive", lambda m: [*m[:8], member("manifest.json", b"{}", mtime=7), *m[9:]]),
    ("a huge size", "too_large", lambda m: [*m[:8], resized(m[8], HUGE), *m[9:]]),
    ("8 GiB", "too_large", lambda m: [*m[:8], resized(m[8], b"77777777777\0"), *m[9:]]),
    ("a negative size", "too_large", lambda m: [*m[:8], resized(m[8], b"-0000000001\0"), *m[9:]]),
    ("a full magic", "too_large", lambda m: [member("interlock.bundle/1", b"x"), *m[1:]]),
    ("a manifest that is none", "invalid", lambda m: [*m[:8], member("manifest.json", b"{"), *m[9:]]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "attack"), ATTACKS, ids=[row[0] for row in ATTACKS])
def test_an_archive_of_another_make_is_refused(signed: Signed, words: str, code: str, attack: Attack) -> None:
    changed = []
    for part in attack(parts(signed.data)):
        # Members of other makes come with GNU's magic; ours is POSIX's, so that only what is meant differs.
        header = bytearray(part.header)
        if header[257:265] == b"ustar  \0":
            header[257:265] = b"ustar\x0000"
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
        changed.append(Part(part.name, bytes(header), part.body))
    assert error_of(joined(changed, b"\0" * 1024), signed.root).code == code, words


@pytest.mark.parametrize("ending", [b"", b"\0" * 512 + b"x" * 512, b"\0" * 1024 + b"x", b"\0" * 20480])
def test_what_stands_behind_the_end_is_refused(signed: Signed, ending: bytes) -> None:
    assert error_of(joined(parts(signed.data), ending), signed.root).code in {"truncated", "bad_archive"}


def test_a_foreign_key_is_refused(signed: Signed, tmp_path: Path) -> None:
    other = keys.KeyFolder(tmp_path / "other")
    public = {
        role: {"keyid": key.keyid, "key": key.to_dict()}
        for role in ("snapshot", "timestamp", "director")
        for key in [CryptoSigner.generate_ed25519().public_key]
    }
    ceremony.first_trust(other, {**public, "tls_ca": TLS_CA}, ["detector"], NOW)
    assert error_of(signed.data, other.root()).code == "bad_signature"


def test_a_permit_ends(signed: Signed) -> None:
    later = datetime(NOW.year + 2, 1, 1, tzinfo=UTC)
    with pytest.raises(InterlockError, match="expired"):
        export.check(io.BytesIO(signed.data), signed.root, later)


def test_a_bomb_is_stopped_at_the_declared_size() -> None:
    content = b"x"
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 * 1024 * 1024))
    with pytest.raises(InterlockError, match="declared"):
        payload.content_of(Transport(canonical.sha256(content), 1, "zstd", bomb))


@pytest.mark.parametrize("tail", [b"x", zstandard.ZstdCompressor().compress(b"y")])
def test_nothing_hides_behind_a_compressed_segment(tail: bytes) -> None:
    content = b"content " * 100
    packed = zstandard.ZstdCompressor().compress(content)
    sha256 = canonical.sha256(content)
    assert payload.content_of(Transport(sha256, len(content), "zstd", packed)) == content
    with pytest.raises(InterlockError):
        payload.content_of(Transport(sha256, len(content), "zstd", packed + tail))
    with pytest.raises(InterlockError):
        payload.content_of(Transport(sha256, len(content), "zstd", packed[:-1]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=900) | st.just(b"ab" * 400), min_size=1, max_size=6), st.integers(1, 500)
)
def test_what_goes_in_comes_out(contents: list[bytes], length: int) -> None:
    made = the_manifest(contents, length)
    sent = transports(contents, length)
    out = io.BytesIO()
    count = archives.write(out, Head(manifest.to_bytes(made), made), sent)
    assert count == len(out.getvalue())
    assert count % tarfile.RECORDSIZE == 0
    reader = Reader(io.BytesIO(out.getvalue()))
    head = reader.head()
    found = {one.sha256: payload.content_of(one) for one in reader.segments(head.manifest)}
    assert head.manifest == made
    assert [b"".join(found[ref.sha256] for ref in file.segments) for file in made.files] == contents
