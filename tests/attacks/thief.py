"""Who has stolen the server's disk: its online keys, and all that it serves. The offline keys were never there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Signed, Snapshot, TargetFile, Timestamp

from interlock_server.adapters.keys import NAMES, OnlineKeys
from interlock_shared import canonical, topics
from interlock_shared.documents import Assignment, Desired
from interlock_shared.trust import DESIRED_TYPE, seal

DAYS = timedelta(days=30)


def moment(after: timedelta = timedelta(0)) -> datetime:
    return (datetime.now(UTC) + after).replace(microsecond=0)


def text(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def metadata_path(name: str) -> str:
    """Where devices ask for a file of metadata."""
    return topics.METADATA.replace("{name}", name)


def encoded(signed: Signed, *signers: CryptoSigner) -> bytes:
    """A metadata file, signed by these."""
    made: Metadata[Any] = Metadata(signed)
    for signer in signers:
        made.sign(signer, append=True)
    return canonical.encode(made.to_dict())


@dataclass
class Thief:
    """`data`: the server's folder. `files` makes what is served; nothing of the real server is touched."""

    data: Path
    role: str
    signers: Mapping[str, CryptoSigner] = field(init=False)

    def __post_init__(self) -> None:
        keys = OnlineKeys.open(self.data / "keys")
        self.signers = {role: keys.candidates(role)[-1] for role in NAMES}

    # --- what the server has -----------------------------------------------------------------------------------------

    def raw(self, name: str) -> bytes:
        """A file of metadata as it is served."""
        return (self.data / "tuf" / name).read_bytes()

    def read(self, name: str) -> Any:
        """Its content."""
        return Metadata[Any].from_bytes(self.raw(name)).signed

    def timestamp(self) -> Timestamp:
        """The newest."""
        found: Timestamp = self.read(self.name("timestamp"))
        return found

    def snapshot(self) -> Snapshot:
        """The newest."""
        found: Snapshot = self.read(self.name("snapshot"))
        return found

    def name(self, role: str) -> str:
        """The name of a role's newest file."""
        if role == "timestamp":
            return "timestamp.json"
        if role == "snapshot":
            return f"{self.timestamp().snapshot_meta.version}.snapshot.json"
        return f"{self.snapshot().meta[f'{role}.json'].version}.{role}.json"

    # --- what he makes of it -----------------------------------------------------------------------------------------

    def files(
        self,
        listed: Mapping[str, int] | None = None,
        more: Mapping[str, bytes] | None = None,
        *,
        ahead: int = 1,
        life: timedelta = DAYS,
        snapshot_life: timedelta = DAYS,
    ) -> dict[str, bytes]:
        """A snapshot that lists `listed` (role → version), a timestamp, and `more` files of metadata: by path. `ahead`:
        by how much the versions of both go up."""
        snapshot, timestamp = self.snapshot(), self.timestamp()
        snapshot.version += ahead
        snapshot.expires = moment(snapshot_life)
        for role, version in (listed or {}).items():
            snapshot.meta[f"{role}.json"] = MetaFile(version)
        timestamp.version += ahead
        timestamp.expires = moment(life)
        timestamp.snapshot_meta = MetaFile(snapshot.version)
        made = {
            f"{snapshot.version}.snapshot.json": encoded(snapshot, self.signers["snapshot"]),
            "timestamp.json": encoded(timestamp, self.signers["timestamp"]),
            **(more or {}),
        }
        return {metadata_path(name): data for name, data in made.items()}

    def naming(self, snapshot: int) -> dict[str, bytes]:
        """A new timestamp that names that snapshot, which is there still."""
        timestamp = self.timestamp()
        timestamp.version += 1
        timestamp.expires = moment(DAYS)
        timestamp.snapshot_meta = MetaFile(snapshot)
        return {metadata_path("timestamp.json"): encoded(timestamp, self.signers["timestamp"])}

    def added(self, target: str, data: bytes) -> dict[str, bytes]:
        """The release role with one more target, signed by what he has."""
        role = self.read(self.name(self.role))
        role.version += 1
        role.targets[target] = TargetFile.from_data(target, data, ["sha256"])
        name = f"{role.version}.{self.role}.json"
        return self.files({self.role: role.version}, {name: encoded(role, self.signers["snapshot"])})

    def desired(
        self, device: str, epoch: int, counter: int, units: Mapping[str, Mapping[str, Any]], *, life: timedelta = DAYS
    ) -> bytes:
        """A desired document, signed by the director's key."""
        document = Desired(
            device=device,
            epoch=epoch,
            counter=counter,
            issued_at=text(moment()),
            expires_at=text(moment(life)),
            units={unit: Assignment.model_validate(dict(wish)) for unit, wish in units.items()},
        )
        return seal(document, DESIRED_TYPE, self.signers["director"])

    def sealed(self, payload: bytes, kind: str) -> bytes:
        """Any bytes, signed by the director's key as a document of that type."""
        envelope = Envelope(payload, kind, {})
        envelope.sign(self.signers["director"])
        return canonical.encode(envelope.to_dict())
