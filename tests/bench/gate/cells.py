"""The candidates: a model whose cost is a number of matrix products, so that the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 1.10  # of the ratio
TURNS = 20  # products of the incumbent, about 0.2 ms each


@dataclass(frozen=True)
class Cell:
    """A candidate beside its incumbent; `work`: the true ratio of CPU time; on the wall it is the same, unless
    the candidate is crowded."""

    name: str
    turns: int
    work: float
    crowded: bool = False  # its one CPU is shared with other threads: the same work takes longer

    @property
    def fit(self) -> bool:
        """Whether it should be accepted."""
        return self.work <= LIMIT and not self.crowded


CELLS = (
    Cell("same", TURNS, 1.0),
    Cell("faster", 16, 0.8),
    Cell("slower 1.05", 21, 1.05),
    Cell("slower 1.2", 24, 1.2),
    Cell("slower 1.3", 26, 1.3),
    Cell("slower 2", 40, 2.0),
    Cell("slower on the wall", TURNS, 1.0, crowded=True),
)
