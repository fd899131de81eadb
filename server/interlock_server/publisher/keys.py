"""The keys that one person or one machine holds: a folder with `keys.toml`, which says by role what key is where.

Rules of the file: a private key is never overwritten, printed or sent; what leaves is public parts and signatures. The
public parts stand in `keys.toml`, so that looking needs no passphrase.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from securesystemslib.signer import Key, Signer, SSlibKey

from interlock_server.publisher import signers
from interlock_server.publisher.passphrases import Passphrases
from interlock_shared import canonical, durable
from interlock_shared.base import Name
from interlock_shared.errors import Conflict, Forbidden, Invalid, NotFound
from interlock_shared.topics import KEY_HOLDER

EXPIRY = timedelta(days=365)  # of what is signed offline: root, targets, release roles
ROOT_FILE = "root.json"
KEYS_FILE = "keys.toml"
PENDING_FILE = "upload.json"  # made and not yet taken by a server
OFFLINE_ROLES = ("root", "targets")  # and one release role a model
SIDELOAD = "sideload"  # no role of TUF: keys that root lets sign permits

HOLDER = KEY_HOLDER  # the field of a public key that says who has the private part

Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


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


def check_role(role: str) -> str:
    """What a key is for: `root`, `targets`, `release-MODEL`, `sideload`. Raises Invalid (`bad_role`)."""
    if role not in (*OFFLINE_ROLES, SIDELOAD):
        if not role.startswith("release-"):
            raise Invalid(f"{role!r} is no role: one of root, targets, release-MODEL, sideload is", code="bad_role")
        check_model(role.removeprefix("release-"))
    return role


class Held(BaseModel):
    """One key of `keys.toml`: whose role it is for, where the private part is, and the public part."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Name
    uri: Text
    keyid: Text
    keytype: Text
    scheme: Text
    public: Text
    holder: Annotated[str, StringConstraints(max_length=128)] = ""

    @property
    def key(self) -> SSlibKey:
        """The public part."""
        more = {HOLDER: self.holder} if self.holder else {}
        return SSlibKey(self.keyid, self.keytype, self.scheme, {"public": self.public}, more)

    @classmethod
    def of(cls, role: str, uri: str, key: Key, holder: str) -> Held:
        """An entry for a key."""
        public = str(key.keyval["public"])
        facts = {"role": role, "uri": uri, "keyid": key.keyid, "keytype": key.keytype, "scheme": key.scheme}
        return cls(**facts, public=public, holder=holder)


def holder_of(key: Key) -> str:
    """Who holds a key, by its own word, on one line; else the beginning of its id."""
    named = str(key.unrecognized_fields.get(HOLDER) or "")
    return " ".join(named.split())[:64] or key.keyid[:12]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_: Literal["interlock.keys/1"] = Field(alias="schema", default="interlock.keys/1")
    keys: list[Held] = Field(default_factory=list, max_length=1000)

    def text(self) -> str:
        lines = ["# Which key is for which role, and where it is. Public; the private parts are behind the URIs."]
        lines += [f"schema = {json.dumps(self.schema_)}", ""]
        for one in self.keys:
            lines += ["[[keys]]", *(f"{name} = {json.dumps(value)}" for name, value in one.model_dump().items()), ""]
        return "\n".join(lines)


