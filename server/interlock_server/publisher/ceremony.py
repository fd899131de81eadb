"""What follows from what is trusted: the first root, and every change of keys, thresholds and expiry after it.

Rules of the file: nothing here signs or sends. A change raises the version of exactly the documents that it touches:
keys of root, targets, snapshot and timestamp stand in root; those of release roles and the director in targets; who
gets new keys signs anew what it had signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root, TargetFile, Targets

from interlock_server.publisher.keys import (
    OFFLINE_ROLES,
    PENDING_FILE,
    ROOT_FILE,
    SIDELOAD,
    KeyFolder,
    check_model,
    check_role,
    expires,
    holder_of,
)
from interlock_server.publisher.proposal import Proposal, State, sign
from interlock_shared import canonical, topics
from interlock_shared.base import validate
from interlock_shared.documents import Director
from interlock_shared.errors import Conflict, Invalid, NotFound
from interlock_shared.trust import different, load_keys

ONLINE_ROLES = ("snapshot", "timestamp", "director")
CUSTOM = topics.ROOT_EXTENSION
KEYID_MIN = 6  # characters of a key id that say which key is meant


@dataclass
class Changes:
    """What is to be another. Roles: `root`, `targets`, `release-MODEL`; a release role that is new needs keys."""

    add: dict[str, list[Key]] = field(default_factory=dict)
    remove: dict[str, list[str]] = field(default_factory=dict)  # beginnings of key ids, or holders
    thresholds: dict[str, int] = field(default_factory=dict)
    online: dict[str, Key] = field(default_factory=dict)  # the new key of snapshot, timestamp, director
    renew: set[str] = field(default_factory=set)
    tls_ca: str | None = None

    def roles(self) -> set[str]:
        """The offline roles whose keys or thresholds change."""
        return {*self.add, *self.remove, *self.thresholds}


def online_keys(document: Mapping[str, Any]) -> dict[str, Key]:
    """The server's online keys by role; the fresh one where a rotation was begun. Raises Invalid."""
    keys = {}
    for role in ONLINE_ROLES:
        entry = document.get(role)
        if isinstance(entry, Mapping) and isinstance(entry.get("next"), Mapping):
            entry = entry["next"]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("key"), Mapping):
            raise Invalid(f"server: its {role} key is missing", code="bad_answer", field=role)
        keys[role] = load_keys({str(entry.get("keyid")): entry["key"]})[0]
    return keys


def first(
    online: Mapping[str, Any], roles: Mapping[str, Sequence[Key]], thresholds: Mapping[str, int], now: datetime
) -> Proposal:
    """Version 1 of everything, unsigned. `roles`: the keys of root, targets and every `release-MODEL`; a threshold that
    is not given is 1. Raises Invalid.
    """
    public = online_keys(online)
    root = Root(expires=expires(now), consistent_snapshot=True)
    if isinstance(online.get("tls_ca"), str):
        root.unrecognized_fields[CUSTOM] = {"tls_ca": online["tls_ca"]}
    for role in OFFLINE_ROLES:
        _set_role(root.roles[role], root.keys, role, list(roles.get(role, ())), thresholds.get(role, 1))
    for role in ("snapshot", "timestamp"):
        root.add_key(public[role], role)
    epoch = int(online.get("director_epoch", 1))
    director = Director(epoch=epoch, keys={public["director"].keyid: public["director"].to_dict()})
    document = director.model_dump(mode="json", by_alias=True)
    targets = Targets(expires=expires(now), delegations=Delegations({}, {}))
    _name_director(targets, document)
    delegated = {}
    if roles.get(SIDELOAD):
        root.unrecognized_fields.setdefault(CUSTOM, {})[topics.ROOT_SIDELOAD] = _named(roles[SIDELOAD])
    for role in sorted(set(roles) - {*OFFLINE_ROLES, SIDELOAD}):
        _delegate(targets, role)
        _set_role(_role(targets, role), _keys(targets), role, list(roles[role]), thresholds.get(role, 1))
        delegated[role] = Metadata(Targets(expires=expires(now)))
    return Proposal(State((), None, {}, {}), (Metadata(root),), Metadata(targets), delegated, document)


