"""In every phase in which something is done, the agent is killed, the host is killed, under live traffic. No request
fails (the host's death: in a gap that is measured), nothing unproven serves after it, and the unit converges."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.e2e import stopped
from tests.e2e.stopped import Case
from tests.e2e.world import Watcher

pytestmark = pytest.mark.e2e

PHASES = (
    stopped.fetching,
    stopped.staged,
    stopped.gating,
    stopped.passed,
    stopped.switching,
    stopped.switched,
    stopped.trial,
    stopped.confirming,
    stopped.committed,
    stopped.reverting,
    stopped.taken_back,
    stopped.interrupted,
    stopped.waiting,
)


@pytest.fixture(scope="module")
def one() -> Iterator[Watcher]:
    with stopped.device() as found:
        yield found


@pytest.mark.parametrize("harm", [stopped.agent_dies, stopped.host_dies], ids=lambda harm: str(harm.__name__))
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: str(phase.__name__))
def test_a_death_in_any_phase_costs_no_request_and_no_release(
    one: Watcher,
    phase: Callable[[Case], contextlib.AbstractContextManager[None]],
    harm: Callable[[Case], None],
) -> None:
    with stopped.case(one) as case:
        with phase(case):
            harm(case)
        case.settles()
