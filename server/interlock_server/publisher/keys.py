"""A development key set: root, targets and one release key a model, each a PEM file that only its owner reads.

Rules of the file: a key is never overwritten, printed or sent; what leaves is public parts and signatures. Threshold is
one; ceremonies with several holders and hardware come through securesystemslib's signers, not through these files.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import TypeAdapter, ValidationError
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from interlock_server.publisher import metadata as chains
from interlock_shared import canonical, durable, topics
from interlock_shared.base import Name
from interlock_shared.documents import Director
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound
from interlock_shared.trust import load_keys

EXPIRY = timedelta(days=365)  # of what is signed offline: root, targets, release roles
ROOT_FILE = "root.json"
PENDING_FILE = "upload.json"  # made and not yet taken by a server


def expires(now: datetime) -> datetime:
    """When what is signed now ends to be valid."""
    return (now + EXPIRY).replace(microsecond=0)


def check_model(model: str) -> str:
    """A model's name. Raises Invalid."""
    try:
        checked = str(TypeAdapter(Name).validate_python(model))
    except ValidationError as bad:
        raise Invalid(f"model: {model!r}: {bad.errors()[0]['msg']}", field="model") from None
    if checked.endswith(".json"):
        raise Invalid(f"model: {model!r} cannot end in .json", field="model")
    return checked


@dataclass(frozen=True)
class KeyFolder:
    """`DIR/ROLE.pem`, and `DIR/root.json`: the root that this side trusts."""

    path: Path

    def _pem(self, role: str) -> Path:
        return self.path / f"{role}.pem"

    def signer(self, role: str) -> CryptoSigner:
        """The signer of a role. Raises NotFound (`no_key`), Forbidden (`key_readable_by_others`), Invalid."""
        path = self._pem(role)
        try:
            mode = path.stat().st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise Forbidden(f"{path}: others can read this key: chmod 600 it", code="key_readable_by_others")
            private = load_pem_private_key(path.read_bytes(), None)
        except FileNotFoundError:
            raise NotFound(
                f"there is no key {path}; `interlock keys init` or `keys add-model` makes it", code="no_key", role=role
            ) from None
        except OSError as bad:
            raise Forbidden(f"{path}: {bad.strerror}", code="no_key", role=role) from None
        except (ValueError, TypeError):
            raise Invalid(f"{path}: not a private key", code="bad_key", role=role) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise Invalid(f"{path}: not an Ed25519 key", code="bad_key", role=role)
        return CryptoSigner(private)

    def create(self, role: str) -> CryptoSigner:
        """A new key in its file. Raises Conflict (`key_exists`), Forbidden."""
        signer = CryptoSigner.generate_ed25519()
        self._prepare()
        path = self._pem(role)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            raise Conflict(f"{path} is there already; a key is never overwritten", code="key_exists") from None
        except OSError as bad:
            raise Forbidden(f"{path}: {bad.strerror}", code="cannot_write") from None
        with os.fdopen(descriptor, "wb") as out:
            out.write(signer.private_bytes)
            out.flush()
            os.fsync(out.fileno())
        durable.fsync_folder(self.path)
        return signer

    def _prepare(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as bad:
            raise Forbidden(f"{self.path}: {bad.strerror}", code="cannot_write") from None

    def refuse_existing(self) -> None:
        """Raises Conflict (`key_exists`) when a set is there already."""
        found = sorted(path.name for path in self.path.glob("*.pem")) if self.path.is_dir() else []
        if found or (self.path / ROOT_FILE).exists():
            raise Conflict(
                f"{self.path} holds keys already ({', '.join(found) or ROOT_FILE}); they are never overwritten; "
                "one more model: interlock keys add-model NAME",
                code="key_exists",
            )

    def root(self) -> bytes:
        """The trusted root's bytes. Raises NotFound (`no_root`)."""
        try:
            return (self.path / ROOT_FILE).read_bytes()
        except OSError:
            raise NotFound(
                f"there is no {self.path / ROOT_FILE}; `interlock keys init` makes a key set", code="no_root"
            ) from None

    def write(self, name: str, data: bytes) -> None:
        """A file beside the keys, for its owner alone."""
        self._prepare()
        durable.replace_file(self.path / name, data, mode=0o600)

    def pending(self) -> dict[str, Any] | None:
        """What was made for a server that has not said yes."""
        with contextlib.suppress(FileNotFoundError):
            return canonical.decode((self.path / PENDING_FILE).read_bytes(), limit=2**26, what=PENDING_FILE)
        return None

    def taken(self) -> None:
        """The server said yes."""
        durable.remove(self.path / PENDING_FILE)

    def public(self) -> list[dict[str, Any]]:
        """Public parts of all keys: role, key id, key. Raises NotFound, Invalid, Forbidden."""
        if not self.path.is_dir():
            raise NotFound(f"there is no folder {self.path}", code="no_key")
        roles = sorted(path.stem for path in self.path.glob("*.pem"))
        keys = [(role, self.signer(role).public_key) for role in roles]
        return [{"role": role, "keyid": key.keyid, "key": key.to_dict()} for role, key in keys]


def _online(document: Mapping[str, Any]) -> dict[str, Key]:
    """The server's online keys by role. Raises Invalid."""
    keys = {}
    for role in ("snapshot", "timestamp", "director"):
        entry = document.get(role)
        if not isinstance(entry, Mapping) or not isinstance(entry.get("key"), Mapping):
            raise Invalid(f"server: its {role} key is missing", code="bad_answer", field=role)
        keys[role] = load_keys({str(entry.get("keyid")): entry["key"]})[0]
    return keys


def first_trust(folder: KeyFolder, online: Mapping[str, Any], models: list[str], now: datetime) -> dict[str, Any]:
    """Make all keys, sign root, targets and the empty release roles: what is posted to the server.

    It is also kept in the folder until a server has taken it. Raises Conflict, Invalid.
    """
    folder.refuse_existing()
    names = [check_model(model) for model in dict.fromkeys(models)]
    public = _online(online)
    epoch = online.get("director_epoch", 1)
    director = Director(epoch=int(epoch), keys={public["director"].keyid: public["director"].to_dict()})
    signers = {role: folder.create(role) for role in ["root", "targets", *map(topics.release_role, names)]}
    root = Root(expires=expires(now), consistent_snapshot=True)
    for role, key in {
        "root": signers["root"].public_key,
        "targets": signers["targets"].public_key,
        "snapshot": public["snapshot"],
        "timestamp": public["timestamp"],
    }.items():
        root.add_key(key, role)
    document = director.model_dump(mode="json", by_alias=True)
    data = canonical.encode(document)
    targets = Targets(expires=expires(now), delegations=Delegations({}, {}))
    targets.targets[topics.DIRECTOR_TARGET] = TargetFile.from_data(topics.DIRECTOR_TARGET, data, ["sha256"])
    for name in names:
        delegate(targets, name, signers[topics.release_role(name)].public_key)
    signed_root = _signed(root, signers["root"])
    upload = {
        "root": signed_root,
        "targets": _signed(targets, signers["targets"]),
        "delegated": {role: empty_role(signers[role], now) for role in map(topics.release_role, names)},
        "director": document,
    }
    folder.write(PENDING_FILE, canonical.encode(upload))
    folder.write(ROOT_FILE, canonical.encode(signed_root))
    return upload


def _signed(content: Root | Targets, signer: CryptoSigner) -> dict[str, Any]:
    envelope: Metadata[Any] = Metadata(content)
    envelope.sign(signer)
    return envelope.to_dict()


def empty_role(signer: CryptoSigner, now: datetime) -> dict[str, Any]:
    """Version 1 of a release role: no release yet."""
    return _signed(Targets(expires=expires(now)), signer)


def delegate(targets: Targets, model: str, key: Key) -> None:
    """Let one key release one model. Raises Conflict (`model_exists`)."""
    name = topics.release_role(model)
    delegations = targets.delegations
    if delegations is None or delegations.roles is None:
        raise Invalid("targets: it delegates in another way than by roles", code="bad_metadata", field="targets")
    if name in delegations.roles:
        raise Conflict(f"{model}: a key may release it already", code="model_exists")
    delegations.roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=[f"{model}/*/manifest.json"])
    targets.add_key(key, name)


