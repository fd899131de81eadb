"""The host's rules: the table is total, orders are fenced, and every way through it leads back to a good release."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock_agent.host import core
from interlock_agent.host import own as owns
from interlock_agent.host import states as s
from interlock_agent.host.states import Phase, Release, Unit

ONE = Release("filetype", "1.0.0", "m1", 1)
TWO = Release("filetype", "1.1.0", "m2", 2)
LIVE = s.Worker("w1", "own", 1, ONE, ready=True)
NEXT = s.Worker("w2", "candidate", 2, TWO, ready=True)
HELD = s.Worker("w4", "candidate", 2, TWO)  # verified, to be opened when there is room
TWIN = s.Worker("t2", "twin", 2, ONE, ready=True)


def unit(phase: Phase) -> Unit:
    """A unit in that phase; the lease of a trial ends at 30, and so does a gap."""
    empty = Unit("filetype", generation=2, workers={"w2": NEXT, "t2": TWIN, "w4": HELD})
    confirmed = replace(empty, confirmed_slot="a", confirmed=ONE)
    serving = replace(confirmed, phase=Phase.SERVING, live="w1", workers={"w1": LIVE, **empty.workers})
    trial = s.Trial(2, "b", "w2", TWO, 30.0, 30.0)
    return {
        Phase.EMPTY: empty,
        Phase.STARTING: replace(confirmed, phase=Phase.STARTING),
        Phase.SERVING: serving,
        Phase.GAP: replace(
            confirmed, phase=Phase.GAP, gap=s.Gap(2, "w2", 0.0, 30.0, 5.0), workers={"w2": NEXT, "w4": HELD}
        ),
        Phase.TRIAL: replace(serving, phase=Phase.TRIAL, live="w2", standby="w1", trial=trial),
    }[phase]


EVENTS: list[s.Event] = [
    s.Load(2, "w3", "candidate", TWO),
    s.Load(3, "w3", "twin", TWO),
    s.Load(2, "w3", "candidate", TWO, alone=True),
    s.MakeRoom(2, "w4", 30.0, 5.0, 1.0),
    s.Promote(2, "w2", "b", TWO, 30.0, 10.0),
    s.Renew(2),
    s.Confirm(2),
    s.Revert(2, "asked"),
    s.Retire(2, "w2"),
    s.Retire(2, "w4"),
    s.Ready("w2"),
    *[s.Died(worker, "SIGKILL") for worker in ("w1", "w2", "t2", "nobody")],
    s.Broke("disk"),
    s.Lapsed(),
    s.Configured(spare=True),
    s.Configured(spare=False),
    s.Tick(),
]


def sane(after: Unit) -> None:
    """What holds in every state, whatever happened."""
    assert (after.phase is Phase.TRIAL) == (after.trial is not None)
    assert (after.phase is Phase.GAP) == (after.gap is not None)
    assert (after.phase is Phase.SERVING) <= bool(after.live)
    assert not (after.live and after.phase in (Phase.EMPTY, Phase.STARTING, Phase.GAP))
    assert after.live == "" or after.live in after.workers
    assert after.standby == "" or (after.standby in after.workers and (after.trial or after.spare))
    assert after.standby != after.live or not after.live
    assert after.phase is not Phase.STARTING or after.own() or after.retry_at
    if after.gap:
        assert after.gap.worker in after.workers
        assert after.confirmed
        assert not any(worker.role in ("own", "twin") for worker in after.workers.values())
    if after.phase is Phase.SERVING and after.spare:
        assert after.standby or after.own() or after.retry_at
    if after.trial:
        assert after.live == after.trial.worker
        assert after.trial.slot != after.confirmed_slot


def go(before: Unit, event: s.Event, now: float = 1.0, at: float = 1000.0) -> owns.Step:
    """As the engine does it: a lapsed lease first."""
    first = core.first(before, event, now)
    effects: tuple[s.Effect, ...] = ()
    if first:
        before, effects = core.step(before, first, now, at)
    after, more = core.step(before, event, now, at)
    return after, effects + more


def test_the_table_is_total() -> None:
    assert set(core.ROWS) == {(phase, event) for phase in Phase for event in s.EVENTS}


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("phase", Phase)
def test_every_event_in_every_phase_leads_to_a_sane_state(phase: Phase, event: s.Event) -> None:
    before = unit(phase)
    if phase is Phase.STARTING:
        before, _ = owns.start(before)
    after, effects = go(before, event)
    sane(after)
    if isinstance(event, s.Order):
        replies = [e for e in effects if isinstance(e, (s.Answer, s.Refuse))]
        assert len(replies) == (0 if isinstance(event, s.Load) else 1)
        assert not any(isinstance(e, s.Refuse) for e in effects) or after == before


@pytest.mark.parametrize("event", [e for e in EVENTS if isinstance(e, s.Order)], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("phase", Phase)
def test_an_older_generation_is_refused_everywhere(phase: Phase, event: s.Order) -> None:
    before = replace(unit(phase), generation=9)
    after, effects = go(before, event)
    assert after == before
    (refused,) = effects
    assert isinstance(refused, s.Refuse)
    assert refused.code == "stale_generation"


def kinds(effects: tuple[s.Effect, ...]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_a_switch_is_recorded_before_anything_is_done() -> None:
    after, effects = go(unit(Phase.SERVING), s.Promote(2, "w2", "b", TWO, 30.0, 10.0), now=5.0)
    assert kinds(effects) == ["Record", "LinkLive", "Serve", "Push", "Answer"]
    assert after.trial is not None
    assert after.trial.deadline == 35.0
    assert effects[2] == s.Serve("w2", "w1", 10.0)


def test_confirmation_is_the_link_first() -> None:
    after, effects = go(unit(Phase.TRIAL), s.Confirm(2))
    assert kinds(effects) == ["LinkConfirmed", "Record", "Serve", "EndWorker", "Answer"]
    assert (after.confirmed_slot, after.confirmed, after.live, after.standby) == ("b", TWO, "w2", "")
    again, effects = go(after, s.Confirm(2), now=1e6)
    assert (again, effects) == (after, (s.Answer({"confirmed": True}),))


def test_a_lapsed_lease_is_seen_by_confirm_itself() -> None:
    after, effects = go(unit(Phase.TRIAL), s.Confirm(2), now=30.0)
    assert effects[-1] == s.Answer({"confirmed": False, "outcome": "interrupted", "reason": "lease_lapsed"})
    assert not any(isinstance(effect, s.LinkConfirmed) for effect in effects)
    assert (after.live, after.phase) == ("w1", Phase.SERVING)
    ok, _ = go(unit(Phase.TRIAL), s.Confirm(2), now=29.999)
    assert ok.confirmed == TWO


def test_a_lapsed_lease_cannot_be_renewed_and_a_live_one_runs_anew() -> None:
    _, effects = go(unit(Phase.TRIAL), s.Renew(2), now=30.0)
    assert isinstance(effects[-1], s.Refuse)
    assert effects[-1].code == "lease_lapsed"
    after, _ = go(unit(Phase.TRIAL), s.Renew(2), now=29.0)
    assert after.trial is not None
    assert after.trial.deadline == 59.0


def test_a_death_says_more_than_a_lapsed_lease() -> None:
    after, _ = go(unit(Phase.TRIAL), s.Died("w2", "SIGSEGV"), now=99.0)
    assert after.outcome is not None
    assert (after.outcome.outcome, after.outcome.reason) == ("reverted", "worker_died")
    after, _ = go(unit(Phase.TRIAL), s.Died("t2", "SIGSEGV"), now=99.0)
    assert after.outcome is not None
    assert after.outcome.outcome == "interrupted"


def test_a_revert_is_recorded_then_linked_then_served() -> None:
    after, effects = go(unit(Phase.TRIAL), s.Revert(2, "p95"))
    assert kinds(effects) == ["Record", "LinkLive", "Serve", "EndWorker", "Push", "Answer"]
    assert effects[1:4] == (s.LinkLive("a"), s.Serve("w1", ""), s.EndWorker("w2"))
    assert go(after, s.Revert(2, "again"))[1] == (s.Answer({}),)


def test_the_standby_that_dies_is_loaded_again() -> None:
    after, effects = go(unit(Phase.TRIAL), s.Died("w1", "SIGKILL"))
    own = after.own()
    assert own is not None
    assert s.StartWorker(own.id, "a") in effects
    ready, effects = go(after, s.Ready(own.id))
    assert ready.standby == own.id
    assert effects == (s.Serve("w2", own.id),)
    # ... and when the trial ends before it is ready, it is the live one as soon as it is.
    gone, effects = go(after, s.Died("w2", "SIGKILL"))
    assert gone.phase is Phase.STARTING
    assert not any(isinstance(effect, s.StartWorker) for effect in effects)
    assert go(gone, s.Ready(own.id))[0].live == own.id


def test_a_first_release_that_dies_leaves_nothing() -> None:
    before, _ = go(replace(unit(Phase.EMPTY)), s.Promote(2, "w2", "a", TWO, 30.0, 1.0))
    after, effects = go(before, s.Died("w2", "x"))
    assert after.phase is Phase.EMPTY
    assert s.LinkLive("") in effects
    assert s.Serve("", "") in effects


def test_crashes_back_off_and_a_healthy_while_forgets_them() -> None:
    now, state, waits = 0.0, unit(Phase.SERVING), []
    for _ in range(9):
        state, _ = go(state, s.Died(state.live, "SIGKILL"), now=now)
        waits.append(max(0.0, state.retry_at - now))
        now = max(now, state.retry_at)
        state, _ = go(state, s.Tick(), now=now)
        own = state.own()
        assert own is not None
        state, _ = go(state, s.Ready(own.id), now=now)
    assert waits == [0, 0, 1, 2, 5, 10, 30, 30, 30]
    state, _ = go(state, s.Died(state.live, "SIGKILL"), now=now + owns.HEALTHY_S)
    assert (state.crashes, state.retry_at) == (1, 0)


@pytest.mark.parametrize("phase", [*Phase])
@pytest.mark.parametrize("spare", [False, True])
def test_a_start_that_is_due_is_made_or_forgotten_and_made_once(phase: Phase, spare: bool) -> None:
    before = replace(unit(phase), spare=spare, retry_at=5.0)
    after, effects = go(before, s.Tick(), now=6.0)
    assert after.retry_at == 0, "or the timer would spin"
    needed = phase is Phase.STARTING or (phase is Phase.SERVING and spare)
    assert kinds(effects) == (["StartWorker"] if needed else [])


def test_a_spare_that_is_given_up_in_a_trial_is_not_waited_for_after_it() -> None:
    trial = replace(unit(Phase.TRIAL), spare=True, retry_at=20.0)  # it crashed, before the trial
    trial, _ = go(trial, s.Configured(spare=False))
    after, _ = go(trial, s.Revert(2, "asked"))
    assert (after.phase, after.live) == (Phase.SERVING, "w1")
    after, effects = go(after, s.Tick(), now=21.0)
    assert (core.wake_at(after), effects) == (None, ())


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (s.Promote(2, "nobody", "b", TWO, 30, 10), "unknown_worker"),
        (s.Promote(2, "t2", "b", ONE, 30, 10), "not_promotable"),
        (s.Promote(3, "w2", "b", TWO, 30, 10), "not_promotable"),
        (s.Promote(2, "w2", "a", TWO, 30, 10), "bad_request"),
        (s.Promote(2, "w2", "c", TWO, 30, 10), "bad_request"),
        (s.Promote(2, "w2", "b", ONE, 30, 10), "bad_request"),
        (s.Promote(2, "w2", "b", None, 30, 10), "bad_request"),
        (s.Retire(2, "w1"), "bad_request"),
        (s.Renew(2), "no_trial"),
        (s.Confirm(2), "no_trial"),
        (s.Revert(2, "x"), "no_trial"),
        (s.Load(2, "w9", "king", ONE), "bad_request"),
    ],
    ids=str,
)
def test_refusals(order: s.Order, code: str) -> None:
    before = unit(Phase.SERVING)
    after, (refused,) = go(before, order)
    assert after == before
    assert isinstance(refused, s.Refuse)
    assert refused.code == code


def test_a_trial_is_not_taken_over_by_another() -> None:
    before = unit(Phase.TRIAL)
    workers = {**before.workers, "w3": s.Worker("w3", "candidate", 2, TWO, ready=True)}
    _, effects = go(replace(before, workers=workers), s.Promote(2, "w3", "b", TWO, 30, 10))
    assert isinstance(effects[0], s.Refuse)
    assert go(before, s.Promote(2, "w2", "b", TWO, 30, 10)) == (before, (s.Answer({}),))


@pytest.mark.parametrize(
    ("document", "confirmed", "live", "outcome", "links"),
    [
        (None, ("", None), "", None, []),
        (None, ("a", ONE), "", None, ["a"]),
        ({"trial": {"generation": 2, "slot": "b"}}, ("a", ONE), "b", ("interrupted", "host_restarted"), ["a"]),
        ({"trial": {"generation": 2, "slot": "b"}}, ("b", TWO), "b", ("confirmed", ""), []),
        ({"trial": {"generation": 2, "slot": "a"}}, ("", None), "a", ("interrupted", "host_restarted"), [""]),
        ({"trial": None}, ("a", None), "a", None, [""]),
    ],
)
def test_a_cold_start_serves_the_confirmed_slot(
    document: dict[str, object] | None,
    confirmed: tuple[str, Release | None],
    live: str,
    outcome: tuple[str, str] | None,
    links: list[str],
) -> None:
    after, effects = core.resume("filetype", document, confirmed, live, 7, 1000.0)
    found = (after.outcome.outcome, after.outcome.reason) if after.outcome else None
    assert found == outcome
    assert after.generation == 7  # no seal on disk is newer than what may come
    assert [e.slot for e in effects if isinstance(e, s.LinkLive)] == links
    assert [e.slot for e in effects if isinstance(e, s.StartWorker)] == ([confirmed[0]] if confirmed[1] else [])
    assert after.phase is (Phase.STARTING if confirmed[1] else Phase.EMPTY)
    assert kinds(effects)[0] == "Record"


def test_after_a_failed_commit_the_link_is_put_right_before_the_trial_is_forgotten() -> None:
    after, effects = go(replace(unit(Phase.TRIAL), doubtful=True), s.Revert(2, "x"))
    assert kinds(effects)[:2] == ["LinkConfirmed", "Record"]
    assert effects[0] == s.LinkConfirmed("a")
    sane(after)


def test_what_the_disk_refused_is_tried_again() -> None:
    _, effects = go(replace(unit(Phase.SERVING), unrecorded=True), s.Tick())
    assert effects == (s.Record(must=False),)
    _, effects = go(replace(unit(Phase.SERVING), unrecorded=True, doubtful=True), s.Tick())
    assert effects == (s.LinkConfirmed("a"), s.Record(must=False))


WORKERS = st.sampled_from(["w1", "w2", "w3", "t2", "filetype-own-1", "filetype-own-2", "filetype-own-3"])
ANY = st.one_of(
    st.builds(
        s.Load, st.integers(1, 4), st.sampled_from(["w3", "w4"]), st.sampled_from(["candidate", "twin"]), st.just(TWO)
    ),
    st.builds(
        s.Promote,
        st.integers(1, 4),
        WORKERS,
        st.sampled_from(["a", "b"]),
        st.sampled_from([ONE, TWO, None]),
        st.just(30.0),
        st.just(1.0),
    ),
    st.builds(s.Renew, st.integers(1, 4)),
    st.builds(s.Confirm, st.integers(1, 4)),
    st.builds(s.Revert, st.integers(1, 4), st.just("x")),
    st.builds(s.Retire, st.integers(1, 4), WORKERS),
    st.builds(s.MakeRoom, st.integers(1, 4), WORKERS, st.just(20.0), st.just(5.0), st.just(1.0)),
    st.builds(s.Load, st.integers(1, 4), st.just("w3"), st.just("candidate"), st.just(TWO), st.booleans()),
    st.builds(s.Configured, st.booleans()),
    st.builds(s.Ready, WORKERS),
    st.builds(s.Died, WORKERS, st.just("x")),
    st.just(s.Broke("x")),
    st.just(s.Tick()),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(Phase), st.lists(st.tuples(ANY, st.floats(0, 20)), max_size=25))
def test_any_story_leaves_a_sane_state_and_a_restart_serves_what_is_confirmed(
    phase: Phase, story: list[tuple[s.Event, float]]
) -> None:
    state, now = unit(phase), 0.0
    if phase is Phase.STARTING:
        state, _ = owns.start(state)
    confirmed = state.confirmed_slot
    for event, passed in story:
        now += passed
        before = state
        state, effects = go(state, event, now)
        sane(state)
        assert state.generation >= before.generation
        moved = [e.slot for e in effects if isinstance(e, s.LinkConfirmed)]
        if moved:
            assert isinstance(event, s.Confirm)
            confirmed = moved[-1]
        assert state.confirmed_slot == confirmed
        release = state.confirmed
        after, _ = core.resume("filetype", state.document(), (confirmed, release), "b", 0, 0.0)
        sane(after)
        assert after.confirmed == release
        assert after.generation == state.generation
