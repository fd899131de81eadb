"""The store of blobs and metadata (a mirror, a CDN) is somebody else's: he has no key, and answers as he likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.attacks import impostor
from tests.attacks.impostor import Answers
from tests.attacks.scene import Attack, Scene, rows_of, scene

pytestmark = pytest.mark.e2e

FILES = {  # what is asked for, by the pattern of its path
    "the timestamp": r"/v1/metadata/timestamp\.json",
    "a root": r"/v1/metadata/[2-9][0-9]*\.root\.json",
    "a snapshot": r"/v1/metadata/[0-9]+\.snapshot\.json",
    "targets": r"/v1/metadata/[0-9]+\.targets\.json",
    "a release role": r"/v1/metadata/[0-9]+\.release-.*\.json",
    "the director's document": r"/v1/metadata/target/director\.json",
    "a manifest": r".*/manifest",
    "a segment": r"/v1/blobs/[0-9a-f]{64}",
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene() as made:
        yield made


def _moved(s: Scene, pattern: str) -> None:
    """What is asked for only when it has changed has changed."""
    if pattern == FILES["targets"]:
        s.world.add_model(f"model-{len(s.impostor.asked)}")
    elif pattern == FILES["a root"]:
        s.world.cli("root", "propose", "--rotate", "timestamp")


def _bent(s: Scene, pattern: str, bend: Callable[[bytes], bytes]) -> None:
    s.impostor.bends.append((pattern, bend))
    _moved(s, pattern)
    s.fetches(s.world.release(), pattern, ends=True)


def _behaves(s: Scene, pattern: str, how: Callable[[Answers], None]) -> None:
    s.impostor.behaves.append((pattern, how))
    _moved(s, pattern)
    s.fetches(s.world.release(), pattern, ends=how is impostor.endless)


WHOLE = ("the timestamp", "a manifest", "a segment")  # read by different hands; every kind would be the same again
ATTACKS = (
    *(
        Attack(
            f"{what} with a bit flipped",
            partial(_bent, pattern=pattern, bend=impostor.flipped),
            "refused",
            what not in WHOLE,
        )
        for what, pattern in FILES.items()
    ),
    *(
        Attack(
            f"{what} with its end missing",
            partial(_bent, pattern=FILES[what], bend=impostor.truncated),
            "refused",
            True,
        )
        for what in WHOLE
    ),
    *(
        Attack(f"{what} {how}", partial(_behaves, pattern=FILES[what], how=behave), outcome, what == "a manifest")
        for what in WHOLE
        for how, behave, outcome in (
            ("that does not end", impostor.endless, "refused at its limit"),
            ("in crumbs", impostor.crumbs, "given up, asked again later"),
        )
    ),
)


@pytest.mark.parametrize("attack", rows_of(ATTACKS))
def test_a_stolen_store(stage: Scene, attack: Attack[Scene]) -> None:
    with stage.attack():
        attack.case(stage)


def test_afterwards_the_next_release_is_proven_as_ever(stage: Scene) -> None:
    stage.recovers()