def with_model(
    folder: KeyFolder, files: Mapping[str, bytes], director: bytes, model: str, now: datetime
) -> dict[str, Any]:
    """Targets' next version, delegating one more model: what is posted. `files`: the server's, as `collect` gave them.

    The release key is made unless an earlier try, which the server did not take, has left one.
    """
    check_model(model)
    latest = max((name for name in files if name.endswith(".root.json")), key=lambda name: int(name.split(".")[0]))
    name = next(name for name in files if name.endswith(".targets.json"))
    targets = Metadata[Any].from_bytes(files[name])
    signer, role = folder.signer("targets"), topics.release_role(model)
    roles = targets.signed.delegations.roles if targets.signed.delegations else {}
    if role in (roles or {}):
        raise Conflict(f"{model}: a key may release it already", code="model_exists")
    try:
        own = folder.signer(role)
    except NotFound:
        own = folder.create(role)
    delegate(targets.signed, model, own.public_key)
    targets.signed.version += 1
    targets.signed.expires = expires(now)
    return {
        "root": chains.read_root(files[latest], latest).to_dict(),
        "targets": _signed(targets.signed, signer),
        "delegated": {role: empty_role(own, now)},
        "director": canonical.decode(director, limit=2**20, what="director"),
    }


def utc_now() -> datetime:
    """The clock of this machine; commands hand it in."""
    return datetime.now(UTC)
