"""The checks of a release role's next metadata, beside its signatures: one target is added, or one is revoked.

Everything here is plain facts, so that no library of signatures is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from interlock_shared import canonical, revocation
from interlock_shared.documents import Director
from interlock_shared.errors import Conflict, Invalid, NotFound, Untrusted
from interlock_shared.manifest import Manifest
from interlock_shared.topics import target_name

# What becomes of a release: `published` may be rolled out; `withdrawn` is wanted no longer, until it is restored;
# `revoked` is not genuine any more, for ever. Before: in the database, and not yet in the repository.
PUBLISHING, PUBLISHED, WITHDRAWN, REVOKING, REVOKED = "publishing", "published", "withdrawn", "revoking", "revoked"
KNOWN = (PUBLISHED, WITHDRAWN, REVOKING, REVOKED)  # of which there is a document
DONE = {PUBLISHING: PUBLISHED, REVOKING: REVOKED}  # once the repository has it

Targets = Mapping[str, Mapping[str, Any]]
"""Target name → its description, all of it."""


@dataclass(frozen=True)
class Content:
    """What a release role says. `rest`: what is neither a target, nor a record of a revocation, nor a date."""

    targets: Targets
    revoked: Mapping[str, revocation.Revoked]
    rest: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.targets or self.revoked or self.rest)


NOTHING = Content({}, {}, {})


def content(signed: Mapping[str, Any]) -> Content:
    """Of the signed part of a release role's metadata. Raises Invalid."""
    dates = ("_type", "spec_version", "version", "expires", "delegations")
    rest = {name: value for name, value in signed.items() if name not in (*dates, "targets", revocation.FIELD)}
    ours = {k: value for k, value in (signed.get(revocation.FIELD) or {}).items() if k != revocation.LIST}
    if ours:
        rest[revocation.FIELD] = ours
    return Content(signed["targets"], revocation.records(signed), rest)


def delegated_paths(model: str) -> list[str]:
    """What a release role may sign: the manifests of its model, whatever the version."""
    return [f"{model}/*/manifest.json"]


def check_version(old: int, new: int) -> None:
    """Raises Conflict (`stale_metadata`) unless `new` follows `old`."""
    if new != old + 1:
        raise Conflict(
            f"metadata: version {new}, {old + 1} is expected; fetch the current metadata and sign again",
            code="stale_metadata",
            current=old,
        )


def check_kept(old: Targets, new: Targets) -> None:
    """Raises Conflict (`target_changed`) unless every known target is still there, unchanged."""
    changed = sorted(name for name, facts in old.items() if new.get(name) != facts)
    if changed:
        raise Conflict(
            f"metadata: {changed[0]} was published and must stay as it is", code="target_changed", targets=changed
        )


def _check_rest(old: Content, new: Content) -> None:
    if old.rest != new.rest:
        raise Conflict("metadata: it changes what it must not: a field beside its targets", code="target_changed")


def refuse_existing(manifest: Manifest) -> NoReturn:
    """Raises Conflict (`release_exists`)."""
    raise Conflict(
        f"{manifest.release} is published; a release never changes. Give the new content a new version",
        code="release_exists",
    )


def check_addition(old: Content, new: Content, manifest: Manifest, data: bytes) -> None:
    """Raises unless exactly the manifest's target was added, with the length and digest of its bytes.

    Conflict (`release_exists`, `release_revoked`, `target_changed`), Invalid (`foreign_target`), Untrusted
    (`target_mismatch`).
    """
    name = target_name(manifest.model, manifest.version)
    if manifest.version in old.revoked:
        refuse_revoked(manifest.release, old.revoked[manifest.version].reason)
    if name in old.targets:
        refuse_existing(manifest)
    check_kept(old.targets, new.targets)
    if old.revoked != new.revoked:
        raise Conflict("metadata: a publish revokes nothing", code="target_changed")
    _check_rest(old, new)
    added = sorted(new.targets.keys() - old.targets.keys())
    if added != [name]:
        raise Invalid(f"metadata: {name} is to be added, this adds {added}", code="foreign_target", field="metadata")
    if new.targets[name] != {"length": len(data), "hashes": {"sha256": canonical.sha256(data)}}:
        raise Untrusted(f"metadata: {name} was signed over other bytes than this manifest", code="target_mismatch")


