"""The checks of a publish, after the signatures: what may change in a release role's metadata is one new target.

`Targets` here are plain facts: target name → (length, SHA-256), so that no library of signatures is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from interlock_shared import canonical
from interlock_shared.errors import Conflict, Invalid, Untrusted
from interlock_shared.manifest import Manifest
from interlock_shared.topics import target_name

DIRECTOR_EPOCH = 1  # a stolen director key is replaced under the next one, which resets every counter

Targets = Mapping[str, tuple[int, str]]


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


def refuse_existing(manifest: Manifest) -> NoReturn:
    """Raises Conflict (`release_exists`)."""
    raise Conflict(
        f"{manifest.release} is published; a release never changes. Give the new content a new version",
        code="release_exists",
    )


def check_addition(old: Targets, new: Targets, manifest: Manifest, data: bytes) -> None:
    """Raises unless exactly the manifest's target was added, with the length and digest of its bytes.

    Conflict (`release_exists`, `target_changed`), Invalid (`foreign_target`), Untrusted (`target_mismatch`).
    """
    name = target_name(manifest.model, manifest.version)
    if name in old:
        refuse_existing(manifest)
    check_kept(old, new)
    added = sorted(new.keys() - old.keys())
    if added != [name]:
        raise Invalid(f"metadata: {name} is to be added, this adds {added}", code="foreign_target", field="metadata")
    if new[name] != (len(data), canonical.sha256(data)):
        raise Untrusted(f"metadata: {name} was signed over other bytes than this manifest", code="target_mismatch")


def check_segments(manifest: Manifest, present: Mapping[str, int]) -> None:
    """Raises Conflict (`segments_missing`, with the list) unless every segment is here in its declared size."""
    missing = [one.sha256 for one in manifest.segments().values() if present.get(one.sha256) != one.size]
    if missing:
        raise Conflict(
            f"{manifest.release}: {len(missing)} segments are not here; upload them first",
            code="segments_missing",
            missing=missing,
        )


def check_models(models: Iterable[str]) -> None:
    """Raises Invalid when a model's name would be that of another part of the target tree."""
    for model in models:
        if model.endswith(".json"):
            raise Invalid(f"model: {model!r} cannot end in .json", field="model")