def following(state: State, changes: Changes, now: datetime) -> Proposal:
    """The next versions of what the changes touch, unsigned. Raises Invalid, Conflict, NotFound."""
    if state.root is None or state.targets is None:
        raise NotFound("the server has no trust yet: `interlock keys init`, or `interlock root init`", code="no_trust")
    for role in (*changes.roles(), *changes.renew):
        check_role(role)
    root, targets = deepcopy(state.root.signed), deepcopy(state.targets.signed)
    director = _change_targets(targets, state, changes)
    _change_root(root, changes)
    touched = {role for role in changes.roles() | changes.renew if role not in (*OFFLINE_ROLES, SIDELOAD)}
    delegated = {role: _release(state, role, now) for role in sorted(touched)}
    new_root = _bumped(root, state.root, "root" in changes.renew, now)
    again = "targets" in changes.renew or bool({"targets"} & changes.roles())
    new_targets = _bumped(targets, state.targets, again, now)
    if new_root is None and new_targets is None and not delegated:
        raise Conflict("nothing would be another than it is", code="no_change")
    return Proposal(state, (new_root,) if new_root else (), new_targets, delegated, director)


def on_top(before: Proposal, changes: Changes, now: datetime) -> Proposal:
    """A proposal that goes on from one that is signed and not published. Raises Untrusted (`signatures_missing`), and
    what `following` does.
    """
    before.upload()
    made = following(before.after, changes, now)
    delegated = {**before.delegated, **made.delegated}
    return Proposal(
        before.former, (*before.roots, *made.roots), made.targets or before.targets, delegated, made.director
    )


def _bumped(signed: Any, before: Metadata[Any], again: bool, now: datetime) -> Metadata[Any] | None:
    if signed == before.signed and not again:
        return None
    signed.version += 1
    signed.expires = expires(now)
    return Metadata(signed)


def _release(state: State, role: str, now: datetime) -> Metadata[Targets]:
    """A release role's next version: the same releases, to be signed by the keys that count from now on."""
    known = state.delegated.get(role)
    if known is None:
        return Metadata(Targets(expires=expires(now)))
    signed = deepcopy(known.signed)
    signed.version += 1
    signed.expires = expires(now)
    return Metadata(signed)


def _change_root(root: Root, changes: Changes) -> None:
    for role in OFFLINE_ROLES:
        _change_role(root.roles[role], root.keys, role, changes)
    for role in ("snapshot", "timestamp"):
        if role in changes.online:
            _set_role(root.roles[role], root.keys, role, [changes.online[role]], 1)
    used = {keyid for role in root.roles.values() for keyid in role.keyids}
    root.keys = {keyid: key for keyid, key in root.keys.items() if keyid in used}
    ours = dict(root.unrecognized_fields.get(CUSTOM, {}))
    if changes.tls_ca is not None:
        ours["tls_ca"] = changes.tls_ca
    if SIDELOAD in changes.roles():
        known = load_keys(ours.get(topics.ROOT_SIDELOAD, {}))
        kept = _changed({key.keyid: key for key in known}, SIDELOAD, changes)
        ours[topics.ROOT_SIDELOAD] = _named(kept.values())
    if ours:
        root.unrecognized_fields[CUSTOM] = ours


def _named(keys: Iterable[Key]) -> dict[str, Any]:
    return {key.keyid: key.to_dict() for key in keys}


def _change_targets(targets: Targets, state: State, changes: Changes) -> dict[str, Any]:
    """The director's document that goes with it."""
    for role in sorted(changes.roles() - {*OFFLINE_ROLES, SIDELOAD}):
        if targets.delegations is None or role not in (targets.delegations.roles or {}):
            _delegate(targets, role)
        _change_role(_role(targets, role), _keys(targets), role, changes)
    for role in changes.renew - set(OFFLINE_ROLES):
        _role(targets, role)
    if targets.delegations is not None:
        used = {keyid for role in (targets.delegations.roles or {}).values() for keyid in role.keyids}
        targets.delegations.keys = {keyid: key for keyid, key in _keys(targets).items() if keyid in used}
    known = validate(Director, dict(state.director), "director")
    key = changes.online.get("director")
    if key is None or set(known.keys) == {key.keyid}:
        return dict(state.director)
    following = Director(epoch=known.epoch + 1, keys={key.keyid: key.to_dict()})
    document = following.model_dump(mode="json", by_alias=True)
    _name_director(targets, document)
    return document


