"""A signed repository without a server: metadata, permit and payload as files by name."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from interlock_shared import archive, canonical, topics, trust
from interlock_shared import manifest as manifests
from interlock_shared.archive import header, padding
from interlock_shared.documents import Director, Permit
from interlock_shared.manifest import Manifest

NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)  # noqa: UP017
MODEL, VERSION, DEVICE = "detector", "1.4.0", "press-7"
CONTENT = hashlib.shake_256(b"weights").digest(40_000)
PARTS = [CONTENT[:16_000], CONTENT[16_000:32_000], CONTENT[32_000:]]


def text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def the_manifest(parts: list[bytes] | None = None) -> Manifest:
    pieces = PARTS if parts is None else parts
    refs = [{"sha256": canonical.sha256(part), "size": len(part)} for part in pieces]
    whole = b"".join(pieces)
    tensor = {"name": "x", "dtype": "FP32", "shape": [-1, 4]}
    return manifests.from_document(
        {
            "schema": manifests.SCHEMA,
            "model": MODEL,
            "version": VERSION,
            "signature": {"inputs": [tensor], "outputs": [tensor]},
            "variants": [{"name": "fp32", "file": "model.onnx", "reference": True}],
            "files": [{"name": "model.onnx", "size": len(whole), "sha256": canonical.sha256(whole), "segments": refs}],
        }
    )


def _signed(what: Any, key: CryptoSigner) -> bytes:
    metadata: Metadata[Any] = Metadata(what)
    metadata.sign(key)
    return canonical.encode(metadata.to_dict())


@dataclass
class Repository:
    """`version` is that of every role but root; `targets` what the release role has signed."""

    version: int = 1
    expires: dict[str, datetime] = field(default_factory=dict)
    manifest: Manifest = field(default_factory=the_manifest)
    parts: dict[str, bytes] = field(default_factory=lambda: {canonical.sha256(part): part for part in PARTS})
    released: bool = True
    revoked: dict[str, Any] = field(default_factory=dict)  # records in the release role, by version
    signed_as: bytes | None = None  # other bytes under the release's name
    director_epoch: int = 1
    devices: tuple[str, ...] | None = (DEVICE,)
    classes: tuple[dict[str, str], ...] | None = None
    permit_by: str = "director"
    sideload: tuple[str, ...] = ()  # keys that the root lets sign permits
    root_version: int = 1
    permit_ends: datetime = NOW + timedelta(days=30)
    now: datetime = NOW
    keys: dict[str, CryptoSigner] = field(
        default_factory=lambda: {
            role: CryptoSigner.generate_ed25519()
            for role in ("root", "targets", "snapshot", "timestamp", "release", "director", "depot")
        }
    )

    @property
    def raw(self) -> bytes:
        return manifests.to_bytes(self.manifest)

    def _ends(self, role: str) -> datetime:
        return self.expires.get(role, self.now + timedelta(days=365))

    def director_document(self) -> bytes:
        key = self.keys["director"].public_key
        director = Director(epoch=self.director_epoch, keys={key.keyid: key.to_dict()})
        return canonical.encode(director.model_dump(mode="json", by_alias=True))

    def root(self, version: int = 0) -> bytes:
        named = {self.keys[name].public_key.keyid: self.keys[name].public_key.to_dict() for name in self.sideload}
        last = version or self.root_version
        more = {topics.ROOT_EXTENSION: {topics.ROOT_SIDELOAD: named}} if named and last == self.root_version else None
        root = Root(version=last, expires=self._ends("root"), consistent_snapshot=True, unrecognized_fields=more)
        for role in ("root", "targets", "snapshot", "timestamp"):
            root.add_key(self.keys[role].public_key, role)
        return _signed(root, self.keys["root"])

    def files(self) -> dict[str, bytes]:
        """Metadata by file name, in the archive's order."""
        v, role, key = self.version, topics.release_role(MODEL), self.keys["release"].public_key
        delegated = DelegatedRole(role, [key.keyid], 1, True, paths=[f"{MODEL}/*/manifest.json"])
        director = TargetFile.from_data(topics.DIRECTOR_TARGET, self.director_document(), ["sha256"])
        targets = Targets(
            version=v, expires=self._ends("targets"), targets={topics.DIRECTOR_TARGET: director},
            delegations=Delegations({key.keyid: key}, {role: delegated}),
        )  # fmt: skip
        name = topics.target_name(MODEL, VERSION)
        mine = {name: TargetFile.from_data(name, self.signed_as or self.raw, ["sha256"])} if self.released else {}
        more = {"x-interlock": {"revoked": self.revoked}} if self.revoked else {}
        release = Targets(version=v, expires=self._ends("release"), targets=mine, unrecognized_fields=more)
        meta = {f"{one}.json": MetaFile(v) for one in ("targets", role)}
        snapshot = Snapshot(version=v, expires=self._ends("snapshot"), meta=meta)
        timestamp = Timestamp(version=v, expires=self._ends("timestamp"), snapshot_meta=MetaFile(v))
        return {
            **{f"{number}.root.json": self.root(number) for number in range(1, self.root_version + 1)},
            "timestamp.json": _signed(timestamp, self.keys["timestamp"]),
            f"{v}.snapshot.json": _signed(snapshot, self.keys["snapshot"]),
            f"{v}.targets.json": _signed(targets, self.keys["targets"]),
            f"{v}.{role}.json": _signed(release, self.keys["release"]),
        }

    def permit(self) -> bytes:
        permit = Permit(
            model=MODEL,
            version=VERSION,
            manifest_sha256=canonical.sha256(self.raw),
            devices=self.devices,
            classes=self.classes,
            issued_at=text(NOW - timedelta(days=1)),
            expires_at=text(self.permit_ends),
        )
        return trust.seal(permit, trust.PERMIT_TYPE, self.keys[self.permit_by])

    def bundle(self, *, permit: bool = True, files: dict[str, bytes] | None = None) -> bytes:
        """The single file; `files`: its metadata, where it is not this repository's."""
        found = self.files() if files is None else files
        members = {archive.MAGIC: b""} | {f"metadata/{name}": data for name, data in found.items()}
        members[archive.DIRECTOR] = self.director_document()
        if permit:
            members[archive.PERMIT] = self.permit()
        members[archive.MANIFEST] = self.raw
        for sha256 in self.manifest.segments():
            members[archive.segment_name(sha256, "identity")] = self.parts[sha256]
        out = io.BytesIO()
        for name, data in members.items():
            out.write(header(name, len(data)) + data + b"\0" * padding(len(data)))
        out.write(b"\0" * 1024)
        return out.getvalue()


class Files:
    """A MetadataSource."""

    def __init__(self, repository: Repository) -> None:
        self.held, self.given = repository.files(), repository.director_document()

    def metadata(self, name: str, limit: int) -> bytes | None:
        del limit
        return self.held.get(name)

    def director(self, limit: int) -> bytes:
        del limit
        return self.given
