"""Whether a file may be installed at all: asked before a byte of it is read; and how it ends, as an exit code."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from interlock_agent.cli import exits
from interlock_agent.config import Config
from interlock_agent.core.records import UnitRecord, Wish
from interlock_agent.core.sideloads import effective
from interlock_agent.core.states import Phase
from interlock_agent.engine import Engine
from interlock_agent.installer import Installer
from interlock_shared.errors import Busy, Forbidden, Incompatible, InterlockError, Invalid, Never, Untrusted


@pytest.mark.parametrize(
    ("owner", "server", "holds"),
    [
        ("", "", "once"),
        ("", "pin", "pin"),
        ("", "forbid", "forbid"),
        ("pin", "once", "pin"),
        ("once", "pin", "once"),
        ("once", "forbid", "forbid"),
        ("forbid", "pin", "forbid"),
    ],
)
def test_forbid_holds_from_either_side_else_the_owners_word(owner: str, server: str, holds: str) -> None:
    assert effective(owner, server) == holds


def engine(server: str = "", **settings: str) -> Engine:
    ports: Any = SimpleNamespace(fetcher=None)  # whoever comes as far as reading has no fetcher
    made = Engine(ports, Config.model_validate({"sideload": settings}), "press-7")
    made.stored.meta["sideload"] = server
    return made


FORBIDDEN: list[tuple[Engine, bool, str, str]] = [
    (engine(policy="forbid"), True, "sideload_forbidden", "by its owner"),
    (engine("forbid", policy="once"), True, "sideload_forbidden", "by the server"),
    (engine(), False, "unenrolled", "sideload.unenrolled"),
    (engine(policy="forbid", unenrolled="allow"), False, "sideload_forbidden", "by its owner"),
]


@pytest.mark.parametrize(("made", "enrolled", "code", "said"), FORBIDDEN, ids=range(len(FORBIDDEN)))
async def test_what_is_not_allowed_is_not_read(
    made: Engine, enrolled: bool, code: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "x.bundle").write_bytes(b"x")
    descriptor = os.open(tmp_path / "x.bundle", os.O_RDONLY)
    with pytest.raises(Forbidden, match=said) as refused:
        await Installer(made, enrolled=enrolled).install(descriptor)
    assert refused.value.code == code
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_is_allowed_is_allowed() -> None:
    Installer(engine(), enrolled=True).refuse_forbidden()
    Installer(engine(unenrolled="allow"), enrolled=False).refuse_forbidden()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Untrusted("x", code="unknown_root"), 10),
        (Untrusted("x", code="expired"), 11),
        (Forbidden("x", code="other_device"), 12),
        (Untrusted("x", code="below_floor"), 13),
        (Invalid("x", code="truncated"), 14),
        (Untrusted("x", code="revoked"), 15),
        (Incompatible("x", code="unit_not_listed"), 16),
        (Untrusted("x", code="bad_signature"), 17),
        (Invalid("x", code="foreign_member"), 18),
        (Invalid("no such file", code="io", field="file"), 1),
        (Busy("x"), 3),
        (Never("x"), 1),
    ],
    ids=lambda one: str(getattr(one, "code", one)),
)
def test_each_refusal_has_an_exit_code(error: InterlockError, code: int) -> None:
    assert exits.of_error(error) == code


@pytest.mark.parametrize(
    ("phase", "reason", "code"),
    [
        ("confirmed", "", 0),
        ("waiting", "window", 3),
        ("failed", "segment_mismatch", 14),
        ("failed", "bad_archive", 18),
        ("rejected", "slow", 1),
    ],
)
def test_each_end_has_an_exit_code(phase: str, reason: str, code: int) -> None:
    assert exits.of_answer(phase, reason) == code


async def test_a_file_that_cannot_be_taken_now_is_not_held() -> None:
    """An inbox asks again every minute, for as long as the trial takes."""
    made = engine()
    made.stored.units["detector"] = UnitRecord("detector", phase=Phase.TRIAL.value)
    source: Any = SimpleNamespace()
    with pytest.raises(Busy):
        await made.sideload("detector", Wish("1.0.0", "a" * 64, "sideload-1", origin="sideload"), source)
    assert made.shared.sources == {}
