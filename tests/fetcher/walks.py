"""A small repository, walks over it, and what can happen to the store between two of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.fetcher.trust import Trust
from interlock_shared.errors import InterlockError
from tests.fetcher.simulator import NOW, Simulator

AT = NOW.timestamp()
STORE = ("root.json", "timestamp.json", "snapshot.json", "targets.json", "release-a.json")


def made() -> Simulator:
    one = Simulator()
    one.delegate("release-a", "a/*")
    one.add("a/model", b"weights", "release-a")
    one.publish(bump=False)
    return one


def walk(one: Simulator, folder: Path, known: dict[str, Any], *, root: bytes = b"") -> dict[str, Any]:
    chain = Trust(root or one.root, folder, one, AT)
    found = chain.refresh(known)
    return chain.target("a/model", found)[1]


def never_below(after: dict[str, Any], known: dict[str, Any]) -> bool:
    return all(after[role] >= version for role, version in known.items() if isinstance(version, int))


def refusal(work: Callable[[], Any]) -> str:
    with pytest.raises(InterlockError) as error:
        work()
    return error.value.code


def torn(folder: Path, how: str, names: tuple[str, ...] = STORE, old: Path | None = None) -> None:
    for name in names:
        path = folder / name
        if how == "empty":
            path.write_bytes(b"")
        elif how == "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif how == "gone":
            path.unlink(missing_ok=True)
        elif how == "old" and old is not None:
            shutil.copy(old / name, path)


def say(one: Simulator, *roles: str) -> None:
    """These as they are, in a new snapshot."""
    one.publish(*roles, bump=False)
    one.snapshot()


def say_alone(one: Simulator, role: str) -> None:
    """This role as it is, in whatever vouches for it."""
    if role == "timestamp":
        one.timestamp(bump=False)
    elif role == "snapshot":
        one.snapshot(bump=False)
        one.timestamp()
    else:
        say(one, role)
