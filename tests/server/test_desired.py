"""Ahead of the server, or not; and what the next document is numbered after."""

from __future__ import annotations

import pytest

from interlock_server.core import desired
from interlock_shared.errors import Conflict


@pytest.mark.parametrize(
    ("sent", "says", "ahead", "next_after"),
    [
        ((1, 5), None, False, 5),
        ((1, 5), [1, 5], False, 5),
        ((1, 5), [1, 4], False, 5),
        ((1, 5), [1, 9], True, 9),
        ((1, 0), [1, 9], False, 9),  # nothing was ever sent from here
        ((2, 1), [1, 900], False, 1),  # the director was rotated
        ((1, 5), [2, 1], True, "director_epoch"),
        ((1, 5), [1, 2**40], True, "counter_jump"),
    ],
)
def test_ahead(sent: tuple[int, int], says: list[int] | None, ahead: bool, next_after: int | str) -> None:
    reported = None if says is None else {"desired": says}
    assert (desired.ahead(sent, reported) is not None) is ahead
    if isinstance(next_after, int):
        assert desired.goes_on_from(sent, reported) == next_after
        return
    with pytest.raises(Conflict) as refused:
        desired.goes_on_from(sent, reported)
    assert refused.value.code == next_after
