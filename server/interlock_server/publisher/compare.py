"""Two manifests side by side, field by field: what a second signer looks at before signing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from interlock_shared.manifest import Manifest

Facts = dict[str, str]
SHORT = 16  # of a digest, for people


def facts(manifest: Manifest) -> Facts:
    """All that a manifest says, by the path of the field: `gates.latency_ratio_max`, `files.model.onnx.size`. Segments
    are left out: a file's digest says as much."""
    return dict(_flat("", manifest.model_dump(mode="json", by_alias=True, exclude_none=True)))


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            if name != "segments":
                yield from _flat(f"{path}.{name}" if path else str(name), one)
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for number, one in enumerate(value):
            name = one.get("name", one.get("check")) if isinstance(one, Mapping) else None
            yield from _flat(f"{path}.{name or number}", one)
    elif value not in ("", [], {}):
        yield path, ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)


def differences(old: Facts, new: Facts) -> list[tuple[str, str, str]]:
    """(field, before, after) of what is not the same; "" where there is nothing."""
    names = [*new, *(name for name in old if name not in new)]
    return [(name, old.get(name, ""), new.get(name, "")) for name in names if old.get(name) != new.get(name)]


def sections(known: Facts) -> dict[str, Facts]:
    """The facts by their first word."""
    found: dict[str, Facts] = {}
    for name, value in known.items():
        head, _, rest = name.partition(".")
        found.setdefault(head if rest else "release", {})[rest or name] = value
    return found