def _name_director(targets: Targets, document: Mapping[str, Any]) -> None:
    data = canonical.encode(document)
    targets.targets[topics.DIRECTOR_TARGET] = TargetFile.from_data(topics.DIRECTOR_TARGET, data, ["sha256"])


def _delegate(targets: Targets, role: str) -> None:
    """A role for one more model, still without keys."""
    model = check_model(check_role(role).removeprefix("release-"))
    if targets.delegations is None or targets.delegations.roles is None:
        raise Invalid("targets: it delegates in another way than by roles", code="bad_metadata", field="targets")
    targets.delegations.roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=[f"{model}/*/manifest.json"])


def _role(targets: Targets, role: str) -> Role:
    roles = (targets.delegations.roles if targets.delegations else None) or {}
    if role not in roles:
        raise NotFound(
            f"no key may release {role.removeprefix('release-')!r} yet: `interlock keys add-model`",
            code="unknown_model",
        )
    return roles[role]


def _keys(targets: Targets) -> dict[str, Key]:
    return targets.delegations.keys if targets.delegations else {}


def _change_role(role: Role, keys: dict[str, Key], name: str, changes: Changes) -> None:
    if name not in changes.roles():
        return
    kept = _changed({keyid: keys[keyid] for keyid in role.keyids}, name, changes)
    _set_role(role, keys, name, list(kept.values()), changes.thresholds.get(name, role.threshold))


def _changed(kept: dict[str, Key], name: str, changes: Changes) -> dict[str, Key]:
    """The keys of a role after the changes. A key that was one before is passed over when it comes again, so that
    what somebody exports with an old key does not bring it back. Raises NotFound (`unknown_key`), Conflict.
    """
    before = [key.keyval for key in kept.values()]
    for given in changes.remove.get(name, ()):
        found = [one for one, key in kept.items() if given in (holder_of(key), one)]
        found = found or [one for one in kept if len(given) >= KEYID_MIN and one.startswith(given)]
        if len(found) != 1:
            known = ", ".join(f"{holder_of(key)} ({one[:12]})" for one, key in kept.items())
            raise NotFound(f"{name}: {given!r} is not one of its keys: {known}", code="unknown_key")
        del kept[found[0]]
    added = [key for key in changes.add.get(name, ()) if key.keyval not in before]
    if changes.add.get(name) and not added:
        raise Conflict(f"{name}: what you add has been among its keys already", code="key_exists")
    return kept | {key.keyid: key for key in added}


def _set_role(role: Role, keys: dict[str, Key], name: str, wanted: list[Key], threshold: int) -> None:
    if different(wanted) != len(wanted):
        raise Conflict(f"{name}: the same key is given twice", code="key_exists")
    for key in wanted:
        if key.keyid in keys and keys[key.keyid].keyval != key.keyval:
            raise Conflict(f"{name}: {key.keyid[:12]}… is the id of another key already", code="key_exists")
    if not 1 <= threshold <= len(wanted):
        raise Invalid(
            f"{name}: {threshold} of {len(wanted)} keys cannot sign; give it keys, or another threshold",
            code="bad_threshold",
            field=name,
        )
    role.keyids, role.threshold = [key.keyid for key in wanted], threshold
    keys.update({key.keyid: key for key in wanted})


# --- one person's whole set -------------------------------------------------------------------------------------------


def first_trust(folder: KeyFolder, online: Mapping[str, Any], models: list[str], now: datetime) -> dict[str, Any]:
    """Make a key for every offline role, sign everything with them: what is posted to the server.

    It is also kept in the folder until a server has taken it. Raises Conflict, Invalid.
    """
    folder.refuse_existing()
    online_keys(online)  # before a file is written
    names = [*OFFLINE_ROLES, *(topics.release_role(check_model(model)) for model in dict.fromkeys(models))]
    made = first(online, {role: [folder.create(role)] for role in names}, {}, now)
    return keep(folder, made)


def keep(folder: KeyFolder, made: Proposal) -> dict[str, Any]:
    """Sign what the folder's keys can; the upload, kept until a server has taken it. Raises Untrusted."""
    sign(made, folder)
    upload = made.upload()
    folder.write(PENDING_FILE, canonical.encode(upload))
    if not made.former.roots:
        folder.write(ROOT_FILE, canonical.encode(upload["root"]))
    return upload