@dataclass(frozen=True)
class KeyFolder:
    """`DIR/keys.toml`, the files it names, and `DIR/root.json`: the root that this side trusts."""

    path: Path
    secrets: Passphrases = field(default_factory=lambda: Passphrases(none=True))

    def held(self) -> list[Held]:
        """All keys, in the order in which they came. Raises Invalid (`bad_keys_file`), Forbidden."""
        path = self.path / KEYS_FILE
        try:
            return _File.model_validate(tomllib.loads(path.read_text())).keys
        except FileNotFoundError:
            return []
        except OSError as bad:
            raise Forbidden(f"{path}: {bad.strerror}", code="no_key") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
            raise Invalid(f"{path}: {bad}", code="bad_keys_file") from None
        except ValidationError as bad:
            problem = bad.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise Invalid(f"{path}: {where}: {problem['msg']}", code="bad_keys_file") from None

    def signers(self, keyids: Collection[str]) -> list[Signer]:
        """The signers that are here of these keys, opened. Raises what `signers.load` does."""
        wanted = {one.keyid: one for one in self.held() if one.keyid in keyids}
        place = signers.Place(self.path, self.secrets)
        return [signers.load(one.uri, one.key, place) for one in wanted.values()]

    def signer(self, role: str, counting: Collection[str] = ()) -> Signer:
        """The newest signer of a role, rather one whose key id is among `counting`: a key that was made for a rotation
        counts only later. Raises NotFound (`no_key`), and what `signers.load` does.
        """
        found = sorted((one for one in self.held() if one.role == role), key=lambda one: one.keyid in counting)
        if not found:
            raise NotFound(
                f"there is no key for {role} in {self.path}; `interlock keys generate {role}` makes one",
                code="no_key",
                role=role,
            )
        return signers.load(found[-1].uri, found[-1].key, signers.Place(self.path, self.secrets))

    def create(self, role: str, holder: str = "") -> SSlibKey:
        """A new key of a role, in a file of its own. Raises Conflict (`key_exists`), Forbidden, Invalid."""
        check_role(role)
        self._prepare()
        taken = {one.uri for one in self.held()}
        number = 1
        while f"file:{(name := f'{role}.pem' if number == 1 else f'{role}-{number}.pem')}" in taken:
            number += 1
        made = signers.create(self.path / name, self.secrets).public_key
        return self._add(Held.of(role, f"file:{name}", made, holder))

    def adopt(self, role: str, uri: str, holder: str = "") -> SSlibKey:
        """A key that is there already: in a token, a cloud, a file. Raises Conflict (`key_exists`), and what
        `signers.public_of` does.
        """
        check_role(role)
        self._prepare()
        full, key = signers.public_of(uri, signers.Place(self.path, self.secrets))
        if any(one.role == role and one.keyid == key.keyid for one in self.held()):
            raise Conflict(f"{self.path / KEYS_FILE} has this key for {role} already", code="key_exists")
        return self._add(Held.of(role, full, key, holder))

    def _add(self, one: Held) -> SSlibKey:
        self.write(KEYS_FILE, _File(keys=[*self.held(), one]).text().encode())
        return one.key

    def _prepare(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as bad:
            raise Forbidden(f"{self.path}: {bad.strerror}", code="cannot_write") from None

    def refuse_existing(self) -> None:
        """Raises Conflict (`key_exists`) when a set is there already."""
        found = sorted(path.name for path in self.path.glob("*.pem")) if self.path.is_dir() else []
        if found or any((self.path / name).exists() for name in (ROOT_FILE, KEYS_FILE)):
            raise Conflict(
                f"{self.path} holds keys already ({', '.join(found) or KEYS_FILE}); they are never overwritten; "
                "one more model: interlock keys add-model NAME",
                code="key_exists",
            )

    def root(self) -> bytes:
        """The trusted root's bytes. Raises NotFound (`no_root`)."""
        try:
            return (self.path / ROOT_FILE).read_bytes()
        except OSError:
            raise NotFound(
                f"there is no {self.path / ROOT_FILE}; `interlock keys init` makes a key set, `interlock root pin` "
                "takes over the root of a fleet that is there",
                code="no_root",
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
        """Public parts of all keys: role, uri, key id, key. Raises NotFound, Invalid, Forbidden."""
        if not self.path.is_dir():
            raise NotFound(f"there is no folder {self.path}", code="no_key")
        for one in self.held():
            signers.check_private(one.uri, signers.Place(self.path, self.secrets))
        return [{"role": one.role, "uri": one.uri, "keyid": one.keyid, "key": one.key.to_dict()} for one in self.held()]


def utc_now() -> datetime:
    """The clock of this machine; commands hand it in."""
    return datetime.now(UTC)