def check_revocation(old: Content, new: Content, model: str, version: str) -> revocation.Revoked:
    """The record of the release that is revoked. Raises unless its target is gone, its record is there, and all else is
    as it was: Conflict (`target_changed`, `release_revoked`), NotFound (`no_release`), Invalid (`no_record`).
    """
    name = target_name(model, version)
    if version in old.revoked:
        refuse_revoked(f"{model} {version}", old.revoked[version].reason)
    if name not in old.targets:
        raise NotFound(f"there is no release {model} {version}", code="no_release")
    check_kept({one: facts for one, facts in old.targets.items() if one != name}, new.targets)
    _check_rest(old, new)
    if new.targets.keys() != old.targets.keys() - {name}:
        raise Conflict(f"metadata: {name} alone is to go", code="target_changed")
    record = new.revoked.get(version)
    if record is None or {**old.revoked, version: record} != dict(new.revoked):
        raise Invalid(f"metadata: it must record that {version} is revoked, and nothing else", code="no_record")
    if record.manifest_sha256 != old.targets[name].get("hashes", {}).get("sha256"):
        raise Invalid(f"metadata: its record names another manifest than {name} had", code="no_record")
    return record


def refuse_revoked(release: str, reason: str) -> NoReturn:
    """Raises Conflict (`release_revoked`)."""
    raise Conflict(
        f"{release} was revoked ({reason}); its version never comes back. Publish under a new one",
        code="release_revoked",
    )


def check_usable(release: str, state: str, reason: str) -> None:
    """Raises Conflict (`release_withdrawn`, `release_revoked`) unless a release may be rolled out, or permitted."""
    if state == WITHDRAWN:
        raise Conflict(f"{release} is withdrawn ({reason}); `interlock release restore`", code="release_withdrawn")
    if state != PUBLISHED:
        refuse_revoked(release, reason)


def check_segments(manifest: Manifest, present: Mapping[str, int]) -> None:
    """Raises Conflict (`segments_missing`, with the list) unless every segment is here in its declared size."""
    missing = [one.sha256 for one in manifest.segments().values() if present.get(one.sha256) != one.size]
    if missing:
        raise Conflict(
            f"{manifest.release}: {len(missing)} segments are not here; upload them first",
            code="segments_missing",
            missing=missing,
        )


def check_director(known: Director | None, new: Director, mine: Iterable[str]) -> None:
    """Raises unless `new` names one of `mine` (key ids) alone, and another key than before under a later epoch.

    Untrusted (`foreign_online_key`), Conflict (`stale_metadata`).
    """
    if set(new.keys) not in [{keyid} for keyid in mine]:
        raise Untrusted("director: it must name this server's key alone", code="foreign_online_key")
    if known is None:
        return
    if set(known.keys) != set(new.keys) and new.epoch <= known.epoch:
        raise Conflict(
            f"director: another key needs a later epoch than {known.epoch}, which resets what was counted under it",
            code="stale_metadata",
            current=known.epoch,
        )
    if new.epoch < known.epoch:
        raise Conflict(f"director: epoch {new.epoch} is before {known.epoch}", code="stale_metadata")


def check_models(models: Iterable[str]) -> None:
    """Raises Invalid when a model's name would be that of another part of the target tree."""
    for model in models:
        if model.endswith(".json"):
            raise Invalid(f"model: {model!r} cannot end in .json", field="model")


HELD = ("confirmed", "running", "fallback")


def holders(reports: Mapping[str, Any], model: str, version: str) -> list[dict[str, Any]]:
    """The devices that hold a release by what they last reported: whether it is confirmed there, running, the
    fallback."""
    found = []
    for device, report in reports.items():
        unit = ((report or {}).get("units") or {}).get(model) or {}
        facts = {name: unit.get(name) == version for name in HELD}
        if any(facts.values()):
            found.append({"device": device, **facts, "phase": unit.get("phase"), "alarm": unit.get("alarm")})
    return found


def counted(reports: Iterable[Any]) -> Counter[tuple[str, str]]:
    """(model, version) → how many devices have confirmed it, or run it."""
    found: Counter[tuple[str, str]] = Counter()
    for report in reports:
        for model, unit in ((report or {}).get("units") or {}).items():
            found.update({(model, version) for version in (unit.get("confirmed"), unit.get("running")) if version})
    return found
