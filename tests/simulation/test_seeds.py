"""Random runs: wishes, files, rollbacks, cuts, kills, standstills, lost and repeated messages, full disks."""

from __future__ import annotations

import logging

import pytest

from tests.simulation.weather import random_run

pytestmark = pytest.mark.simulation

RUNS = 240  # the fixed slice; `make soak` goes on from there


FOUND = {
    3665: "killed twice: after the journal said `staged` again, and before the old candidate was ended",
    4529: "a rollback asked for in a trial that ended meanwhile: nothing was left to go back to",
    7676: "the host told that it had gone back before it had, and before that was durable",
}


@pytest.mark.parametrize("seed", FOUND)
def test_what_a_seed_once_found(seed: int) -> None:
    random_run(seed)


@pytest.mark.parametrize("tenth", range(10))
def test_random_runs(tenth: int) -> None:
    logging.getLogger("interlock").setLevel(logging.CRITICAL)
    for seed in range(tenth * RUNS // 10, (tenth + 1) * RUNS // 10):
        random_run(seed)
